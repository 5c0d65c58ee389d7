// A daemon in a room of its own: its own user, namespaces and system calls; of the machine's files it sees the programs
// (read-only), and the folders that it is given. No network. Who starts it hands it its listening socket, so that
// nothing is lost while it is started again. Landlock says of the same files once more what may be done with them, so that
// neither a wrong owner, mount or namespace nor a way out of them is enough: docs/decisions/lsm.md.
import { lstatSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { chown, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type Arch, AUDIT_ARCH, compile, errnoVerdict, fprog, RET_ALLOW, type Verdict } from "../sys/bpf.ts";
import * as sys from "../sys/calls.ts";
import { EINVAL, ENOSYS, EPERM, SysError } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { CHANGE, type Fence, landlock, landlockAbi, READ, RUN, USE } from "../sys/landlock.ts";
import { loadFilter } from "../sys/notify.ts";
import { attempt, now } from "../sys/now.ts";
import { NR } from "../sys/numbers.ts";
import { type Call, type Op, Reg } from "../sys/op.ts";
import { SIGKILL } from "../sys/process.ts";
import { idsFrom } from "./ids.ts";
import { type Child, elsewhere, launch } from "./launch.ts";
import { ownFiles } from "./self.ts";

export interface Confinement {
  /** An id of the host that nothing else has; user and group. */
  readonly id: number;
  readonly argv: readonly string[];
  readonly env: readonly string[];
  /** Folders of the machine, at the same path inside: written to, … */
  readonly writable: readonly string[];
  /** … and only read, no programs among them. */
  readonly readable: readonly string[];
  /** Becomes descriptor 3, as sd_listen_fds(3) says. */
  readonly listening?: Fd;
  /** Standard output and error: pipes, which will belong to the daemon. */
  readonly output: number;
  readonly errors?: number;
  /** The network namespace to be in, "ours", or none at all. */
  readonly network?: Fd | "ours";
  /** Small files of its own: path and text. */
  readonly files?: readonly (readonly [path: string, text: string])[];
  /** Whether it ends with whoever started it. */
  readonly mortal: boolean;
  /** It is started before its folders are there. */
  readonly ahead?: Ahead;
}

/** For a daemon that loads before its folders are there. `writable` and `readable` are then folders that are made in the
 * room, with nothing in them but `points`, where furnish() mounts the machine's: the fence goes by what lies above a mount. */
export interface Ahead {
  /** What it waits at until then: src/run/gate.ts. */
  readonly gate: Fd;
  readonly points: readonly string[];
}

/** Where programs and libraries are on any Linux system; what a system lacks, it lacks. */
const PROGRAMS = ["/usr", "/lib", "/lib64", "/bin", "/sbin"];
const DEVICES = ["null", "zero", "full", "random", "urandom", "hwrng"];
/** What the machine says it is (spec/security.md 1.4). */
const DMI = "/sys/devices/virtual/dmi/id";

/** Everything a daemon of ours does once it runs; measured, and nothing that makes a namespace, a mount or a trace. */
const CALLS = (
  "access arch_prctl brk close close_range dup dup2 dup3 pipe epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2 execve " +
  "accept4 bind connect exit exit_group faccessat faccessat2 fallocate fchmod fchmodat fcntl fdatasync flock fstat fstatfs fsync " +
  "ftruncate futex getcwd getdents64 getegid geteuid getgid getpeername getpid getppid getrandom getsockname getsockopt gettid getuid " +
  "getitimer setitimer getpriority kill linkat listen lseek madvise membarrier memfd_create mincore mkdir mkdirat mlock mlock2 mmap mprotect mremap " +
  "munlock munmap nanosleep clock_nanosleep clock_gettime clock_getres newfstatat open openat openat2 pipe2 poll ppoll pread64 preadv preadv2 " +
  "prlimit64 pwrite64 pwritev read readlink readlinkat readv recvfrom recvmsg rename renameat renameat2 restart_syscall " +
  "rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_getparam sched_getscheduler " +
  "sched_setaffinity sched_setscheduler sched_yield sendmsg sendto set_robust_list set_tid_address setpriority setsockopt shutdown sigaltstack stat statfs " +
  "statx symlinkat sysinfo tgkill times timerfd_create timerfd_settime umask uname unlink unlinkat utimensat vfork wait4 waitid write writev"
).split(" ") as Call[];

/** linux/socket.h: UNIX; with a network INET, INET6 and NETLINK, which libc asks for the addresses of this machine. */
const FAMILIES = { without: [1], with: [1, 2, 10, 16] };
/** linux/sched.h: every CLONE_NEW… flag that clone(2) takes. */
const CLONE_NEW = 0x7e020000;
/** asm-generic/ioctls.h: what a program asks about its terminals, pipes and sockets; linux/fs.h: FICLONE. */
const IOCTLS = [0x5401, 0x5413, 0x541b, 0x5421, 0x5450, 0x5451, 0x40049409];
/** linux/prctl.h: PR_SET_NAME, PR_GET_NAME, PR_SET_DUMPABLE, PR_GET_DUMPABLE, PR_SET_VMA, PR_SET_THP_DISABLE, PR_SET_TIMERSLACK. */
const PRCTLS = [15, 16, 4, 3, 0x53564d41, 41, 29];

/** Made once for each of the two. */
const filters = new Map<boolean, Op[]>();

function filter(network: boolean): Op[] {
  const known = filters.get(network);
  if (known) return known;
  const verdicts = new Map<number, Verdict>();
  const set = (call: Call, verdict: Verdict) => {
    const n = NR[call][process.arch === "arm64" ? 1 : 0];
    if (n !== null) verdicts.set(n, verdict);
  };
  for (const call of CALLS) set(call, RET_ALLOW);
  const refused = errnoVerdict(EPERM);
  set("clone3", errnoVerdict(ENOSYS)); // its flags are in memory that no filter sees; libc then takes clone
  set("clone", { when: { arg: 0, mask: CLONE_NEW, in: [0] }, yes: RET_ALLOW, no: refused });
  const families = network ? FAMILIES.with : FAMILIES.without;
  set("socket", { when: { arg: 0, in: families }, yes: RET_ALLOW, no: refused });
  set("socketpair", { when: { arg: 0, in: FAMILIES.without }, yes: RET_ALLOW, no: refused });
  if (network) for (const call of ["sendmmsg", "recvmmsg"] as const) set(call, RET_ALLOW);
  set("ioctl", { when: { arg: 1, in: IOCTLS }, yes: RET_ALLOW, no: refused });
  set("prctl", { when: { arg: 0, in: PRCTLS }, yes: RET_ALLOW, no: refused });
  const made = loadFilter(fprog(compile(AUDIT_ARCH[process.arch as Arch], verdicts, refused)));
  filters.set(network, made);
  return made;
}

const LENT = {
  written: sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC,
  read: sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC | sys.MOUNT_ATTR_RDONLY,
  /** Our own programs. */
  run: sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_RDONLY,
} as const;

/** The folder as a mount whose root is our daemon's user: what belongs to root on the disk belongs to it inside. */
async function lent(path: string, to: keyof typeof LENT, ids: Fd, id: number): Promise<Fd> {
  const tree = new Fd(now(sys.openTree(sys.AT_FDCWD, path, sys.OPEN_TREE_CLONE)));
  const attributes = LENT[to];
  const mapped = attempt(sys.mountSetattr(tree.n, attributes | sys.MOUNT_ATTR_IDMAP, 0, ids.n));
  if (mapped === 0) return tree;
  if (mapped !== -EINVAL) throw new SysError(-mapped, `mapping the ids of ${path}`);
  // A file system without mapped ids: what is written to belongs to the daemon, what is read must be readable.
  if (to === "written") await give(path, id);
  now(sys.mountSetattr(tree.n, attributes));
  return tree;
}

async function give(folder: string, id: number): Promise<void> {
  await chown(folder, id, id);
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await give(path, id);
    else if (entry.isFile()) await chown(path, id, id);
  }
}

/** Folders from the first below the root on: "usr", "usr/share". */
function parents(path: string): string[] {
  const parts = path.split("/").filter(Boolean);
  return parts.map((_, i) => parts.slice(0, i + 1).join("/"));
}

const made = (path: string): Op[] => parents(path).map((p) => sys.mkdir(p, 0o755));

/** A program, a library folder or a device file at its own path, read-only for files and folders. */
function shown(path: string): Op[] {
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (!there) return [];
  const inside = path.slice(1);
  const at = made(dirname(path));
  if (there.isSymbolicLink()) return [...at, sys.symlinkat(readlinkSync(path), sys.AT_FDCWD, inside)];
  const place: Op[] = there.isDirectory()
    ? [sys.mkdir(inside, 0o755)]
    : [{ call: "mknodat", args: [sys.AT_FDCWD, inside, 0o100644, 0] }];
  const device = there.isCharacterDevice();
  const attributes =
    sys.MOUNT_ATTR_NOSUID | (device ? sys.MOUNT_ATTR_NOEXEC : sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NODEV);
  return [
    ...at,
    ...place,
    sys.mount(path, inside, "none", sys.MS_BIND | sys.MS_REC),
    sys.mountSetattrAt(sys.AT_FDCWD, inside, sys.AT_RECURSIVE, attributes),
  ];
}

/** The same room, as Landlock sees it. `own`: of our executable. */
export function fence(
  c: Pick<Confinement, "writable" | "readable" | "network" | "files" | "ahead">,
  own: readonly string[],
): Fence {
  const place = (may: number) => (path: string) => {
    const there = statSync(path, { throwIfNoEntry: false });
    return there ? [{ path, folder: there.isDirectory(), may }] : [];
  };
  const lent = c.ahead ? (may: number) => (path: string) => [{ path, folder: true, may }] : place;
  return {
    places: [
      ...[...PROGRAMS, ...own].flatMap(place(RUN)),
      ...DEVICES.map((d) => `/dev/${d}`).flatMap(place(USE)),
      ...[DMI, "/proc"].flatMap(place(READ)),
      ...c.readable.flatMap(lent(READ)),
      ...place(CHANGE)("/tmp"),
      ...c.writable.flatMap(lent(CHANGE)),
      ...(c.files ?? []).map(([path]) => ({ path, folder: false, may: READ })),
    ],
    connects: c.network !== undefined,
  };
}

// After those of landlock().
const [NULL, FILE] = [new Reg(2), new Reg(3)];
const CAPABILITIES = 64; // more than any kernel has; the rest is EINVAL
const PR = { pdeathsig: 1, dropBound: 24, noNewPrivileges: 38 } as const; // linux/prctl.h
const FIRST_LISTENING = 3;
const GATE = 4;

/** By id: what maps root of the machine's files to it. Kept, because such a daemon is started again. */
const mappings = new Map<number, Promise<Fd>>();

function mappingOf(id: number): Promise<Fd> {
  let found = mappings.get(id);
  if (!found) {
    found = idsFrom(id, 1);
    mappings.set(id, found);
    found.catch(() => mappings.delete(id)); // the next one tries again
  }
  return found;
}

/** Start it. The folders must be there, unless it is started ahead. */
export async function confined(c: Confinement): Promise<Child> {
  const ids = await mappingOf(c.id);
  using trees = new DisposableStack();
  const folders: [path: string, tree: Fd][] = [];
  const lend = async (path: string, to: keyof typeof LENT) =>
    folders.push([path, trees.use(await lent(path, to, ids, c.id))]);
  // The programs themselves, where they are not in one of the usual places. A folder of them may be root's alone.
  const own = ownFiles()
    .map((path) => realpathSync(path))
    .filter((path) => !PROGRAMS.some((place) => path.startsWith(`${place}/`)));
  const isFolder = (path: string): boolean => lstatSync(path).isDirectory();
  for (const path of own.filter(isFolder)) await lend(path, "run");
  for (const path of c.ahead ? [] : c.writable) await lend(path, "written");
  for (const path of c.ahead ? [] : c.readable) await lend(path, "read");
  const abi = landlockAbi();
  const network = c.network instanceof Fd ? c.network.n : undefined;
  const inherited = [c.output, c.errors, c.listening?.n, c.ahead?.gate.n, network];
  const kept = [...inherited.filter((n) => n !== undefined), ...folders.map(([, tree]) => tree.n)];
  const room = (report: number): Op[] => [
    // Whoever starts us may be killed meanwhile: the next one must not find its locks held.
    ...sys.closeAllBut([report, ...kept]),
    sys.setsid(),
    ...(c.network instanceof Fd ? [sys.setns(c.network.n, sys.CLONE_NEWNET)] : []),
    sys.mount("none", "/", "none", sys.MS_REC | sys.MS_SLAVE),
    // The room is built upon /proc: nothing that it shows lies there.
    sys.mount("tmpfs", "/proc", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "size=1m,nr_inodes=1k,mode=0755"),
    sys.chdir("/proc"),
    sys.umask(0o022),
    ...["proc", "tmp"].map((name) => sys.mkdir(name, 0o755)),
    sys.mount("tmpfs", "tmp", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "size=16m,nr_inodes=1k,mode=1777"),
    ...[
      ...PROGRAMS,
      ...own.filter((path) => !isFolder(path)),
      ...DEVICES.map((d) => `/dev/${d}`),
      DMI,
    ].flatMap(shown),
    ...(c.files ?? []).flatMap(([path, text]) => [
      ...made(dirname(path)),
      sys.openat(sys.AT_FDCWD, path.slice(1), sys.O_WRONLY | sys.O_CREAT | sys.O_EXCL, 0o644, FILE),
      sys.writeText(FILE, text),
      sys.close(FILE),
    ]),
    sys.mount("proc", "proc", "proc", sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC),
    ...folders.flatMap(([path, tree]) => [...made(path), sys.moveMount(tree.n, sys.AT_FDCWD, path.slice(1))]),
    ...(c.ahead ? [...c.writable, ...c.readable, ...c.ahead.points].flatMap(made) : []),
    sys.pivotRoot(".", "."),
    sys.umount2(".", sys.MNT_DETACH),
    sys.chdir("/"),
    sys.mountSetattrAt(sys.AT_FDCWD, "/", 0, sys.MOUNT_ATTR_RDONLY),
    ...(abi > 0 ? landlock(fence(c, own), abi) : []),
    sys.openat(sys.AT_FDCWD, "/dev/null", sys.O_RDONLY, 0, NULL),
    sys.dup3(NULL, 0), // before its number, the lowest that was free, becomes somebody else's
    sys.dup3(c.output, 1),
    sys.dup3(c.errors ?? c.output, 2),
    ...(c.listening ? [sys.dup3(c.listening.n, FIRST_LISTENING)] : []),
    ...(c.ahead ? [sys.dup3(c.ahead.gate.n, GATE)] : []),
    // A log opens it again, so as not to wait for its reader.
    ...[1, 2].map((fd): Op => ({ call: "fchown", args: [fd, c.id, c.id] })),
    sys.prlimit(sys.RLIMIT_CORE, 0, 0),
    ...Array.from({ length: CAPABILITIES }, (_, n) => ({ ...sys.prctl(PR.dropBound, n), allow: EINVAL })),
    sys.setgroups(),
    sys.setresgid(c.id),
    sys.setresuid(c.id), // with it go all capabilities (capabilities(7))
    // Somebody who has died before that would not be noticed: nobody reads what we say then (SIGPIPE).
    ...(c.mortal ? [sys.prctl(PR.pdeathsig, SIGKILL), sys.writeText(2, "\n")] : []),
    sys.prctl(PR.noNewPrivileges, 1),
    ...filter(c.network !== undefined),
    ...sys.closeAllBut([...(c.listening ? [FIRST_LISTENING] : []), ...(c.ahead ? [GATE] : []), report]),
    sys.execve(c.argv[0]!, c.argv, [
      ...c.env,
      ...(c.listening ? ["LISTEN_PID=1", "LISTEN_FDS=1"] : []),
      ...(c.ahead ? [`CML_GATE=${GATE}`] : []),
    ]),
  ];
  for (const n of [c.listening?.n, c.output, c.errors, c.ahead?.gate.n])
    if (n !== undefined && n <= (c.ahead ? GATE : FIRST_LISTENING))
      throw new Error(`descriptor ${n} is in the way`);
  return launch(
    room,
    sys.CLONE_NEWNS |
      sys.CLONE_NEWPID |
      (c.network === undefined ? sys.CLONE_NEWNET : 0n) |
      sys.CLONE_NEWIPC |
      sys.CLONE_NEWUTS |
      sys.CLONE_NEWCGROUP,
  );
}

/** Mount a folder of the machine at one of the points of a daemon's room that was started ahead; as its own, lent for `to`. */
export async function furnish(
  room: Child,
  id: number,
  folders: readonly { readonly from: string; readonly point: string; readonly to: "written" | "read" }[],
): Promise<void> {
  const ids = await mappingOf(id);
  using inside = new Fd(now(sys.openat(sys.AT_FDCWD, `/proc/${room.pid}/ns/mnt`, sys.O_RDONLY)));
  for (const { from, point, to } of folders) {
    using tree = await lent(from, to, ids, id);
    elsewhere([sys.setns(inside.n, sys.CLONE_NEWNS), sys.moveMount(tree.n, sys.AT_FDCWD, point)]);
  }
}
