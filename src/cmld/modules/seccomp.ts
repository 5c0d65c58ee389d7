// seccomp: which system calls a container may make. What is not allowed by name is refused.
//
// The list is that of the container engines' default profiles, plus what systemd as init and nested containers need:
// mounts, namespaces and pivot_root are allowed, because the container has a user namespace of its own and the kernel
// judges them by it. EPERM answers a call that is known and refused; ENOSYS one that programs try first and can do
// without (new mount API, io_uring, userfaultfd) and every number that is newer than this list, so that a C library
// falls back as on an older kernel. docs/seccomp.md is printed from the tables here.
//
// The filter is loaded last, by root in its user namespace; a filter stays for ever and is inherited. Some calls it
// leaves to cmld, which answers them (seccomp/supervisor.ts): what a container may do and the kernel would not let it.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  type Arch,
  AUDIT_ARCH,
  compile,
  errnoVerdict,
  fprog,
  type Instruction,
  RET_ALLOW,
  RET_USER_NOTIF,
  type Test,
  type Verdict,
} from "../../sys/bpf.ts";
import { ENOENT, ENOSYS, EPERM, isErrno } from "../../sys/error.ts";
import { type Ends, loadFilter } from "../../sys/notify.ts";
import { NR } from "../../sys/numbers.ts";
import type { Call, Data, Op } from "../../sys/op.ts";
import type { Device } from "../devices/rules.ts";
import { type Module, type Process, Slot, type Start } from "../module.ts";
import { groupOf } from "./cgroups.ts";
import { accessFor } from "./devices.ts";
import { namespaceOf } from "./seccomp/caller.ts";
import { RTC_SETS } from "./seccomp/clock.ts";
import { signedModulesOnly } from "./seccomp/load.ts";
import { Channel, type Supervision, Supervisor } from "./seccomp/supervisor.ts";

export interface Group {
  readonly title: string;
  readonly calls: readonly Call[];
}

const words = (text: string): Call[] => text.trim().split(/\s+/) as Call[];

/** Allowed whatever the arguments. */
export const ALLOWED: readonly Group[] = [
  {
    title: "reading and writing",
    calls:
      words(`read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup
      dup2 dup3 fcntl flock fsync fdatasync sync syncfs sync_file_range fadvise64 readahead fallocate truncate ftruncate
      sendfile splice tee vmsplice copy_file_range io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel`),
  },
  {
    title: "files",
    calls:
      words(`open openat openat2 creat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2
      getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat
      symlink symlinkat readlink readlinkat chmod fchmod fchmodat chown fchown lchown fchownat umask utime utimes
      futimesat utimensat setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
      flistxattr removexattr lremovexattr fremovexattr name_to_handle_at inotify_init inotify_init1 inotify_add_watch
      inotify_rm_watch landlock_create_ruleset landlock_add_rule landlock_restrict_self`),
  },
  {
    title: "memory",
    calls:
      words(`mmap mprotect munmap mremap msync mincore madvise process_madvise brk mlock mlock2 munlock mlockall
      munlockall memfd_create memfd_secret pkey_mprotect pkey_alloc pkey_free remap_file_pages membarrier mbind
      get_mempolicy set_mempolicy set_mempolicy_home_node shmget shmat shmctl shmdt`),
  },
  {
    title: "waiting and time",
    calls:
      words(`poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
      eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime timer_create timer_settime
      timer_gettime timer_getoverrun timer_delete getitimer setitimer alarm pause nanosleep clock_nanosleep
      clock_gettime clock_getres gettimeofday time times adjtimex clock_adjtime futex futex_waitv get_robust_list
      set_robust_list`),
  },
  {
    title: "messages",
    calls:
      words(`pipe pipe2 connect accept accept4 bind listen sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
      shutdown getsockname getpeername getsockopt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
      mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr`),
  },
  {
    title: "processes and signals",
    calls:
      words(`clone clone3 fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open
      pidfd_send_signal pidfd_getfd process_mrelease rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
      rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack restart_syscall set_tid_address
      gettid getpid getppid getpgid setpgid getpgrp getsid setsid sched_yield sched_setaffinity sched_getaffinity
      sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_setattr sched_getattr
      sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set
      getrlimit setrlimit prlimit64 getrusage getcpu rseq prctl arch_prctl set_thread_area get_thread_area modify_ldt
      ptrace process_vm_readv process_vm_writev kcmp uname sysinfo getrandom seccomp`),
  },
  {
    title: "ids and capabilities",
    calls:
      words(`getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid
      setresgid setfsuid setfsgid setgroups capget capset`),
  },
  {
    title: "the container's own system, judged by the kernel in its user namespace",
    calls: words(`umount2 pivot_root chroot unshare setns sethostname setdomainname reboot vhangup`),
  },
];

// linux/stat.h, linux/mount.h
const [S_IFMT, S_IFBLK, S_IFCHR] = [0o170000, 0o060000, 0o020000];
const [MS_MGC_VAL, MS_MGC_MSK] = [0xc0ed0000, 0xffff0000];
/** MS_NODEV, MS_REMOUNT, MS_BIND, MS_MOVE; and MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED. */
const [NATIVE_MOUNT, PROPAGATION] = [4 | 32 | 4096 | 8192, (1 << 17) | (1 << 18) | (1 << 19) | (1 << 20)];

/** A device, but for 0:0, the whiteout of an overlay, which anybody may make. */
const node = (mode: number): Verdict => ({
  when: { arg: mode, mask: S_IFMT, in: [S_IFBLK] },
  yes: RET_USER_NOTIF,
  no: {
    when: { arg: mode, mask: S_IFMT, in: [S_IFCHR] },
    yes: { when: { arg: mode + 1, in: [0] }, yes: RET_ALLOW, no: RET_USER_NOTIF },
    no: RET_ALLOW,
  },
});

const newMount = (native: number): Verdict => ({
  when: { arg: 3, mask: native, in: [0] },
  yes: RET_USER_NOTIF,
  no: RET_ALLOW,
});

export interface Left {
  readonly calls: readonly Call[];
  readonly verdict: Verdict;
  /** Where it is left to cmld; without: everywhere. Elsewhere the other tables decide. */
  readonly where?: keyof Supervision;
  readonly text: string;
}

const RTC_REQUESTS = Object.values(RTC_SETS).map(([request]) => request);

/** Left to cmld. */
export const LEFT: readonly Left[] = [
  {
    calls: ["mknod"],
    verdict: node(1),
    text: "of a device; fifos, sockets, files and the whiteout 0:0 are the kernel's",
  },
  { calls: ["mknodat"], verdict: node(2), text: "as mknod" },
  {
    calls: ["mount"],
    verdict: {
      when: { arg: 3, mask: MS_MGC_MSK, in: [MS_MGC_VAL] },
      yes: newMount(NATIVE_MOUNT),
      no: newMount(NATIVE_MOUNT | PROPAGATION),
    },
    text: "of a file system, without nodev; bind, move, remount and propagation are the kernel's",
  },
  {
    calls: ["sysinfo"],
    verdict: RET_USER_NOTIF,
    where: "memory",
    text: "in a container with a limit on memory",
  },
  {
    calls: ["clock_settime", "settimeofday", "clock_adjtime", "adjtimex"],
    verdict: RET_USER_NOTIF,
    where: "time",
    text: "with `allow_system_time`",
  },
  {
    calls: ["finit_module"],
    verdict: RET_USER_NOTIF,
    where: "modules",
    text: "with `allow_module`, where the kernel loads signed modules only",
  },
];

/** Refused as if the kernel had no such call. */
export const ABSENT: readonly Group[] = [
  {
    title: "new mount API",
    calls: words("open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"),
  },
  { title: "io_uring", calls: words("io_uring_setup io_uring_enter io_uring_register") },
  { title: "page faults handled by a program", calls: words("userfaultfd") },
];

export interface Rule {
  readonly calls: readonly Call[];
  readonly when: Test;
  /** And this as well. */
  readonly also?: Test;
  /** true: allowed then, refused otherwise; false: the reverse. */
  readonly allow: boolean;
  readonly errno: number;
  readonly text: string;
}

const [EAFNOSUPPORT, ENOPROTOOPT] = [97, 92]; // asm-generic/errno.h
/** linux/socket.h: UNIX, INET, INET6, NETLINK, PACKET, CAN. */
const FAMILIES = [1, 2, 10, 16, 17, 29];
/** linux/personality.h: PER_LINUX, PER_LINUX32, UNAME26, both, and the question what it is. */
const PERSONALITIES = [0, 0x8, 0x20000, 0x20008, 0xffffffff];
/** asm-generic/ioctls.h: TIOCSTI, TIOCLINUX. */
const TERMINAL_INPUT = [0x5412, 0x541c];

/** linux/socket.h, linux/if_packet.h: PACKET_RX_RING, PACKET_TX_RING. */
const [SOL_PACKET, RINGS] = [263, [5, 13]];

/** linux/keyctl.h: JOIN_SESSION_KEYRING, SETPERM, DESCRIBE. */
const KEYRING = [1, 5, 6];

/** Allowed for some arguments. */
export const RULES: readonly Rule[] = [
  {
    calls: ["socket", "socketpair"],
    when: { arg: 0, in: FAMILIES },
    allow: true,
    errno: EAFNOSUPPORT,
    text: "address families UNIX, INET, INET6, NETLINK, PACKET and CAN; others do not exist (EAFNOSUPPORT): VSOCK leads to the host of a virtual machine, the rest is seldom used kernel code",
  },
  {
    calls: ["personality"],
    when: { arg: 0, in: PERSONALITIES },
    allow: true,
    errno: EPERM,
    text: "PER_LINUX, PER_LINUX32, UNAME26 and asking; others switch protections of the address space off",
  },
  {
    calls: ["keyctl"],
    when: { arg: 0, in: KEYRING },
    allow: true,
    errno: EPERM,
    text: "a new, empty session keyring (JOIN_SESSION_KEYRING, SETPERM, DESCRIBE), without which runc and crun start nothing; no key can be added, found or read",
  },
  {
    calls: ["ioctl"],
    when: { arg: 1, in: TERMINAL_INPUT },
    allow: false,
    errno: EPERM,
    text: "all but TIOCSTI and TIOCLINUX, which type into a terminal that others read",
  },
  {
    calls: ["setsockopt"],
    when: { arg: 1, in: [SOL_PACKET] },
    also: { arg: 2, in: RINGS },
    allow: false,
    errno: ENOPROTOOPT,
    text: "all but PACKET_RX_RING and PACKET_TX_RING, whose memory, 4 GiB a socket, the kernel counts to nobody; libpcap takes ENOPROTOOPT for a kernel without them",
  },
];

const NOTHING: Supervision = { time: false, modules: false, memory: false };

/** The verdict on every call that has a name; a number without one is ENOSYS, x32's (from 0x40000000) among them. */
export function policy(arch: Arch, supervision = NOTHING): Map<number, Verdict> {
  const verdicts = new Map<number, Verdict>();
  const set = (call: Call, verdict: Verdict): void => {
    const n = NR[call][arch === "arm64" ? 1 : 0];
    if (n !== null) verdicts.set(n, verdict);
  };
  for (const call of Object.keys(NR) as Call[]) set(call, errnoVerdict(EPERM));
  for (const { calls } of ALLOWED) for (const call of calls) set(call, RET_ALLOW);
  for (const { calls } of ABSENT) for (const call of calls) set(call, errnoVerdict(ENOSYS));
  for (const { calls, when, also, allow, errno } of RULES) {
    const [yes, no] = allow ? [RET_ALLOW, errnoVerdict(errno)] : [errnoVerdict(errno), RET_ALLOW];
    const verdict: Verdict = { when, yes: also ? { when: also, yes, no } : yes, no };
    for (const call of calls) set(call, verdict);
  }
  for (const { calls, verdict, where } of LEFT)
    if (where === undefined || supervision[where]) for (const call of calls) set(call, verdict);
  if (supervision.time)
    set("ioctl", {
      when: { arg: 1, in: RTC_REQUESTS },
      yes: RET_USER_NOTIF,
      no: { when: { arg: 1, in: TERMINAL_INPUT }, yes: errnoVerdict(EPERM), no: RET_ALLOW },
    });
  return verdicts;
}

export const filter = (arch: Arch, supervision = NOTHING): Instruction[] =>
  compile(AUDIT_ARCH[arch], policy(arch, supervision), errnoVerdict(ENOSYS));

const filters = new Map<string, Data>();

/** Load the filter into the calling process, which is root in its user namespace, and all that it will start.
 * `ends`: where its listener goes; without one what is left to cmld is ENOSYS. */
export function filterOps(supervision = NOTHING, ends?: Ends): Op[] {
  const key = JSON.stringify(supervision);
  const known = filters.get(key) ?? fprog(filter(process.arch as Arch, supervision));
  filters.set(key, known);
  return loadFilter(known, ends);
}

/** What the container's configuration and the kernel give cmld to do. */
function supervisionOf(s: Pick<Start, "config" | "host" | "uuid">): Supervision {
  const { allow_system_time: time, allow_module } = s.config;
  return { time, modules: allow_module.length > 0 && signedModulesOnly(), memory: hasLimit(groupOf(s)) };
}

function hasLimit(group: string): boolean {
  try {
    return readFileSync(join(group, "memory.max"), "latin1").trim() !== "max";
  } catch (e) {
    if (isErrno(e, ENOENT)) return false;
    throw e;
  }
}

interface Prepared {
  readonly supervision: Supervision;
  readonly channel: Channel;
}
const prepared = new Slot<Prepared>();

/** Calls under way: seccomp/underway.ts. */
const fileOf = (s: Start): string => join(s.host.run, "calls", s.uuid);

function supervise(s: Start, p: Process, supervision: Supervision): Supervisor {
  const container = {
    name: s.name,
    uidStart: s.uidStart,
    namespace: namespaceOf(p.pid),
    group: groupOf(s),
    modules: s.config.allow_module,
    access: (device: Device) => accessFor(s.uuid, device),
    log: (line: string) => s.log(line),
  };
  return s.owned.use(new Supervisor(s.uuid, supervision, container, s, fileOf(s)));
}

export const seccomp: Module = {
  name: "seccomp",
  prepare(s) {
    const supervision = supervisionOf(s);
    if (s.config.allow_module.length > 0 && !supervision.modules)
      s.log("allow_module: this kernel would load unsigned modules, too: the container loads none");
    prepared.set(s, { supervision, channel: s.owned.use(new Channel()) });
  },
  last(s) {
    const { supervision, channel } = prepared.need(s);
    return filterOps(supervision, channel.ends);
  },
  ready(s, p) {
    const { supervision, channel } = prepared.need(s);
    const supervisor = s.owned.acquire({ kind: "file", path: fileOf(s) }, () => supervise(s, p, supervision));
    supervisor.keep(channel);
  },
  started(s, p) {
    const made = prepared.get(s);
    if (made) Supervisor.of(s.uuid)!.take(made.channel);
    else if (supervise(s, p, supervisionOf(s)).adopt() === 0)
      s.log(
        "nobody has kept what it leaves to cmld: it can make no node and mount nothing until it starts again",
      );
  },
};
