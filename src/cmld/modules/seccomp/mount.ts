// mount(2) of a tmpfs or ramfs that is to show devices: natively its nodes are dead in a user namespace, whatever the
// flags, so cmld mounts it in the caller's mount namespace, where the caller said, with the caller's ids. With it the
// nodes of the rules can be made and used (mknod.ts), as by a container engine or a service with devices of its own.
//
// Everything else about mounts is the kernel's, by the container's own rights: bind, move, remount and propagation, the
// other file systems (an overlay too, which needs no help since Linux 5.11), and what is nodev. So is a tmpfs whose
// options we do not know. A caller that we send to the kernel may change its arguments meanwhile: it gains nothing.
import {
  AT_FDCWD,
  CLONE_NEWNS,
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_STRING,
  fsconfig,
  fsmount,
  fsopen,
  MOUNT_ATTR_NOATIME,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  MS_NOATIME,
  MS_NOEXEC,
  MS_NOSUID,
  MS_RDONLY,
  moveMount,
  setns,
} from "../../../sys/calls.ts";
import type { Answer } from "../../../sys/notify.ts";
import { type Op, Reg } from "../../../sys/op.ts";
import { ID_RANGE } from "../../containers.ts";
import type { Supervised } from "./supervised.ts";

// linux/mount.h
const [MS_NODIRATIME, MS_SILENT, MS_RELATIME, MS_STRICTATIME] = [2048, 1 << 15, 1 << 21, 1 << 24];
const [MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME] = [0x20, 0x80];
const [MS_MGC_VAL, MS_MGC_MSK] = [0xc0ed0000, 0xffff0000];
const ATTRIBUTES: readonly (readonly [flag: number, attribute: number])[] = [
  [MS_RDONLY, MOUNT_ATTR_RDONLY],
  [MS_NOSUID, MOUNT_ATTR_NOSUID],
  [MS_NOEXEC, MOUNT_ATTR_NOEXEC],
  [MS_NODIRATIME, MOUNT_ATTR_NODIRATIME],
  [MS_RELATIME, 0],
  [MS_SILENT, 0],
];
const [NAMESPACE, PLACE, FS, MOUNT] = [0, 1, 2, 3].map((n) => new Reg(n)) as [Reg, Reg, Reg, Reg];

/** Attributes of fsmount(2) for flags of mount(2); undefined: there is one that we do not know. */
export function attributesOf(flags: bigint): number | undefined {
  let left = Number(flags & 0xffffffffn);
  if (flags >> 32n) return undefined;
  if ((left & MS_MGC_MSK) >>> 0 === MS_MGC_VAL) left &= 0xffff;
  let attributes = 0;
  if (left & MS_STRICTATIME) attributes = MOUNT_ATTR_STRICTATIME;
  else if (left & MS_NOATIME) attributes = MOUNT_ATTR_NOATIME;
  left &= ~(MS_STRICTATIME | MS_NOATIME);
  for (const [flag, attribute] of ATTRIBUTES) {
    if (left & flag) attributes |= attribute;
    left &= ~flag;
  }
  return left === 0 ? attributes : undefined;
}

const SIZES = new Set(["size", "nr_blocks", "nr_inodes"]);

/** "size=1m,uid=5" for fsconfig(2), ids as the host's; undefined: there is one that we do not know. */
export function optionsOf(
  type: string,
  data: string,
  uidStart: number,
): [key: string, value: string][] | undefined {
  const options: [string, string][] = [];
  for (const option of data.split(",")) {
    if (option === "") continue;
    const [, key, value] = /^(\w+)=([0-9a-zA-Z%]{1,20})$/.exec(option) ?? [];
    if (key === undefined || value === undefined) return undefined;
    const isId = key === "uid" || key === "gid";
    if (key === "mode" && /^[0-7]+$/.test(value)) options.push([key, value]);
    else if (type === "tmpfs" && SIZES.has(key)) options.push([key, value]);
    else if (type === "tmpfs" && isId && /^\d{1,5}$/.test(value) && Number(value) < ID_RANGE)
      options.push([key, String(uidStart + Number(value))]);
    else return undefined;
  }
  return options;
}

export async function mount(call: Supervised): Promise<Answer> {
  if (!call.may("SYS_ADMIN")) return "kernel";
  const [source, target, type, flags, data] = call.args as [bigint, bigint, bigint, bigint, bigint];
  if (target === 0n || type === 0n) return "kernel";
  const texts = await call.texts(type, target, source, data);
  if (!texts) return "kernel";
  const [name, path, from, more] = texts as [string, string, string, string];
  if (name !== "tmpfs" && name !== "ramfs") return "kernel";
  const attributes = attributesOf(flags);
  const options = optionsOf(name, more, call.container.uidStart);
  if (attributes === undefined || !options || from.length > 255) return "kernel";
  const place = await call.find(AT_FDCWD, path, false);
  if (!place) return "kernel";
  const { uid, gid } = call.caller;
  const ops: Op[] = [
    call.take(place, PLACE),
    call.takeNamespace(place, NAMESPACE),
    { call: "setfsgid", args: [gid] }, // to whom its root belongs
    { call: "setfsuid", args: [uid] },
    fsopen(name, FS),
    ...(from === "" ? [] : [fsconfig(FS, FSCONFIG_SET_STRING, "source", from)]),
    ...options.map(([key, value]) => fsconfig(FS, FSCONFIG_SET_STRING, key, value)),
    fsconfig(FS, FSCONFIG_CMD_CREATE, null),
    fsmount(FS, attributes, MOUNT),
    setns(NAMESPACE, CLONE_NEWNS),
    moveMount(MOUNT, PLACE, ""),
    call.done,
  ];
  const made = await call.do([place.pidfd], ops);
  return "errno" in made ? { error: made.errno } : { value: 0 };
}
