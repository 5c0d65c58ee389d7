// caps: what root in the container may do.
//
// Every capability counts in the container's own user namespace only. KEPT is what an init like systemd, package
// managers and nested containers use there; everything else leaves the bounding set, so that no program can have it,
// setuid or with file capabilities, whatever the kernel might wrongly allow for it. Inheritable and ambient sets are
// empty. Securebits stay at the kernel's default, unlocked, and NO_NEW_PRIVS is not set: setuid programs are part of
// an ordinary system, and what they can gain is bounded here. docs/isolation.md lists both columns.
import { prctl } from "../../sys/calls.ts";
import { EINVAL, ENOSYS } from "../../sys/error.ts";
import { Struct } from "../../sys/mem.ts";
import type { Data, Op } from "../../sys/op.ts";
import type { ContainerConfig } from "../config.ts";
import type { Module } from "../module.ts";

/** linux/capability.h: the name at n is capability n. */
export const CAPABILITIES = [
  "CHOWN",
  "DAC_OVERRIDE",
  "DAC_READ_SEARCH",
  "FOWNER",
  "FSETID",
  "KILL",
  "SETGID",
  "SETUID",
  "SETPCAP",
  "LINUX_IMMUTABLE",
  "NET_BIND_SERVICE",
  "NET_BROADCAST",
  "NET_ADMIN",
  "NET_RAW",
  "IPC_LOCK",
  "IPC_OWNER",
  "SYS_MODULE",
  "SYS_RAWIO",
  "SYS_CHROOT",
  "SYS_PTRACE",
  "SYS_PACCT",
  "SYS_ADMIN",
  "SYS_BOOT",
  "SYS_NICE",
  "SYS_RESOURCE",
  "SYS_TIME",
  "SYS_TTY_CONFIG",
  "MKNOD",
  "LEASE",
  "AUDIT_WRITE",
  "AUDIT_CONTROL",
  "SETFCAP",
  "MAC_OVERRIDE",
  "MAC_ADMIN",
  "SYSLOG",
  "WAKE_ALARM",
  "BLOCK_SUSPEND",
  "AUDIT_READ",
  "PERFMON",
  "BPF",
  "CHECKPOINT_RESTORE",
] as const;
export type Capability = (typeof CAPABILITIES)[number];

/** The bounding set, and why. */
export const KEPT: Readonly<Partial<Record<Capability, string>>> = {
  CHOWN: "files of the container's own ids",
  DAC_OVERRIDE: "files of the container's own ids",
  DAC_READ_SEARCH: "files of the container's own ids; open_by_handle_at(2) asks the host's namespace",
  FOWNER: "files of the container's own ids",
  FSETID: "files of the container's own ids",
  KILL: "processes of the container",
  SETGID: "ids of the container; services that change user",
  SETUID: "ids of the container; services that change user",
  SETPCAP: "services that drop capabilities (systemd's CapabilityBoundingSet=)",
  NET_BIND_SERVICE: "the container's own network",
  NET_BROADCAST: "the container's own network; in the list of systemd-networkd",
  NET_ADMIN: "the container's own network",
  NET_RAW: "the container's own network: ping, dhcp",
  IPC_LOCK: "services that ask for it would not start otherwise; the limit on locked memory stays",
  IPC_OWNER: "the container's own System V objects",
  SYS_CHROOT: "nested containers, sshd",
  SYS_PTRACE: "debuggers, on processes of the container",
  SYS_ADMIN:
    "mounts, names and namespaces of the container's own; nested containers; the filter of this start",
  SYS_BOOT: "reboot(2) in a pid namespace ends the container",
  SYS_NICE: "priorities of the container's processes",
  SYS_RESOURCE: "user namespace's own limits; rlimits and quotas ask the host's namespace",
  MKNOD: "the kernel refuses it here; the emulation of allowed devices asks for it",
  AUDIT_WRITE: "login programs insist on it; the kernel's audit does not listen here",
  SETFCAP: "dpkg; mapping root into a nested user namespace",
};

const [PR_SET_SECUREBITS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL] = [28, 24, 47, 4]; // linux/prctl.h
const CAPABILITY_VERSION_3 = 0x20080522; // linux/capability.h

/** What the configuration adds to KEPT, as its fields say. The kernel does not count it; cmld does (seccomp.ts). */
export interface Grant {
  readonly time: boolean;
  readonly modules: boolean;
}
const extra = ({ time, modules }: Grant): Capability[] => [
  ...(time ? (["SYS_TIME"] as const) : []),
  ...(modules ? (["SYS_MODULE"] as const) : []),
];

const header: Data = {
  data: new Struct(8).u32(CAPABILITY_VERSION_3).u32(0).bytes,
  text: "{version=3, pid=0}",
};

/** struct __user_cap_data_struct[2]: effective and permitted as given, nothing inheritable. */
function sets(kept: readonly number[]): Data {
  const mask = kept.reduce((m, n) => m | (1n << BigInt(n)), 0n);
  const [low, high] = [Number(mask & 0xffffffffn), Number(mask >> 32n)];
  return {
    data: new Struct(24).u32(low).u32(low).u32(0).u32(high).u32(high).u32(0).bytes,
    text: `{effective=permitted=0x${mask.toString(16)}, inheritable=0}`,
  };
}

const KEYCTL_JOIN_SESSION_KEYRING = 1; // linux/keyctl.h

/** Take from the bounding set all but these; what this kernel does not know cannot be had either: EINVAL. */
export const bounded = (kept: ReadonlySet<string>): Op[] =>
  CAPABILITIES.flatMap((name, n) =>
    kept.has(name) ? [] : [{ ...prctl(PR_CAPBSET_DROP, n), allow: EINVAL }],
  );

/** The calling process, which is root in the container's user namespace, and all that it will start: bounded, and
 * without the daemon's keys. */
export function capsOps(grant: Grant): Op[] {
  const kept = new Set<string>([...Object.keys(KEPT), ...extra(grant)]);
  const numbers = CAPABILITIES.flatMap((name, n) => (kept.has(name) ? [n] : []));
  return [
    prctl(PR_SET_SECUREBITS, 0),
    ...bounded(kept),
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL),
    { call: "capset", args: [header, sets(numbers)] },
    { call: "keyctl", args: [KEYCTL_JOIN_SESSION_KEYRING, null], allow: ENOSYS },
  ];
}

export const grantOf = (c: Pick<ContainerConfig, "allow_system_time" | "allow_module">): Grant => ({
  time: c.allow_system_time,
  modules: c.allow_module.length > 0,
});

export const caps: Module = { name: "caps", last: (s) => capsOps(grantOf(s.config)) };
