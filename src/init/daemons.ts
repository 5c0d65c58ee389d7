// The daemons of the machine: started with an environment that is written here, a private /tmp, and started again
// when they end. They outlive a crash of PID 1, which then finds them by pid and start time.
import { readFileSync } from "node:fs";
import { EXIT_POWER_OFF, EXIT_REBOOT } from "../lib/exit.ts";
import { type Ended, launch } from "../run/launch.ts";
import { RUNTIME } from "../run/self.ts";
import {
  AT_FDCWD,
  CLONE_NEWNS,
  cloexecFrom,
  close,
  dup3,
  execve,
  fcntl,
  MS_NODEV,
  MS_NOSUID,
  MS_REC,
  MS_SLAVE,
  mount,
  O_RDONLY,
  O_WRONLY,
  openat,
  setsid,
  unshare,
  write,
  writeText,
} from "../sys/calls.ts";
import { chain, ENOENT, isErrno } from "../sys/error.ts";
import type { Fd } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { kill, openProcess, SIGKILL, SIGTERM, startTime } from "../sys/process.ts";
import type { Log } from "./log.ts";
import type { Reaper } from "./reaper.ts";
import { type Daemon as Known, RUN, type State, saveState } from "./state.ts";

export interface Description {
  readonly name: string;
  readonly argv: readonly string[];
  readonly env: readonly string[];
  /** Started before there is a data partition, to load meanwhile; it waits for a byte on GATE (CML_GATE). */
  readonly ahead?: boolean;
}

/** The descriptor of a daemon that is started ahead, where the byte comes from which says that the machine is ready. */
const GATE = 3;
const F_SETFD = 2; // asm-generic/fcntl.h

/** Read-only addition of the test ramdisk: daemons.json with more of them. A product image has no such file. */
const MORE = "/test/daemons.json";

export const NOTIFY = `${RUN}/notify`;
export const STORE = `${RUN}/store`;
/** A folder: "core" is in it once the kernel modules are loaded that core0 needs, "guests" once all are. */
export const MODULES = `${RUN}/modules`;
/** cmld makes this file there when it wants the latter. */
export const WANTED = "wanted";
/** A daemon that promised to send WATCHDOG=1 and was silent so long is killed (and started again). */
const SILENCE_MS = 60_000;

const ENVIRONMENT = [
  "PATH=/usr/sbin:/usr/bin",
  "HOME=/run",
  "LC_ALL=C.UTF-8",
  "TZ=UTC",
  `NOTIFY_SOCKET=${NOTIFY}`,
  `WATCHDOG_USEC=${SILENCE_MS * 1000}`,
  ...RUNTIME,
];

export const DAEMONS: readonly Description[] = [
  {
    name: "cmld",
    argv: ["/usr/sbin/cmld"],
    env: [...ENVIRONMENT, `CML_STORE=${STORE}`, `CML_MODULES=${MODULES}`],
    ahead: true,
  },
];

export function moreDaemons(): Description[] {
  try {
    const found = JSON.parse(readFileSync(MORE, "utf8")) as Description[];
    return found.map((d) => ({ ...d, env: [...ENVIRONMENT, ...d.env] }));
  } catch (e) {
    if (isErrno(e, ENOENT)) return [];
    throw new Error(`reading ${MORE}`, { cause: e });
  }
}

const NULL = new Reg(0);
const SCORE = new Reg(1);
const TMP_SIZE = "size=64m,nr_inodes=16k,mode=1777";

/** The life of a daemon up to its execve. `log` is the pipe that init reads, `gate` one that it waits for. */
export const program = (d: Description, log: number, gate?: number): Op[] => [
  setsid(),
  openat(AT_FDCWD, "/dev/null", O_RDONLY, 0, NULL),
  dup3(NULL, 0),
  dup3(log, 1),
  dup3(log, 2),
  close(NULL),
  // The kernel must not end it for want of memory before every container; cmld gives its children 0 back.
  openat(AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY, 0, SCORE),
  writeText(SCORE, "-900"),
  unshare(CLONE_NEWNS),
  mount("none", "/", "none", MS_REC | MS_SLAVE),
  mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, TMP_SIZE),
  ...(gate === undefined ? [] : [gate === GATE ? fcntl(GATE, F_SETFD, 0) : dup3(gate, GATE)]),
  cloexecFrom(gate === undefined ? 3 : GATE + 1),
  execve(
    d.argv[0]!,
    [d.name, ...d.argv.slice(1)],
    gate === undefined ? d.env : [...d.env, `CML_GATE=${GATE}`],
  ),
];

/** Milliseconds before start number n+1 of a daemon that ended n times in a row without having run for long. */
export const delay = (n: number): number => (n === 0 ? 0 : Math.min(100 * 2 ** (n - 1), 10_000));
/** Running this long, it counts as well again. */
const LONG_MS = 60_000;

interface Running {
  readonly description: Description;
  known: Known | undefined;
  pidfd: Fd | undefined;
  over: Promise<void> | undefined;
  since: number;
  failures: number;
  /** When it last sent WATCHDOG=1; undefined if it never did. */
  beat: number | undefined;
  ready: boolean;
}

export class Daemons {
  readonly #all: Running[];
  readonly #state: State;
  readonly #log: Log;
  readonly #reaper: Reaper;
  readonly #pipe: number;
  readonly #asked: (what: "reboot" | "power off") => void;
  #stopping = false;
  /** What daemons wait for that are started ahead; undefined as soon as nobody has to. */
  #gate: Fd | undefined;

  constructor(
    descriptions: readonly Description[],
    surroundings: { state: State; log: Log; reaper: Reaper; pipe: number },
    asked: (what: "reboot" | "power off") => void,
  ) {
    this.#all = descriptions.map((description) => ({
      description,
      known: undefined,
      pidfd: undefined,
      over: undefined,
      since: 0,
      failures: 0,
      beat: undefined,
      ready: false,
    }));
    this.#state = surroundings.state;
    this.#log = surroundings.log;
    this.#reaper = surroundings.reaper;
    this.#pipe = surroundings.pipe;
    this.#asked = asked;
  }

  /** Start those that load while the machine is made ready. They wait at `gate`, which stays the caller's. */
  ahead(gate: Fd): void {
    this.#gate = gate;
    for (const d of this.#all) if (d.description.ahead) this.#launch(d);
  }

  /** The machine is ready: start what does not run; what runs since before a crash of ours is ours again. Whoever waits
   * is told by `open`, the other end of the gate. */
  start(open?: Fd): void {
    this.#gate = undefined;
    if (open) {
      const go = mem(this.#all.filter((d) => d.description.ahead).length);
      attempt(write(open.n, go)); // nobody waits: it ended meanwhile, and is started anew
    }
    for (const d of this.#all) {
      if (d.pidfd) continue;
      const name = d.description.name;
      const known = this.#state.daemons[name];
      const pidfd = known && openProcess(known.pid, known.startTime);
      if (known && pidfd) {
        this.#log.line(`init: ${name}: still running, pid ${known.pid}`);
        this.#follow(d, known, pidfd);
      } else this.#launch(d);
    }
    setInterval(() => this.#silence(), SILENCE_MS / 4);
  }

  #launch(d: Running): void {
    const name = d.description.name;
    if (this.#stopping) return;
    try {
      const child = launch(
        program(d.description, this.#pipe, d.description.ahead ? this.#gate?.n : undefined),
      );
      const known = { pid: child.pid, startTime: startTime(child.pid) ?? 0 };
      this.#follow(d, known, child.pidfd);
      this.#state.daemons[name] = known;
      saveState(this.#state);
      child.started().then(
        () => this.#log.line(`init: ${name}: started, pid ${child.pid}`),
        (e) => this.#log.line(`init: ${name}: ${chain(e)}`),
      );
    } catch (e) {
      this.#log.line(`init: ${name}: ${chain(e)}`);
      this.#again(d);
    }
  }

  #follow(d: Running, known: Known, pidfd: Fd): void {
    d.known = known;
    d.pidfd = pidfd;
    d.since = performance.now();
    d.beat = undefined;
    d.ready = false;
    d.over = this.#reaper.end(known.pid).then((end) => this.#ended(d, end));
  }

  #ended(d: Running, end: Ended): void {
    const name = d.description.name;
    d.pidfd?.close();
    d.pidfd = undefined;
    d.known = undefined;
    delete this.#state.daemons[name];
    saveState(this.#state);
    const how = end.signal === undefined ? `exit status ${end.status}` : `killed by signal ${end.signal}`;
    if (this.#stopping) {
      this.#log.line(`init: ${name}: ended (${how})`);
      return;
    }
    if (end.status === EXIT_POWER_OFF || end.status === EXIT_REBOOT) {
      this.#asked(end.status === EXIT_REBOOT ? "reboot" : "power off");
      return;
    }
    if (performance.now() - d.since > LONG_MS) d.failures = 0;
    const ms = delay(d.failures);
    this.#log.line(`init: ${name}: ${how}; starting it again${ms === 0 ? "" : ` in ${ms / 1000} s`}`);
    this.#again(d);
  }

  #again(d: Running): void {
    const ms = delay(d.failures++);
    if (ms === 0) this.#launch(d);
    else setTimeout(() => this.#launch(d), ms);
  }

  /** A message on the notify socket, from whom the kernel says it is (sd_notify(3): lines NAME=value). */
  notified(pid: number, text: string): void {
    const d = this.#all.find((r) => r.known?.pid === pid);
    if (!d) return;
    for (const line of text.split("\n")) {
      if (line === "WATCHDOG=1") d.beat = performance.now();
      else if (line === "READY=1" && !d.ready) {
        d.ready = true;
        this.#log.line(`init: ${d.description.name}: ready`);
      }
    }
  }

  #silence(): void {
    for (const d of this.#all) {
      if (d.beat === undefined || !d.pidfd || performance.now() - d.beat < SILENCE_MS) continue;
      this.#log.line(`init: ${d.description.name}: silent for ${SILENCE_MS / 1000} s; killing it`);
      d.beat = undefined;
      kill(d.pidfd, SIGKILL);
    }
  }

  /** All of them run, or ended so recently that they will again: for the hardware watchdog. */
  healthy(): boolean {
    return this.#stopping || this.#all.every((d) => d.pidfd !== undefined || delay(d.failures) < 10_000);
  }

  /** Tell them to end; resolves when all have, or `ms` are over. */
  async stop(ms: number): Promise<void> {
    this.#stopping = true;
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    const up = this.#all.filter((d) => d.pidfd);
    for (const d of up) kill(d.pidfd!, SIGTERM);
    await Promise.race([Promise.all(up.map((d) => d.over)), late]);
    clearTimeout(timer);
  }
}
