// A further process in a running container: `control run`. It is born in the container's pid namespace, joins the other
// namespaces and the control group, and gets the container's filter, capabilities and limits.
//
// Of the host it brings nothing but its standard input and output: every other descriptor is closed, not only marked,
// before a path of the container is looked up, so no link to /proc/self/fd leads out; and until its execve it cannot
// be traced by the container (not dumpable, memory owned by the host's user namespace). The terminal is one of the
// container's own devpts, opened by the process itself: a path of the container may hang (FUSE), so cmld never
// walks one. Nothing here waits: what a process does not read stays with the client, and the reverse.
import { chownSync, mkdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { collected, type Ended, launch } from "../run/launch.ts";
import {
  AT_FDCWD,
  CLONE_NEWCGROUP,
  CLONE_NEWIPC,
  CLONE_NEWNET,
  CLONE_NEWNS,
  CLONE_NEWTIME,
  CLONE_NEWUSER,
  CLONE_NEWUTS,
  chdir,
  closeAllBut,
  dup3,
  execve,
  exit,
  F_DUPFD_CLOEXEC,
  fchown,
  fcntl,
  ioctl,
  O_CLOEXEC,
  O_NOCTTY,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  openat,
  openat2,
  pidfdGetfd,
  prctl,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  read,
  SOCK_STREAM,
  setgroups,
  setns,
  setresgid,
  setresuid,
  setsid,
  signal,
  umask,
  wait,
  write,
  writeText,
} from "../sys/calls.ts";
import { chain, EAGAIN, EBADF, EINTR, ENOENT, isErrno } from "../sys/error.ts";
import { Fd, pair, pipe } from "../sys/fd.ts";
import { lasting, mem } from "../sys/mem.ts";
import type { Ends } from "../sys/notify.ts";
import { attempt, now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { EPOLLIN, EPOLLOUT, readable, type Watch, watch } from "../sys/poll.ts";
import { kill, SIGHUP, SIGKILL } from "../sys/process.ts";
import { setWindow } from "../sys/pty.ts";
import { capsOps, type Grant } from "./modules/caps.ts";
import { limitOps } from "./modules/limits.ts";
import { Channel, type Supervisor } from "./modules/seccomp/supervisor.ts";
import { filterOps } from "./modules/seccomp.ts";

/** The container. */
export interface Target {
  readonly name: string;
  /** Its init. */
  readonly pid: number;
  readonly pidfd: Fd;
  /** The directory of the container's own control group, the one that its init was started in. */
  readonly cgroup: string;
  readonly uidStart: number;
  /** What its configuration adds to its capabilities. */
  readonly grant: Grant;
  /** Answers what its filter leaves to us; without one that is ENOSYS. */
  readonly supervisor?: Supervisor;
}

export interface Request {
  /** The command, looked up in PATH inside the container unless it has a slash, and its arguments. */
  readonly argv: readonly string[];
  /** With a terminal of the container; without: two pipes. */
  readonly pty: boolean;
  /** "name", "1000", "name:group", "1000:1000"; absent: root. */
  readonly user?: string;
  /** Absent: the user's home for a named user, else /. */
  readonly cwd?: string;
  /** NAME=value, over the defaults (PATH, HOME, USER, TERM). */
  readonly env: readonly string[];
  readonly rows?: number;
  readonly cols?: number;
}

/** How it ended. With `error`, the command did not run: `status` is what a shell would say, 126 or 127. */
export interface Result extends Ended {
  readonly error?: string;
}

/** Whoever asked. */
export interface Client {
  /** Bytes of the terminal, or of standard output and error. False: no more until Session.resume(). */
  output(bytes: Uint8Array): boolean;
  /** After Session.input() returned false: more can be taken. */
  writable(): void;
  /** Once, after all output; the session is over. Not called after hangup(). */
  ended(result: Result): void;
}

export interface Session {
  /** False: kept, but send nothing more until Client.writable(). What goes beyond INPUT_MAX ends the session. */
  input(bytes: Uint8Array): boolean;
  /** End of input. */
  endInput(): void;
  resize(rows: number, cols: number): void;
  /** The client takes output again. */
  resume(): void;
  /** The client is gone: SIGHUP, and after HANGUP_MS SIGKILL for whatever is left in the foreground. */
  hangup(): void;
}

/** Bytes of input that a command may leave unread. */
export const INPUT_MAX = 1024 * 1024;
/** From there on the client is asked to wait. */
const INPUT_FULL = 64 * 1024;
/** Bytes of command, arguments and environment together: half of what Linux gives a stack of 8 MiB. */
const ARGUMENTS_MAX = 1024 * 1024;
/** Time to clean up after the terminal is gone. */
const HANGUP_MS = 5_000;
/** Time for the container's file system to give us /etc/passwd. */
const LOOKUP_MS = 5_000;
/** Bytes of /etc/passwd and /etc/group that are looked at. */
const LOOKUP_MAX = 1024 * 1024;
const PIECE = 64 * 1024;
/** /proc/sys/fs/pipe-max-size as Linux sets it; a terminal holds less. */
const LAST_MAX = 1024 * 1024;

const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/** The group below the container's where what we start lives: core.md 8.6. */
const LEAF = "cmld-injected";

const MFD_CLOEXEC = 1; // linux/memfd.h
const PR_SET_DUMPABLE = 4; // linux/prctl.h
const [TIOCSCTTY, TIOCSPTLCK, TIOCGPTPEER] = [0x540e, 0x40045431, 0x5441]; // asm-generic/ioctls.h
const F_SETFL = 4; // asm-generic/fcntl.h
/**
 * VEOF of a new terminal, several times: a terminal has no end that lasts. Half a line needs one of its own, and so does
 * each program that a shell starts to read the rest of its input.
 */
const END_OF_INPUT = new Uint8Array(8).fill(4);
const END_AGAIN_MS = 500;
const ID_MAX = 65535; // of a container's range
const RETURNED = 2; // where the process leaves its terminal's master for us: standard error, not in use yet

const CONSOLE = new Reg(0);
const SLAVE = new Reg(1);
const FILE = new Reg(0);

/** Who the command runs as, in the container's ids. */
export interface User {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly name: string;
  readonly home: string;
}

const ROOT: User = { uid: 0, gid: 0, groups: [], name: "root", home: "/root" };

// --- users ------------------------------------------------------------------------

const id = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,5}$/.test(text) && Number(text) <= ID_MAX ? Number(text) : undefined;

/** "name[:group]" by the container's own /etc/passwd and /etc/group; numbers need not stand there. */
export function findUser(spec: string, passwd: string, group: string): User {
  const [who = "", which] = spec.split(":");
  const users = passwd.split("\n").map((line) => line.split(":"));
  const groups = group.split("\n").map((line) => line.split(":"));
  const entry = users.find((f) => f[0] === who && id(f[2]) !== undefined) ?? users.find((f) => f[2] === who);
  const uid = id(entry?.[2]) ?? id(who);
  if (uid === undefined) throw new Error(`user ${JSON.stringify(who)}: not in the container's /etc/passwd`);
  const name = entry?.[0] ?? who;
  let gid = id(entry?.[3]) ?? 0;
  if (which !== undefined) {
    const found = id(groups.find((f) => f[0] === which)?.[2]) ?? id(which);
    if (found === undefined)
      throw new Error(`group ${JSON.stringify(which)}: not in the container's /etc/group`);
    gid = found;
  }
  const member = groups.flatMap((f) => (f[3]?.split(",").includes(name) ? [id(f[2]) ?? gid] : []));
  const GROUPS_MAX = 1024;
  return {
    uid,
    gid,
    groups: [...new Set(which === undefined ? member : [])].slice(0, GROUPS_MAX),
    name,
    home: entry?.[5]?.startsWith("/") ? entry[5] : "/",
  };
}

/** Read small files of the container in a process of its own: its file systems may hang. */
async function readInside(target: Target, paths: readonly string[], gone: AbortSignal): Promise<string[]> {
  using files = new DisposableStack();
  const copies = paths.map(() =>
    files.use(new Fd(now({ call: "memfd_create", args: ["lookup", MFD_CLOEXEC] }))),
  );
  const child = launch([
    prctl(PR_SET_DUMPABLE, 0),
    ...enter(target),
    ...paths.flatMap((path, i): Op[] => [
      {
        ...openat2(AT_FDCWD, path, O_RDONLY | O_NONBLOCK, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, 0, FILE),
        allow: ENOENT,
      },
      { call: "sendfile", args: [copies[i]!.n, FILE, null, LOOKUP_MAX], allow: EBADF },
    ]),
    exit(0),
  ]);
  using pidfd = child.pidfd;
  const stop = () => kill(pidfd, SIGKILL);
  const timer = setTimeout(stop, LOOKUP_MS);
  gone.addEventListener("abort", stop);
  let how: Ended | undefined;
  try {
    await child.started();
  } finally {
    how = await collected(pidfd);
    clearTimeout(timer);
    gone.removeEventListener("abort", stop);
  }
  if (how?.status !== 0) throw new Error(`${paths.join(", ")} of ${target.name}: not readable in time`);
  return copies.map((fd) => {
    const text = mem(LOOKUP_MAX);
    const n = now({ call: "pread64", args: [fd.n, text, text.length, 0] });
    return Buffer.from(text.subarray(0, n)).toString();
  });
}

// --- the program ------------------------------------------------------------------

/** Into every namespace of the container but that of pids, into which one is born; then root there. */
function enter(target: Target): Op[] {
  const same = readlinkSync(`/proc/${target.pid}/ns/user`) === readlinkSync("/proc/self/ns/user");
  const user = same ? 0n : CLONE_NEWUSER; // EINVAL for one's own
  const others = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWTIME;
  return [setns(target.pidfd.n, user | others), setresgid(0), setresuid(0), setgroups([])];
}

interface Plan {
  readonly user: User;
  readonly argv: readonly string[];
  readonly env: readonly string[];
  /** Absent: the user's home if there is one. */
  readonly cwd: string | undefined;
  readonly stdio: Terminal | Pipes;
}
/** A gate at which the process waits until we have the terminal. */
interface Terminal {
  readonly gate: number;
}
interface Pipes {
  readonly input: number;
  readonly output: number;
}

/** The container's terminal as standard input, output and error; its other end left at RETURNED for the parent. */
const terminalOps = (gate: number, user: User): Op[] => [
  openat2(AT_FDCWD, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK, RESOLVE_NO_SYMLINKS, 0, CONSOLE),
  ioctl(CONSOLE, TIOCSPTLCK, { data: new Uint8Array(4), text: "[0]" }),
  { ...ioctl(CONSOLE, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), save: SLAVE },
  fchown(SLAVE, user.uid, -1),
  dup3(CONSOLE, RETURNED),
  signal(gate),
  wait(gate),
  ioctl(SLAVE, TIOCSCTTY, 0),
  ...[0, 1, 2].map((n) => dup3(SLAVE, n)),
];

/** The directories to try, in order. */
function candidates(command: string, env: readonly string[]): string[] {
  if (command.includes("/")) return [command];
  const path = env.findLast((e) => e.startsWith("PATH="))?.slice(5) ?? PATH;
  return path.split(":").map((dir) => join(dir || ".", command));
}

/** The life of the process up to its execve. Pure, but for what enter() looks up. `group`: the cgroup.procs of where it
 * is to live. It goes there once it has nothing of ours any more: the container may freeze its own groups. */
export function program(target: Target, plan: Plan, group: number, report: number, ends?: Ends): Op[] {
  const { user, argv, env, stdio } = plan;
  const paths = candidates(argv[0]!, env);
  const gate = "gate" in stdio ? [stdio.gate] : [];
  const way = ends ? [ends.ours, ends.theirs] : [];
  return [
    prctl(PR_SET_DUMPABLE, 0), // before anybody in the container could trace it
    openat(AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY, 0, FILE), // the host's /proc still
    writeText(FILE, "0"),
    setsid(),
    ...("gate" in stdio ? [] : [dup3(stdio.input, 0), dup3(stdio.output, 1), dup3(stdio.output, 2)]),
    ...enter(target),
    ...closeAllBut([report, group, ...way, ...gate]),
    writeText(group, "0"), // judged by who opened it (Linux 5.16)
    ...("gate" in stdio ? terminalOps(stdio.gate, user) : []),
    ...closeAllBut([report, ...way]),
    umask(0o022),
    ...limitOps(),
    ...capsOps(target.grant),
    ...filterOps(target.supervisor?.supervision, ends), // while still root: without NO_NEW_PRIVS only root may
    setgroups(user.groups),
    setresgid(user.gid),
    setresuid(user.uid), // capabilities of anybody but root end here
    ...(plan.cwd === undefined ? [{ ...chdir(user.home), allow: ENOENT }] : [chdir(plan.cwd)]),
    // What does not exist is skipped, but for the last; a link into our own /proc/self (exe) is refused.
    ...paths.flatMap((path, i): Op[] => {
      const allow = i + 1 < paths.length ? { allow: ENOENT } : {};
      return [
        { ...openat2(AT_FDCWD, path, O_PATH, RESOLVE_NO_MAGICLINKS), ...allow },
        { ...execve(path, argv, env), ...allow },
      ];
    }),
  ];
}

// --- the session ------------------------------------------------------------------

const shared = mem(PIECE); // read into and copied from without a pause in between

class Running implements Session {
  readonly #gone = new AbortController();
  #pid = 0;
  #pidfd: Fd | undefined;
  /** What the command writes; with a terminal also where it reads. */
  #from: Fd | undefined;
  #to: Fd | undefined;
  #reading: Watch | undefined;
  #writing: Watch | undefined;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  #inputEnds = false;
  #full = false;
  #paused = false;
  /** Bytes that are passed on after the end: what a pipe or a terminal can hold. */
  #left = LAST_MAX;
  #patience: Timer | undefined;
  /** Says the end of a terminal's input again. */
  #again: Timer | undefined;
  #window: { rows: number; columns: number } | undefined;
  #result: Result | undefined;
  #over = false;

  constructor(
    readonly target: Target,
    readonly request: Request,
    readonly client: Client,
  ) {
    if (request.rows && request.cols) this.#window = { rows: request.rows, columns: request.cols };
    void this.#run();
  }

  async #run(): Promise<void> {
    try {
      const user = await this.#user();
      if (!this.#result && !this.#gone.signal.aborted) await this.#start(user);
    } catch (cause) {
      const command = this.request.argv[0]!;
      const last = candidates(command, this.request.env).at(-1)!;
      const missing = isErrno(cause, ENOENT);
      const absent = missing && chain(cause).includes(`, ${JSON.stringify(last)}, `);
      this.#result ??= {
        status: missing ? 127 : 126,
        error: absent ? `${command}: no such command` : chain(cause),
      };
    }
    if (!this.#pidfd) return this.#finish();
    this.#exited(await collected(this.#pidfd), this.#pidfd);
  }

  async #user(): Promise<User> {
    const { user } = this.request;
    if (user === undefined || user === "" || user === "root" || user === "0") return ROOT;
    const [passwd, group] = await readInside(this.target, ["/etc/passwd", "/etc/group"], this.#gone.signal);
    return findUser(user, passwd!, group!);
  }

  async #start(user: User): Promise<void> {
    const { target, request } = this;
    using ours = new DisposableStack();
    using theirs = new DisposableStack();
    using group = leaf(target);
    let stdio: Terminal | Pipes;
    let gate: Fd | undefined;
    let far: Fd | undefined;
    if (request.pty) {
      [gate, far] = pair(SOCK_STREAM);
      ours.use(gate);
      theirs.use(far);
      stdio = { gate: far.n };
    } else {
      const [input, output] = [pipe(), pipe()];
      for (const fd of [input.read, output.write]) {
        theirs.use(fd);
        now(fchown(fd.n, target.uidStart + user.uid, target.uidStart + user.gid)); // for /dev/stdin and /dev/stdout
      }
      this.#to = ours.use(input.write);
      this.#from = ours.use(output.read);
      for (const fd of [this.#to, this.#from]) now(fcntl(fd.n, F_SETFL, O_NONBLOCK));
      stdio = { input: input.read.n, output: output.write.n };
    }
    const plan: Plan = {
      user,
      argv: request.argv,
      env: environment(request, user),
      cwd: request.cwd || (request.user ? undefined : "/"),
      stdio,
    };
    const { supervisor } = target;
    const channel = supervisor?.keep(new Channel());
    const take = (): boolean | undefined => channel && supervisor?.take(channel);
    ours.defer(take);
    const child = launch(
      (report) => program(target, plan, group.n, report, channel?.ends),
      0n,
      -1,
      target.pidfd,
    );
    this.#pid = child.pid;
    this.#pidfd = child.pidfd;
    ours.move(); // from here on #finish() closes them
    theirs.dispose();
    const started = child.started();
    started.catch(() => {}); // judged below
    try {
      if (gate) {
        using at = gate;
        await readable(at);
        if (this.#gone.signal.aborted) throw new Error("the client is gone");
        if (attempt(read(at.n, mem(1))) === 1) {
          this.#terminal(child.pidfd);
          now(signal(at.n));
        }
      }
      this.#read();
      this.#write();
      await started;
    } catch (e) {
      kill(child.pidfd, SIGKILL);
      throw e;
    } finally {
      take(); // if it came so far
    }
  }

  /** Take the terminal that the process has opened: what the kernel says of its own accord tells that it is one; asking
   * something else could hang. */
  #terminal(pidfd: Fd): void {
    const master = new Fd(now(pidfdGetfd(pidfd.n, RETURNED)));
    try {
      // drivers/tty/pty.c, pty_show_fdinfo(): of the master's end alone
      if (!/^tty-index:/m.test(readFileSync(`/proc/self/fdinfo/${master.n}`, "utf8")))
        throw new Error("/dev/pts/ptmx is no terminal's");
      if (this.#window) now(setWindow(master.n, this.#window));
      this.#to = new Fd(now(fcntl(master.n, F_DUPFD_CLOEXEC, 0))); // to be waited on separately
      this.#from = master;
    } catch (e) {
      master.close();
      throw e;
    }
  }

  #read(): void {
    const from = this.#from;
    if (!from || this.#over) return;
    this.#reading = watch(from, EPOLLIN, () => {
      if (!this.#drain(1)) this.#reading?.[Symbol.dispose]();
    });
    if (this.#paused) this.#reading.pause();
  }

  /** Pass on output until `bytes` are reached. False: there will be no more. */
  #drain(bytes: number): boolean {
    for (let left = bytes; left > 0 && this.#from && !this.#paused; ) {
      const n = attempt(read(this.#from.n, shared));
      if (n === -EAGAIN || n === -EINTR) return true;
      if (n <= 0) return false; // EIO: nobody has the terminal any more
      left -= n;
      if (this.#result) this.#left -= n;
      if (!this.#gone.signal.aborted && !this.client.output(shared.slice(0, n))) {
        this.#paused = true;
        this.#reading?.pause();
      }
    }
    return true;
  }

  resume(): void {
    if (!this.#paused || this.#over) return;
    this.#paused = false;
    if (this.#result) this.#last();
    else this.#reading?.resume();
  }

  #exited(how: Ended, pidfd: Fd): void {
    clearTimeout(this.#patience);
    if (!this.#result?.error) this.#result = how;
    pidfd.close();
    this.#last();
  }

  /** The command is gone: what it wrote is still to be passed on. What its children write later is not waited for. */
  #last(): void {
    if (this.#over) return;
    this.#reading?.[Symbol.dispose]();
    this.#reading = undefined;
    this.#drain(this.#left);
    if (!this.#paused) this.#finish();
  }

  #finish(): void {
    if (this.#over) return;
    this.#over = true;
    this.#close();
    if (!this.#gone.signal.aborted) this.client.ended(this.#result!);
  }

  #close(): void {
    clearInterval(this.#again);
    this.#reading?.[Symbol.dispose]();
    this.#writing?.[Symbol.dispose]();
    this.#from?.close();
    this.#to?.close();
    this.#waiting = [];
    this.#from = this.#to = this.#reading = this.#writing = undefined;
  }

  input(bytes: Uint8Array): boolean {
    if (this.#over || this.#inputEnds || bytes.length === 0) return true;
    if (this.#waitingBytes + bytes.length > INPUT_MAX) {
      this.#result ??= { status: 126, error: `input: more than ${INPUT_MAX} bytes that nobody reads` };
      if (this.#pidfd?.open) this.#signal(SIGKILL);
      return false;
    }
    this.#waiting.push(lasting(bytes));
    this.#waitingBytes += bytes.length;
    this.#write();
    this.#full ||= this.#waitingBytes > INPUT_FULL;
    return !this.#full;
  }

  endInput(): void {
    if (this.#over || this.#inputEnds) return;
    if (this.request.pty) {
      this.input(END_OF_INPUT);
      // A shell that changes its terminal's settings at this moment has it thrown away, and would wait for ever.
      this.#again = setInterval(() => {
        if (this.#waiting.length > 0) return;
        this.#waiting.push(lasting(END_OF_INPUT));
        this.#waitingBytes += END_OF_INPUT.length;
        this.#write();
      }, END_AGAIN_MS);
    }
    this.#inputEnds = true;
    this.#write();
  }

  /** Pass on what waits, as much as is taken. */
  #write(): void {
    const to = this.#to;
    if (!to) return;
    for (let head = this.#waiting[0]; head; head = this.#waiting[0]) {
      const n = attempt(write(to.n, head));
      if (n === -EAGAIN || n === -EINTR) {
        this.#writing ??= watch(to, EPOLLOUT, () => {
          this.#writing?.[Symbol.dispose]();
          this.#writing = undefined;
          this.#write();
        });
        break;
      }
      const taken = n < 0 ? head.length : n; // EPIPE, EIO: nobody will read it
      this.#waitingBytes -= taken;
      if (taken === head.length) this.#waiting.shift();
      else this.#waiting[0] = lasting(head.subarray(taken));
    }
    if (this.#full && this.#waitingBytes <= INPUT_FULL) {
      this.#full = false;
      this.client.writable();
    }
    if (this.#inputEnds && this.#waiting.length === 0 && !this.request.pty) {
      this.#to?.close();
      this.#to = undefined;
    }
  }

  resize(rows: number, cols: number): void {
    this.#window = { rows, columns: cols };
    if (this.request.pty && this.#from) attempt(setWindow(this.#from.n, this.#window));
  }

  /** To the command's process group, which is that of its pid: as long as it is not reaped, nobody else's. */
  #signal(number: number): void {
    attempt({ call: "kill", args: [-this.#pid, number] });
    if (this.#pidfd?.open) kill(this.#pidfd, number);
  }

  hangup(): void {
    if (this.#gone.signal.aborted) return;
    this.#gone.abort();
    if (this.request.pty)
      this.#close(); // SIGHUP to its session's leader and foreground
    else {
      this.#waiting = [];
      this.endInput();
      this.resume(); // a shell that would die of a closed pipe could not run its trap: what it says is thrown away
    }
    if (!this.#pidfd?.open) return;
    this.#signal(SIGHUP);
    this.#patience = setTimeout(() => this.#signal(SIGKILL), HANGUP_MS);
  }
}

function environment(request: Request, user: User): string[] {
  const given = new Set(request.env.map((e) => e.slice(0, e.indexOf("="))));
  const defaults = [
    `PATH=${PATH}`,
    `HOME=${user.home}`,
    `USER=${user.name}`,
    ...(request.pty ? ["TERM=xterm"] : []),
  ];
  return [...defaults.filter((e) => !given.has(e.slice(0, e.indexOf("=")))), ...request.env];
}

/** cgroup.procs of the group that the process is to live in; made when the container has none, and its own to manage. */
function leaf(target: Target): Fd {
  const path = join(target.cgroup, LEAF);
  mkdirSync(path, { recursive: true, mode: 0o755 });
  for (const file of ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"])
    chownSync(join(path, file), target.uidStart, target.uidStart);
  return new Fd(now(openat(AT_FDCWD, join(path, "cgroup.procs"), O_WRONLY)));
}

/** What a client may ask for; throws the reason why not. */
function judge(request: Request): void {
  if (!request.argv[0]) throw new Error("no command to run");
  let size = 0;
  for (const text of [...request.argv, ...request.env, request.cwd ?? "", request.user ?? ""]) {
    if (text.includes("\0")) throw new Error("an argument contains a NUL byte");
    size += Buffer.byteLength(text) + 1;
  }
  if (size > ARGUMENTS_MAX)
    throw new Error(`arguments and environment of ${size} bytes, at most ${ARGUMENTS_MAX}`);
  for (const e of request.env)
    if (!/^[^=]+=/.test(e)) throw new Error(`environment ${JSON.stringify(e.slice(0, 60))}: not NAME=value`);
  for (const n of [request.rows ?? 0, request.cols ?? 0])
    if (!Number.isInteger(n) || n < 0 || n > 65535) throw new Error(`window size ${n}: not 0 to 65535`);
}

/** Start a command. Throws if the request is impossible; what fails later comes with Client.ended(). */
export type Exec = (target: Target, request: Request, client: Client) => Session;
export const exec: Exec = (target, request, client) => {
  judge(request);
  return new Running(target, request, client);
};
