// seccomp: which system calls a container may make. What is not allowed by name is refused.
//
// The list is that of the container engines' default profiles, plus what systemd as init and nested containers need:
// mounts, namespaces and pivot_root are allowed, because the container has a user namespace of its own and the kernel
// judges them by it. EPERM answers a call that is known and refused; ENOSYS one that programs try first and can do
// without (new mount API, io_uring, userfaultfd) and every number that is newer than this list, so that a C library
// falls back as on an older kernel. docs/seccomp.md is printed from the tables here.
//
// The filter is loaded last, by root in its user namespace; a filter stays for ever and is inherited.
import {
  compile,
  errnoVerdict,
  fprog,
  type Instruction,
  RET_ALLOW,
  type Test,
  type Verdict,
} from "../../sys/bpf.ts";
import { ENOSYS, EPERM } from "../../sys/error.ts";
import { NR } from "../../sys/numbers.ts";
import type { Call, Op } from "../../sys/op.ts";
import type { Module } from "../module.ts";

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
      futimesat utimensat mknod mknodat setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
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
      shutdown getsockname getpeername setsockopt getsockopt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
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
    calls: words(`mount umount2 pivot_root chroot unshare setns sethostname setdomainname reboot vhangup`),
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
  /** true: allowed then, refused otherwise; false: the reverse. */
  readonly allow: boolean;
  readonly errno: number;
  readonly text: string;
}

const EAFNOSUPPORT = 97;
/** linux/socket.h: UNIX, INET, INET6, NETLINK, PACKET, CAN. */
const FAMILIES = [1, 2, 10, 16, 17, 29];
/** linux/personality.h: PER_LINUX, PER_LINUX32, UNAME26, both, and the question what it is. */
const PERSONALITIES = [0, 0x8, 0x20000, 0x20008, 0xffffffff];
const TIOCSTI = 0x5412; // asm-generic/ioctls.h
const TIOCLINUX = 0x541c;

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
    when: { arg: 1, in: [TIOCSTI, TIOCLINUX] },
    allow: false,
    errno: EPERM,
    text: "all but TIOCSTI and TIOCLINUX, which type into a terminal that others read",
  },
];

type Arch = "x64" | "arm64";
/** linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64. */
export const AUDIT_ARCH: Readonly<Record<Arch, number>> = { x64: 0xc000003e, arm64: 0xc00000b7 };

/** The verdict on every call that has a name; a number without one is ENOSYS, x32's (from 0x40000000) among them. */
export function policy(arch: Arch): Map<number, Verdict> {
  const verdicts = new Map<number, Verdict>();
  const set = (call: Call, verdict: Verdict): void => {
    const n = NR[call][arch === "arm64" ? 1 : 0];
    if (n !== null) verdicts.set(n, verdict);
  };
  for (const call of Object.keys(NR) as Call[]) set(call, errnoVerdict(EPERM));
  for (const { calls } of ALLOWED) for (const call of calls) set(call, RET_ALLOW);
  for (const { calls } of ABSENT) for (const call of calls) set(call, errnoVerdict(ENOSYS));
  for (const { calls, when, allow, errno } of RULES) {
    const refused = errnoVerdict(errno);
    const verdict: Verdict = { when, yes: allow ? RET_ALLOW : refused, no: allow ? refused : RET_ALLOW };
    for (const call of calls) set(call, verdict);
  }
  return verdicts;
}

export const filter = (arch: Arch): Instruction[] =>
  compile(AUDIT_ARCH[arch], policy(arch), errnoVerdict(ENOSYS));

const SECCOMP_SET_MODE_FILTER = 1; // linux/seccomp.h
const own = fprog(filter(process.arch as Arch));

/** Load the filter into the calling process, which is root in its user namespace, and all that it will start. */
export const filterOps = (): Op[] => [{ call: "seccomp", args: [SECCOMP_SET_MODE_FILTER, 0, own] }];

export const seccomp: Module = { name: "seccomp", last: () => filterOps() };
