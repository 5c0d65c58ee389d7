// masks: what of /proc and /sys a container does not see, or sees read-only: the container engines' lists.
//
// Runs right after volumes, in the new root, while nobody else is in the container's mount namespace. Everything is
// attached by descriptor beneath an opened /proc or /sys; what the kernel does not have is skipped (ENOENT). The
// /dev/null that lies over files is the host's, checked by its number: the image's could be anything. An unmasked
// /proc and /sys stay below /dev/.cml, for the kernel lets a nested user namespace mount its own only if it sees
// them whole somewhere. docs/isolation.md is printed from the tables here.
import { fstatSync } from "node:fs";
import {
  AT_FDCWD,
  close,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  mkdirat,
  mountSetattr,
  moveMount,
  O_DIRECTORY,
  O_PATH,
  OPEN_TREE_CLONE,
  openat2,
  openTree,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
} from "../../sys/calls.ts";
import { EBADF, ENOENT } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { mountSteps } from "../../sys/mounts.ts";
import { now } from "../../sys/now.ts";
import { type Op, Reg } from "../../sys/op.ts";
import { type Module, Slot } from "../module.ts";

/** Files that say something of the host, or act on it. */
export const MASKED_FILES = [
  "/proc/interrupts", // first: every kernel has it
  "/proc/kcore",
  "/proc/kallsyms",
  "/proc/keys",
  "/proc/key-users",
  "/proc/kmsg",
  "/proc/latency_stats",
  "/proc/timer_list",
  "/proc/timer_stats",
  "/proc/sched_debug",
  "/proc/sysrq-trigger",
] as const;

export const MASKED_DIRECTORIES = [
  "/sys/firmware", // first: every kernel has it
  "/proc/acpi",
  "/proc/asound",
  "/proc/scsi",
  "/sys/devices/virtual/powercap",
  "/sys/kernel/debug",
  "/sys/kernel/tracing",
  "/sys/kernel/security",
  "/sys/fs/pstore",
  "/sys/fs/bpf",
] as const;

export const READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"] as const;
/** Beneath a read-only tree, but the container's own. */
const OWN_NETWORK = "/proc/sys/net";

const NULL_DEVICE = 0x103; // char 1:3, Documentation/admin-guide/devices.txt
const LOCKED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
/** Where /proc and /sys can be seen whole, relative to the root. */
const WHOLE = "dev/.cml";

const [PROC, SYS, MASK, FS, COPY, NET] = [0, 1, 2, 3, 4, 5].map((n) => new Reg(n)) as [
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
];

const S_IFMT = 0o170000;
const S_IFCHR = 0o020000;
const nulls = new Slot<Fd>();

/** "/proc/bus" → the register that has /proc open, and "bus". */
const beneath = (path: string): [Reg, string] =>
  path.startsWith("/proc/") ? [PROC, path.slice(6)] : [SYS, path.slice(5)];

const openTop = (name: string, save: Reg): Op =>
  openat2(AT_FDCWD, name, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, 0, save);

const attach = (from: number | Reg, path: string): Op => moveMount(from, ...beneath(path));
/** A mount of what is at `path` now, attached nowhere yet. */
const copyOf = (path: string, save: Reg): Op => openTree(...beneath(path), OPEN_TREE_CLONE, save);

/** Lay the mount `from` over every path. A mount can be attached once, and copied once it is attached: so the first
 * path must be one that every kernel has, the others are skipped where they are missing. */
const coverAll = (from: number | Reg, [first, ...others]: readonly [string, ...string[]]): Op[] => [
  attach(from, first),
  ...others.flatMap((path): Op[] => [copyOf(first, COPY), { ...attach(COPY, path), allow: ENOENT }]),
];

/** Where the path is missing there is no copy, and no descriptor to use. */
const readOnly = (path: string): Op[] => [
  { ...copyOf(path, COPY), allow: ENOENT },
  { ...mountSetattr(COPY, MOUNT_ATTR_RDONLY), allow: EBADF },
  { ...attach(COPY, path), allow: EBADF },
];

const whole = (name: string): Op[] => [
  mkdirat(AT_FDCWD, `${WHOLE}/${name}`, 0o755),
  openTree(AT_FDCWD, name, OPEN_TREE_CLONE, COPY),
  moveMount(COPY, AT_FDCWD, `${WHOLE}/${name}`),
];

export const masks: Module = {
  name: "masks",
  prepare(s) {
    const fd = s.owned.use(new Fd(now(openTree(AT_FDCWD, "/dev/null", OPEN_TREE_CLONE))));
    const { mode, rdev } = fstatSync(fd.n);
    if ((mode & S_IFMT) !== S_IFCHR || rdev !== NULL_DEVICE)
      throw new Error("/dev/null of this machine is not character device 1:3");
    nulls.set(s, fd);
  },
  child: (s) => [
    mkdirat(AT_FDCWD, WHOLE, 0o700),
    ...whole("proc"),
    ...whole("sys"),
    openTop("proc", PROC),
    openTop("sys", SYS),
    ...coverAll(nulls.need(s).n, MASKED_FILES),
    ...mountSteps("tmpfs", "mode=0555,size=4k,nr_inodes=1", MOUNT_ATTR_RDONLY | LOCKED, FS, MASK),
    ...coverAll(MASK, MASKED_DIRECTORIES),
    ...(s.config.netns ? [copyOf(OWN_NETWORK, NET)] : []),
    ...READ_ONLY.flatMap(readOnly),
    ...(s.config.netns ? [attach(NET, OWN_NETWORK)] : []),
    close(PROC),
    close(SYS),
  ],
  // Attached by now; the container's mount is not to be held open from outside.
  ready: (s) => nulls.need(s).close(),
};
