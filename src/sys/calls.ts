// The system calls we use, one line each, arguments in the manual's order. No constructor does anything: it
// describes. Constants carry the kernel header they come from.
import { mem, Struct } from "./mem.ts";
import type { Arg, Data, Op, Reg } from "./op.ts";

const EEXIST = 17; // asm-generic/errno-base.h

/** A descriptor's number, or the register that will hold it. */
export type At = number | Reg;

export const AT_FDCWD = -100; // linux/fcntl.h
export const AT_EMPTY_PATH = 0x1000;
export const AT_RECURSIVE = 0x8000;
export const AT_SYMLINK_NOFOLLOW = 0x100;
export const AT_REMOVEDIR = 0x200;

// asm-generic/fcntl.h; O_DIRECTORY and O_NOFOLLOW differ on arm64 (asm/fcntl.h).
const arm = process.arch === "arm64";
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_NOCTTY = 0o400;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_DIRECTORY = arm ? 0o40000 : 0o200000;
export const O_NOFOLLOW = arm ? 0o100000 : 0o400000;
export const O_CLOEXEC = 0o2000000;
export const O_PATH = 0o10000000;

// linux/mount.h
export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
export const MS_REMOUNT = 32;
export const MS_NOATIME = 1024;
export const MS_BIND = 4096;
export const MS_REC = 16384;
export const MS_PRIVATE = 1 << 18;
export const MS_SLAVE = 1 << 19;
export const MS_SHARED = 1 << 20;
export const MNT_DETACH = 2;
export const OPEN_TREE_CLONE = 1;
export const MOVE_MOUNT_F_EMPTY_PATH = 4;
export const MOVE_MOUNT_T_EMPTY_PATH = 0x40;
export const MOUNT_ATTR_RDONLY = 1;
export const MOUNT_ATTR_NOSUID = 2;
export const MOUNT_ATTR_NODEV = 4;
export const MOUNT_ATTR_NOEXEC = 8;
export const MOUNT_ATTR_NOATIME = 0x10;
export const MOUNT_ATTR_IDMAP = 0x100000;
export const FSCONFIG_SET_FLAG = 0;
export const FSCONFIG_SET_STRING = 1;
export const FSCONFIG_CMD_CREATE = 6;

// linux/openat2.h
export const RESOLVE_NO_XDEV = 1;
export const RESOLVE_NO_MAGICLINKS = 2;
export const RESOLVE_NO_SYMLINKS = 4;
export const RESOLVE_BENEATH = 8;
export const RESOLVE_IN_ROOT = 0x10;

// linux/sched.h
export const CLONE_VM = 0x100n;
export const CLONE_FILES = 0x400n;
export const CLONE_VFORK = 0x4000n;
export const CLONE_CLEAR_SIGHAND = 0x100000000n;
export const CLONE_NEWTIME = 0x80n;
export const CLONE_NEWNS = 0x20000n;
export const CLONE_NEWCGROUP = 0x2000000n;
export const CLONE_NEWUTS = 0x4000000n;
export const CLONE_NEWIPC = 0x8000000n;
export const CLONE_NEWUSER = 0x10000000n;
export const CLONE_NEWPID = 0x20000000n;
export const CLONE_NEWNET = 0x40000000n;

// linux/net.h, linux/socket.h
export const AF_UNIX = 1;
export const AF_NETLINK = 16;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_SEQPACKET = 5;
export const SOCK_NONBLOCK = O_NONBLOCK;
export const SOCK_CLOEXEC = O_CLOEXEC;
export const SOL_SOCKET = 1;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_CMSG_CLOEXEC = 0x40000000;

// files
export const openat = (dir: At, path: string, flags: number, mode = 0, save?: Reg): Op => ({
  call: "openat",
  args: [dir, path, flags | O_CLOEXEC, mode],
  ...(save && { save }),
});
/** openat2(2): `resolve` confines what a hostile tree can do. */
export const openat2 = (dir: At, path: string, flags: number, resolve: number, mode = 0, save?: Reg): Op => ({
  call: "openat2",
  args: [
    dir,
    path,
    {
      data: new Struct(24)
        .u64(flags | O_CLOEXEC)
        .u64(mode)
        .u64(resolve).bytes,
      text: `{flags=${flags | O_CLOEXEC}, mode=${mode}, resolve=${resolve}}`,
    },
    24,
  ],
  ...(save && { save }),
});
export const close = (fd: At): Op => ({ call: "close", args: [fd] });
const CLOSE_RANGE_CLOEXEC = 4; // linux/close_range.h
/** Everything from descriptor `first` on closes at execve. */
export const cloexecFrom = (first: number): Op => ({
  call: "close_range",
  args: [first, 0xffffffff, CLOSE_RANGE_CLOEXEC],
});
/** Close everything except standard input and output and `kept`, now: no path that comes after, not even a link to
 * /proc/self/fd, can reach what was open. */
export function closeAllBut(kept: readonly number[]): Op[] {
  const ops: Op[] = [];
  const range = (first: number, last: number) => ops.push({ call: "close_range", args: [first, last, 0] });
  let from = 3;
  for (const fd of [...kept].sort((a, b) => a - b)) {
    if (fd > from) range(from, fd - 1);
    from = fd + 1;
  }
  range(from, 0xffffffff);
  return ops;
}
export const read = (fd: At, into: Uint8Array): Op => ({ call: "read", args: [fd, into, into.length] });
export const write = (fd: At, bytes: Uint8Array): Op => ({ call: "write", args: [fd, bytes, bytes.length] });
/** Write a short text; succeeds only if all of it was taken. */
export const writeText = (fd: At, text: string): Op => ({
  call: "write",
  args: [fd, text, Buffer.byteLength(text)],
  want: Buffer.byteLength(text),
});
/** What was read before: `length` is the register with the number of bytes. */
export const writeRead = (fd: At, bytes: Uint8Array, length: Reg): Op => ({
  call: "write",
  args: [fd, bytes, length],
});
export const pread64 = (fd: At, into: Uint8Array, at: bigint | number, save?: Reg): Op => ({
  call: "pread64",
  args: [fd, into, into.length, at],
  ...(save && { save }),
});
/** All of `bytes` or an error. */
export const pwrite64 = (fd: At, bytes: Uint8Array, at: bigint | number): Op => ({
  call: "pwrite64",
  args: [fd, bytes, bytes.length, at],
  want: bytes.length,
});
export const pipe2 = (into: Uint8Array, flags: number): Op => ({ call: "pipe2", args: [into, flags] });
export const dup3 = (from: At, to: At, flags = 0): Op => ({ call: "dup3", args: [from, to, flags] });
export const F_DUPFD_CLOEXEC = 1030; // linux/fcntl.h
export const fcntl = (fd: At, command: number, value: number): Op => ({
  call: "fcntl",
  args: [fd, command, value],
});
export const ioctl = (fd: At, request: number, arg: Arg): Op => ({ call: "ioctl", args: [fd, request, arg] });
/** A directory that may be there already. */
export const mkdirat = (dir: At, path: string, mode: number): Op => ({
  call: "mkdirat",
  args: [dir, path, mode],
  allow: EEXIST,
});
export const mkdir = (path: string, mode: number): Op => mkdirat(AT_FDCWD, path, mode);
export const mknodat = (dir: At, path: string, mode: number, device: bigint | number): Op => ({
  call: "mknodat",
  args: [dir, path, mode, device],
});
export const symlinkat = (target: string, dir: At, path: string): Op => ({
  call: "symlinkat",
  args: [target, dir, path],
});
export const unlinkat = (dir: At, path: string, flags = 0): Op => ({
  call: "unlinkat",
  args: [dir, path, flags],
});
export const fchownat = (
  dir: At,
  path: string,
  uid: number,
  gid: number,
  flags = AT_SYMLINK_NOFOLLOW,
): Op => ({
  call: "fchownat",
  args: [dir, path, uid, gid, flags],
});
export const fchown = (fd: At, uid: number, gid: number): Op => ({ call: "fchown", args: [fd, uid, gid] });
export const fchmodat = (dir: At, path: string, mode: number): Op => ({
  call: "fchmodat",
  args: [dir, path, mode],
});
export const chdir = (path: string): Op => ({ call: "chdir", args: [path] });
export const chroot = (path: string): Op => ({ call: "chroot", args: [path] });
export const fchdir = (fd: At): Op => ({ call: "fchdir", args: [fd] });
export const umask = (mask: number): Op => ({ call: "umask", args: [mask] });

// mounts
export const mount = (source: string, target: string, type: string, flags: number, data = ""): Op => ({
  call: "mount",
  args: [source, target, type, flags, data === "" ? null : data],
});
export const umount2 = (target: string, flags: number): Op => ({ call: "umount2", args: [target, flags] });
export const pivotRoot = (newRoot: string, putOld: string): Op => ({
  call: "pivot_root",
  args: [newRoot, putOld],
});
export const openTree = (dir: At, path: string, flags: number, save?: Reg): Op => ({
  call: "open_tree",
  args: [dir, path, flags | O_CLOEXEC],
  ...(save && { save }),
});
/** Attach the mount that `from` is open on (a detached one) at `path` beneath `dir`. */
export const moveMount = (from: At, dir: At, path: string): Op => ({
  call: "move_mount",
  args: [
    from,
    "",
    dir,
    path,
    path === "" ? MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH : MOVE_MOUNT_F_EMPTY_PATH,
  ],
});
const mountAttr = (set: number, clear: number, userns: number): Data => ({
  data: new Struct(32).u64(set).u64(clear).u64(0).u64(userns).bytes,
  text: `{attr_set=${set}, attr_clr=${clear}${userns > 0 ? `, userns_fd=${userns}` : ""}}`,
});
/** mount_setattr(2) on the mount at `path`, seen from `dir`. */
export const mountSetattrAt = (
  dir: At,
  path: string,
  flags: number,
  set: number,
  clear = 0,
  userns = 0,
): Op => ({
  call: "mount_setattr",
  args: [dir, path, flags, mountAttr(set, clear, userns), 32],
});
/** The same on the mount that `fd` is open on. `userns`: descriptor of a user namespace, with MOUNT_ATTR_IDMAP. */
export const mountSetattr = (fd: At, set: number, clear = 0, userns = 0, flags = AT_EMPTY_PATH): Op =>
  mountSetattrAt(fd, "", flags, set, clear, userns);
export const fsopen = (type: string, save?: Reg): Op => ({
  call: "fsopen",
  args: [type, 1],
  ...(save && { save }),
});
export const fsconfig = (
  fs: At,
  command: number,
  key: string | null,
  value: Arg = null,
  aux: At = 0,
): Op => ({
  call: "fsconfig",
  args: [fs, command, key, value, aux],
});
export const fsmount = (fs: At, attributes: number, save?: Reg): Op => ({
  call: "fsmount",
  args: [fs, 1, attributes],
  ...(save && { save }),
});

// processes
export const setpgid = (): Op => ({ call: "setpgid", args: [0, 0] });
export const setsid = (): Op => ({ call: "setsid", args: [] });
export const execve = (path: string, argv: readonly string[], env: readonly string[]): Op => ({
  call: "execve",
  args: [path, argv, env],
});
export const exit = (code: number): Op => ({ call: "exit_group", args: [code] });
export const setns = (fd: At, type: bigint | number = 0): Op => ({ call: "setns", args: [fd, type] });
export const unshare = (flags: bigint): Op => ({ call: "unshare", args: [flags] });
export const sethostname = (name: string): Op => ({
  call: "sethostname",
  args: [name, Buffer.byteLength(name)],
});
export const setresuid = (uid: number): Op => ({ call: "setresuid", args: [uid, uid, uid] });
export const setresgid = (gid: number): Op => ({ call: "setresgid", args: [gid, gid, gid] });
export const setgroups = (groups: readonly number[] = []): Op => ({
  call: "setgroups",
  args: [
    groups.length,
    groups.length === 0
      ? null
      : {
          data: groups.reduce((s, g) => s.u32(g), new Struct(4 * groups.length)).bytes,
          text: `[${groups.join(" ")}]`,
        },
  ],
});
export const prctl = (option: number, a: Arg = 0, b: Arg = 0, c: Arg = 0, d: Arg = 0): Op => ({
  call: "prctl",
  args: [option, a, b, c, d],
});
export const pidfdOpen = (pid: number): Op => ({ call: "pidfd_open", args: [pid, 0] });
export const pidfdSendSignal = (pidfd: At, signal: number): Op => ({
  call: "pidfd_send_signal",
  args: [pidfd, signal, null, 0],
});
export const pidfdGetfd = (pidfd: At, fd: number): Op => ({ call: "pidfd_getfd", args: [pidfd, fd, 0] });

const SIG_SETMASK = 2; // asm-generic/signal-defs.h
/** Unblock every signal and give SIGPIPE and SIGXFSZ, which the runtime ignores, their default action back:
 * the first thing a child does, for what it executes inherits both. */
export const resetSignals = (): Op[] => [
  { call: "rt_sigprocmask", args: [SIG_SETMASK, { data: new Uint8Array(8), text: "[]" }, null, 8] },
  ...[13, 25].map(
    (signal): Op => ({
      call: "rt_sigaction",
      args: [signal, { data: new Uint8Array(32), text: "SIG_DFL" }, null, 8],
    }),
  ),
];

// sockets
export const socket = (family: number, type: number, protocol = 0, save?: Reg): Op => ({
  call: "socket",
  args: [family, type | SOCK_CLOEXEC, protocol],
  ...(save && { save }),
});
export const socketpair = (type: number, into: Uint8Array): Op => ({
  call: "socketpair",
  args: [AF_UNIX, type | SOCK_CLOEXEC, 0, into],
});
/** sockaddr_un (unix(7)): at most 107 bytes of path. */
export function unixAddress(path: string): Data {
  const bytes = Buffer.from(path);
  if (bytes.length > 107) throw new Error(`socket path of ${bytes.length} bytes, at most 107: ${path}`);
  return { data: new Struct(2 + bytes.length + 1).u16(AF_UNIX).raw(bytes).bytes, text: JSON.stringify(path) };
}
export function bindUnix(fd: At, path: string): Op {
  const address = unixAddress(path);
  return { call: "bind", args: [fd, address, address.data.length] };
}
export function connectUnix(fd: At, path: string): Op {
  const address = unixAddress(path);
  return { call: "connect", args: [fd, address, address.data.length] };
}
/** To the connected peer; for netlink, the kernel. All of `bytes` or an error. */
export const sendto = (fd: At, bytes: Uint8Array, flags: number): Op => ({
  call: "sendto",
  args: [fd, bytes, bytes.length, flags, null, 0],
  want: bytes.length,
});
/** One datagram; the sender's address goes to `from`, its length is in and out in `fromLength`. */
export const recvfrom = (
  fd: At,
  into: Uint8Array,
  flags: number,
  from: Uint8Array | null = null,
  fromLength: Uint8Array | null = null,
): Op => ({ call: "recvfrom", args: [fd, into, into.length, flags, from, fromLength] });
/** sockaddr_nl (netlink(7)): a port chosen by the kernel, and multicast groups as bits. */
export const bindNetlink = (fd: At, groups: number): Op => ({
  call: "bind",
  args: [
    fd,
    { data: new Struct(12).u16(AF_NETLINK).skip(6).u32(groups).bytes, text: `{groups=${groups}}` },
    12,
  ],
});
export const listen = (fd: At, backlog: number): Op => ({ call: "listen", args: [fd, backlog] });
export const accept4 = (fd: At, flags = SOCK_CLOEXEC | SOCK_NONBLOCK): Op => ({
  call: "accept4",
  args: [fd, null, null, flags],
});
export const setsockopt = (fd: At, level: number, option: number, value: number): Op => ({
  call: "setsockopt",
  args: [fd, level, option, { data: new Struct(4).i32(value).bytes, text: `[${value}]` }, 4],
});

// gates between a child and its parent
/** Block until the other side writes a byte; its death reads as 0, which fails. */
export const wait = (fd: At): Op => ({ call: "read", args: [fd, mem(1), 1], want: 1 });
export const sendfile = (to: At, from: At, bytes: number): Op => ({
  call: "sendfile",
  args: [to, from, null, bytes],
});
export const signal = (fd: At): Op => ({ call: "write", args: [fd, mem(1), 1], want: 1 });

export const [RLIMIT_CORE, RLIMIT_NOFILE] = [4, 7]; // asm-generic/resource.h
/** Limits of the calling process. */
export const prlimit = (resource: number, soft: number | bigint, hard: number | bigint): Op => ({
  call: "prlimit64",
  args: [0, resource, { data: new Struct(16).u64(soft).u64(hard).bytes, text: `{${soft}, ${hard}}` }, null],
});
