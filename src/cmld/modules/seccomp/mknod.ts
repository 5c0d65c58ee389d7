// mknod, mknodat of a device: the kernel wants a capability of the host, cmld makes the node for whoever may have one.
//
// Allowed: CAP_MKNOD in the container's user namespace, and a device that the container's rules let it make. Made in a
// directory that the caller itself may write to, with its ids and umask. Only where the node will work: on a file system
// that shows no devices (nodev, or of a user namespace) the answer is the kernel's, EPERM, by which systemd and
// container engines know that they have to bind the host's node instead.

import {
  AT_FDCWD,
  exit,
  mknodat,
  O_NOFOLLOW,
  O_NONBLOCK,
  O_RDONLY,
  openat,
  umask,
  unlinkat,
} from "../../../sys/calls.ts";
import { EACCES, EPERM } from "../../../sys/error.ts";
import type { Answer } from "../../../sys/notify.ts";
import { type Op, Reg } from "../../../sys/op.ts";
import { deviceOf } from "../../devices/nodes.ts";
import { MKNOD } from "../../devices/rules.ts";
import { CAPABILITIES } from "../caps.ts";
import { asCaller, int, type Supervised } from "./supervised.ts";

const [S_IFMT, S_IFBLK] = [0o170000, 0o060000]; // linux/stat.h
const O_NOATIME = 0o1000000; // asm-generic/fcntl.h
const bit = (name: (typeof CAPABILITIES)[number]): bigint => 1n << BigInt(CAPABILITIES.indexOf(name));
/** The host's root, who owns nothing that a container makes; the child may go back to it, and has no right of it. */
const STRANGER = 0;
const DIRECTORY = new Reg(0);
const SHOWS_NONE = 1;

/** "dir" and "name" of "dir/name"; undefined where the kernel has something to say about it. */
export function split(path: string): { directory: string; name: string } | undefined {
  const at = path.lastIndexOf("/");
  const name = path.slice(at + 1);
  if (name === "" || name === "." || name === "..") return undefined;
  return { directory: at < 0 ? "." : path.slice(0, at + 1), name };
}

const setfsuid = (uid: number): Op => ({ call: "setfsuid", args: [uid] });

/** Make the node; then look whether it can be opened, which ends with EPERM before any driver hears of it: O_NOATIME is
 * for owners. EACCES: devices are not shown there, and it is removed. */
function program(call: Supervised, open: Op, name: string, mode: number, number: number): Op[] {
  const most = bit("MKNOD") | bit("DAC_OVERRIDE"); // find() has made sure that the caller may write there
  const { uid } = call.caller;
  const probe = O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOATIME;
  return [
    open,
    umask(call.caller.umask),
    { call: "setresuid", args: [uid, STRANGER, STRANGER] }, // its file system id may change between both
    ...asCaller(call.caller, most),
    mknodat(DIRECTORY, name, mode, number),
    call.done,
    setfsuid(STRANGER),
    { ...openat(DIRECTORY, name, probe), allow: EACCES },
    setfsuid(uid),
    unlinkat(DIRECTORY, name),
    exit(SHOWS_NONE),
  ];
}

async function node(
  call: Supervised,
  at: number,
  path: bigint,
  mode: number,
  number: number,
): Promise<Answer> {
  if (!call.may("MKNOD")) return "kernel";
  const device = deviceOf((mode & S_IFMT) === S_IFBLK ? "b" : "c", number); // linux/kdev_t.h, new_decode_dev()
  if (!(call.container.access(device) & MKNOD)) return { error: EPERM };
  const where = split((await call.texts(path))?.[0] ?? "");
  const directory = where && (await call.find(at, where.directory, true));
  if (!directory) return "kernel";
  const ops = program(call, call.take(directory, DIRECTORY), where.name, mode, number);
  const made = await call.do([directory.pidfd], ops);
  if ("status" in made) return { error: EPERM };
  const probed = ops.findIndex((op) => op.call === "openat");
  return made.step === probed && made.errno === EPERM ? { value: 0 } : { error: made.errno };
}

export const mknod = (call: Supervised): Promise<Answer> => {
  const [path, mode, device] = call.args as [bigint, bigint, bigint];
  return node(call, AT_FDCWD, path, int(mode) & 0xffff, int(device) >>> 0);
};

export const mknodAt = (call: Supervised): Promise<Answer> => {
  const [at, path, mode, device] = call.args as [bigint, bigint, bigint, bigint];
  return node(call, int(at), path, int(mode) & 0xffff, int(device) >>> 0);
};
