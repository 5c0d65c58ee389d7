// What PID 1 does before the daemons, in this order. Most of it is system calls; what needs an eye is a function.
import {
  AF_UNIX,
  AT_FDCWD,
  close,
  ioctl,
  MS_BIND,
  MS_NODEV,
  MS_NOEXEC,
  MS_NOSUID,
  MS_SHARED,
  mkdir,
  mount,
  O_WRONLY,
  openat,
  prlimit,
  RLIMIT_CORE,
  RLIMIT_NOFILE,
  SOCK_DGRAM,
  sethostname,
  socket,
  writeText,
} from "../sys/calls.ts";
import { chain, SysError } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { Struct } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { type Op, show } from "../sys/op.ts";

export interface Phase {
  readonly name: string;
  /** Without it there is no point in going on: init says why, and the machine starts again. */
  readonly vital: boolean;
  /** Of this process, not of the machine: done again by an init that was executed again. */
  readonly own?: boolean;
  readonly ops?: readonly Op[];
  readonly run?: () => Promise<void> | void;
}

const LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC;
/** Descriptors: containers, their sockets and the store's. */
const NOFILE = 65_536;
const [MAGIC1, MAGIC2, CAD_OFF] = [0xfee1dead, 672274793, 0]; // linux/reboot.h

/** Settings below /proc/sys. One that this kernel does not have is said and skipped. */
const SETTINGS: readonly (readonly [name: string, value: string])[] = [
  ["kernel/panic", "10"], // a kernel that panics starts again
  ["kernel/core_pattern", "|/nonexistent"], // no process of the machine or a guest leaves its memory behind
  ["fs/suid_dumpable", "0"],
  // There is none. Without a path the kernel says so itself; else it starts a program for each question, and whoever asks waits.
  ["kernel/modprobe", "\n"],
  ["vm/oom_dump_tasks", "0"], // a container out of memory may have thousands of processes
  ["kernel/kptr_restrict", "1"],
  ["kernel/dmesg_restrict", "1"],
  ["kernel/unprivileged_bpf_disabled", "1"],
  ["kernel/yama/ptrace_scope", "1"],
  ["fs/protected_symlinks", "1"],
  ["fs/protected_hardlinks", "1"],
  ["fs/protected_fifos", "2"],
  ["fs/protected_regular", "2"],
  ["fs/inotify/max_user_instances", "1024"], // per container, and a guest's systemd wants some
  ["fs/inotify/max_user_watches", "65536"],
  ["fs/file-max", "9223372036854775807"], // all share it; a container's open files count as its memory
  ["net/core/wmem_max", "1048576"], // as the original
  ["net/ipv4/conf/all/rp_filter", "2"],
];

export function settings(say: (line: string) => void): void {
  for (const [name, value] of SETTINGS) {
    const path = `/proc/sys/${name}`;
    const fd = attempt(openat(AT_FDCWD, path, O_WRONLY));
    const result = fd < 0 ? fd : attempt(writeText(fd, value));
    if (fd >= 0) attempt(close(fd));
    if (result < 0) say(`init: settings: ${new SysError(-result, path).message}; skipped`);
  }
}

const [SIOCSIFFLAGS, IFF_UP, IFF_LOOPBACK] = [0x8914, 1, 8]; // linux/sockios.h, linux/if.h

function loopback(): void {
  using any = new Fd(now(socket(AF_UNIX, SOCK_DGRAM)));
  const request = new Struct(40).raw(Buffer.from("lo".padEnd(16, "\0"))).u16(IFF_UP | IFF_LOOPBACK).bytes; // struct ifreq
  now(ioctl(any.n, SIOCSIFFLAGS, request));
}

const CONTROLLERS = ["cpuset", "cpu", "io", "memory", "pids"];

function controllers(): void {
  using stack = new DisposableStack();
  for (const name of CONTROLLERS) {
    const fd = now(openat(AT_FDCWD, "/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY));
    stack.defer(() => attempt(close(fd)));
    attempt(writeText(fd, `+${name}`)); // one that the kernel lacks is missed where a limit asks for it
  }
}

/** The ground that everything else stands on, every process of ours included. */
export const ground: readonly Phase[] = [
  {
    name: "file systems",
    vital: true,
    ops: [
      mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=20%"),
      mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=20%"),
      mkdir("/dev/pts", 0o755),
      mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666"),
      mkdir("/dev/shm", 0o1777),
      mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
      mount("cgroup2", "/sys/fs/cgroup", "cgroup2", LOCKED, "nsdelegate,memory_recursiveprot"),
      // A daemon that is loaded before the data partition is mounted sees it when it comes.
      mount("/data", "/data", "none", MS_BIND),
      mount("none", "/data", "none", MS_SHARED),
      mkdir("/run/cml", 0o711),
      mkdir("/run/socket", 0o755),
    ],
  },
  { name: "limits", vital: false, ops: [prlimit(RLIMIT_CORE, 0, 0), prlimit(RLIMIT_NOFILE, NOFILE, NOFILE)] },
];

/** The machine as it is to be before anything of it is used: daemons that are started ahead load meanwhile (main.ts). */
export const machine = (say: (line: string) => void): readonly Phase[] => [
  // Ctrl-Alt-Del becomes SIGINT for PID 1 instead of an instant reset.
  {
    name: "ctrl-alt-del",
    vital: false,
    ops: [{ call: "reboot", args: [MAGIC1, MAGIC2, CAD_OFF, 0] }],
  },
  { name: "host name", vital: false, ops: [sethostname("cml")] },
  { name: "loopback", vital: false, run: loopback },
  { name: "control groups", vital: false, run: controllers },
  { name: "settings", vital: false, run: () => settings(say) },
];

/** Do the phases that are not done yet; `done` is told each, so that a crash of init does not repeat it. */
export async function boot(
  phases: readonly Phase[],
  progress: { done: ReadonlySet<string>; tell(name: string): void; say(line: string): void },
): Promise<void> {
  for (const { name, vital, own, ops = [], run } of phases) {
    if (!own && progress.done.has(name)) continue;
    try {
      ops.forEach(now);
      await run?.();
    } catch (cause) {
      if (vital) throw new Error(name, { cause });
      progress.say(`init: ${name}: ${chain(cause)}; going on`);
    }
    if (!own) progress.tell(name);
  }
}

/** The phases as text, for tests. */
export const describe = (phases: readonly Phase[]): string =>
  phases
    .flatMap(({ name, vital, ops = [] }) => [
      `${name}${vital ? " (vital)" : ""}`,
      ...ops.map((o) => `  ${show(o)}`),
    ])
    .join("\n");
