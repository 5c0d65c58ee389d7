// One container: its state, its hooks in order, release in reverse.

import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { uptime } from "node:os";
import { join } from "node:path";
import { Ration } from "../lib/log.ts";
import { C0 } from "../lib/uuid.ts";
import { haste } from "../run/haste.ts";
import { type Child, collected, type Ended, hasEnded, launch, reap } from "../run/launch.ts";
import { O_DIRECTORY, O_RDONLY, openat, read, SOCK_STREAM, signal } from "../sys/calls.ts";
import { isFrozen, kill as killGroup, settled } from "../sys/cgroup.ts";
import { chain } from "../sys/error.ts";
import { Fd, pair } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { show } from "../sys/op.ts";
import { ended, readable } from "../sys/poll.ts";
import { kill, openProcess, SIGHUP, SIGKILL, startTime } from "../sys/process.ts";
import type { Secret } from "../sys/secret.ts";
import { type ContainerConfig, type GuestOsConfig, shownName } from "./config.ts";
import { isCorrupted, isVolumeOf } from "./keys/crypt.ts";
import { Ledger, type Resource, type Running } from "./ledger.ts";
import type { Host, Module, Process, Start } from "./module.ts";
import { childGroupOf, groupOf, shortOfMemory } from "./modules/cgroups.ts";
import { withoutEffect } from "./pending.ts";
import { program } from "./program.ts";
import { isUp, move, type State } from "./state.ts";

/** core.md 7.2: still BOOTING after this is killed. */
const BOOT_MS = 800_000;
/** Time between the request to stop and the end of patience. */
const STOP_MS = 45_000;
const FREEZE_MS = 5_000;
/** A container that reboots again sooner waits until then. */
const REBOOT_MS = 5_000;
/** Lines in cmld's log that a container may cause at once, and the time for each one more. */
const [LINES, LINE_MS] = [40, 1_500];

export interface StartOptions {
  readonly setup: boolean;
  /** Of its sealed volumes. */
  readonly key?: Secret | undefined;
}

/** What a client may ask of one container; every method rejects with a sentence. */
export interface ContainerLife {
  readonly uuid: string;
  readonly config: ContainerConfig;
  /** undefined: its GuestOS is not installed. */
  readonly guestos: GuestOsConfig | undefined;
  readonly state: State;
  /** Seconds since 1970. */
  readonly created: number;
  /** Seconds since its last start, 0 if it does not run. */
  readonly uptime: number;
  /** pid of its init in our pid namespace, while it is up. */
  readonly pid: number | undefined;
  /** How its init ended last time. */
  readonly exit: Ended | undefined;
  /** Resolves once execve has succeeded; then BOOTING or RUNNING, or SETUP. The key is taken over. */
  start(options: StartOptions): Promise<void>;
  /** Resolves once stopping has begun; a start that is under way is ended. */
  stop(): Promise<void>;
  /** Resolves once it is STOPPED. */
  kill(): Promise<void>;
  freeze(): Promise<void>;
  unfreeze(): Promise<void>;
  /** The program a start would run, one system call a line, without running it. */
  explain(): Promise<string[]>;
}

/** A GuestOS as a container uses it: its configuration and the directory of its images. */
export interface BoundGuestOs {
  readonly config: GuestOsConfig;
  readonly directory: string;
}

/** What the daemon lends to its containers. */
export interface Surroundings {
  readonly host: Host;
  readonly modules: readonly Module[];
  /** The GuestOS to start with now; throws with the reason if there is none. */
  bind(config: ContainerConfig): BoundGuestOs;
  /** Keep a descriptor for a later cmld, take it back, forget it (init's store); absent where there is no store. */
  keep(name: string, fd: Fd): void;
  kept(name: string): Fd | undefined;
  forget(name: string): void;
  /** How a process that is not our child ended, if init knows. */
  exitOf(pid: number, startTime: number): Promise<Ended | undefined>;
  changed(container: Container, from: State, to: State): void;
  log(line: string): void;
}

interface Live {
  readonly start: Start;
  readonly ledger: Ledger;
  readonly process: Process;
  readonly startTime: number;
  /** CLOCK_BOOTTIME, seconds. */
  readonly since: number;
  readonly ours: boolean;
  readonly kept: string[];
  timer?: Timer;
  frozenFrom?: State;
}

/** CLOCK_BOOTTIME in seconds, by sysinfo(2): a list of all containers asks for each. */
const bootTime = (): number => uptime();

export class Container implements ContainerLife {
  #state: State = "STOPPED";
  #config: ContainerConfig;
  #pending: ContainerConfig | undefined;
  #live: Live | undefined;
  #exit: Ended | undefined;
  #why: string | undefined;
  #stopped: (() => void)[] = [];
  /** No start follows a reboot: it is being killed. */
  #halted = false;
  #rebooted = Number.NEGATIVE_INFINITY;
  /** Ends the wait for the freezer: it was told otherwise. */
  #thawed: (() => void) | undefined;
  /** Ends the pause before the start that follows a reboot. */
  #hurry: (() => void) | undefined;
  readonly #ration = new Ration(LINES, LINE_MS);
  /** A start, or an explain(), that is under way. */
  #starting: Promise<unknown> = Promise.resolve();

  constructor(
    readonly uuid: string,
    config: ContainerConfig,
    readonly created: number,
    readonly uidStart: number,
    readonly imageDir: string,
    readonly around: Surroundings,
  ) {
    this.#config = config;
  }

  get config(): ContainerConfig {
    return this.#config;
  }
  get state(): State {
    return this.#state;
  }
  get exit(): Ended | undefined {
    return this.#exit;
  }
  /** Why it ended, in words, if its exit status does not tell. */
  get why(): string | undefined {
    return this.#why;
  }
  get pid(): number | undefined {
    return this.#live?.process.pid;
  }
  get process(): Process | undefined {
    return this.#live?.process;
  }
  get uptime(): number {
    return this.#live ? Math.max(0, Math.floor(bootTime() - this.#live.since)) : 0;
  }
  get guestos(): GuestOsConfig | undefined {
    if (this.#live) return this.#live.start.guestos;
    try {
      return this.around.bind(this.#config).config;
    } catch {
      return undefined; // not installed: shown as "none"
    }
  }
  /** For people: in quotes where it breaks the rule of names. */
  get #name(): string {
    return shownName(this.#config.name);
  }
  get isC0(): boolean {
    return this.uuid === C0;
  }
  /** Its control group, while it is up. */
  get group(): string {
    return groupOf({ host: this.around.host, uuid: this.uuid });
  }
  /** True while a newer configuration waits for the container to stop. */
  get outOfSync(): boolean {
    return this.#pending !== undefined;
  }

  /** Its start has not come to the point where there is an init to speak of. */
  get #unborn(): boolean {
    if (this.#state === "STARTING") return true;
    return (this.#state === "BOOTING" || this.#state === "SETUP") && !this.#live;
  }

  get #frozen(): boolean {
    return this.#state === "FREEZING" || this.#state === "FROZEN";
  }

  /** Take a new configuration: at once if stopped, else when it has stopped. */
  reconfigure(config: ContainerConfig): void {
    if (isUp(this.#state) || this.#state === "REBOOTING") this.#pending = config;
    else this.#config = config;
  }

  #to(state: State): void {
    const from = this.#state;
    this.#state = move(this.#name, from, state);
    if (from === state) return;
    if (from === "FREEZING") this.#thawed?.();
    if (state === "STOPPED" || state === "REBOOTING") {
      if (this.#pending) this.#config = this.#pending;
      this.#pending = undefined;
    }
    this.around.changed(this, from, state);
    if (state === "STOPPED" || state === "ZOMBIE") for (const tell of this.#stopped.splice(0)) tell();
  }

  /** Resolves when the container has no process any more. */
  whenStopped(): Promise<void> {
    if (this.#state === "STOPPED" || this.#state === "ZOMBIE") return Promise.resolve();
    return new Promise((resolve) => this.#stopped.push(resolve));
  }

  #begin(setup: boolean, ledger: Ledger, os: BoundGuestOs, kept: string[], key?: Secret): Start {
    const { around, uuid } = this;
    return {
      uuid,
      name: this.#name,
      isC0: this.isC0,
      setup,
      config: this.#config,
      guestos: os.config,
      osDir: os.directory,
      imageDir: this.imageDir,
      host: around.host,
      uidStart: this.uidStart,
      owned: ledger,
      key,
      keep(name, fd) {
        kept.push(`${uuid}/${name}`);
        around.keep(`${uuid}/${name}`, fd);
      },
      kept(name) {
        const fd = around.kept(`${uuid}/${name}`);
        if (fd) kept.push(`${uuid}/${name}`);
        return fd;
      },
      forget(name) {
        const entry = `${uuid}/${name}`;
        if (kept.includes(entry)) kept.splice(kept.indexOf(entry), 1);
        around.forget(entry);
      },
      booted: () => {
        if (this.#state === "BOOTING") this.#running();
      },
      end: (why) => this.#condemn(why),
      log: (line) => {
        const rationed = this.#ration.take(line);
        if (rationed !== undefined) around.log(`${this.#name}: ${rationed}`);
      },
    };
  }

  /** A start that is under way goes on until it fails by itself: what it must read, it does not get. */
  #condemn(why: string): void {
    this.around.log(`${this.#name}: ${why}: it is stopped`);
    this.#why = why;
    const up = this.#live && isUp(this.#state) && this.#state !== "SHUTDOWN";
    if (up) this.stop().catch((e) => this.around.log(`${this.#name}: ${chain(e)}`));
  }

  #running(): void {
    clearTimeout(this.#live?.timer);
    this.#to("RUNNING");
    this.#note();
  }

  /** Tell a later cmld where we are. */
  #note(): void {
    const live = this.#live;
    if (!live) return;
    const running: Running = {
      pid: live.process.pid,
      startTime: live.startTime,
      since: live.since,
      state: this.#state,
    };
    live.ledger.running(running);
  }

  start({ setup, key }: StartOptions): Promise<void> {
    return this.#startWith(setup, key);
  }

  /** `held`: what a container that reboots still has. */
  async #startWith(setup: boolean, key?: Secret, held?: Ledger): Promise<void> {
    const name = this.#name;
    try {
      if (this.#state === "STARTING") throw new Error(`${name} is STARTING already`);
      this.#to("STARTING");
    } catch (e) {
      key?.[Symbol.dispose]();
      throw e;
    }
    this.#exit = undefined;
    this.#why = undefined;
    const starting = this.#start(setup, key, this.#starting, held);
    this.#starting = starting.catch(() => {});
    return starting;
  }

  async #start(
    setup: boolean,
    key: Secret | undefined,
    before: Promise<unknown>,
    held?: Ledger,
  ): Promise<void> {
    const { around } = this;
    const name = this.#name;
    await before;
    using _first = haste();
    let ledger = held;
    const kept: string[] = [];
    try {
      const os = around.bind(this.#config);
      for (const line of withoutEffect(this.#config, os.config)) around.log(`${name}: ${line}`);
      ledger = await this.#ledger(os, held);
      const s = this.#begin(setup, ledger, os, kept, key);
      const live = await this.#launch(s, ledger, kept);
      this.#live = live;
      this.#note();
      try {
        await this.#started(live);
      } finally {
        this.#watch(live); // only now: its end releases what the hooks have acquired
      }
    } catch (cause) {
      // What failed after execve ends the container; its end releases everything.
      if (this.#live) await this.#kill();
      else {
        for (const entry of kept) around.forget(entry);
        await ledger?.release().catch((e) => around.log(`${name}: ${chain(e)}`));
        key?.[Symbol.dispose]();
        this.#to(isCorrupted(cause) ? "ZOMBIE" : "STOPPED");
      }
      throw new Error(`start ${name}${this.#halted ? ": it was stopped meanwhile" : ""}`, { cause });
    }
  }

  async #ledger(os: BoundGuestOs, held?: Ledger): Promise<Ledger> {
    const directory = join(this.around.host.run, "ledger");
    const head = {
      uuid: this.uuid,
      guestos: os.config.name,
      guestosVersion: os.config.version,
      uidStart: this.uidStart,
    };
    held?.renew(head);
    if (held) return held;
    await Ledger.finish(directory, this.uuid, this.around.log);
    return Ledger.open(directory, head);
  }

  async #started(live: Live): Promise<void> {
    const s = live.start;
    for (const m of this.around.modules) {
      try {
        await hook(m, "started", () => m.started?.(s, live.process));
      } catch (e) {
        if (!hasEnded(live.process.pidfd)) throw e;
        s.log(`it has ended already: ${chain(e)}`); // a short life is no failed start
      }
    }
  }

  async #launch(s: Start, ledger: Ledger, kept: string[]): Promise<Live> {
    const { modules } = this.around;
    for (const m of modules) await hook(m, "prepare", () => m.prepare?.(s));
    s.key?.[Symbol.dispose](); // its volumes are open
    const [ours, theirs] = pair(SOCK_STREAM);
    using gate = ours;
    using far = theirs;
    using group = new Fd(now(openat(-100, childGroupOf(s), O_RDONLY | O_DIRECTORY)));
    const flags = modules.reduce((all, m) => all | (m.namespaces?.(s) ?? 0n), 0n);
    const since = bootTime();
    const child = launch(
      (report) => program(s, modules, { ours: gate.n, theirs: far.n }, report),
      flags,
      group.n,
      undefined,
      s.uidStart,
    );
    const execed = child.started();
    execed.catch(() => {}); // judged below, where it is awaited
    try {
      far.close();
      const started = startTime(child.pid) ?? 0;
      const process: Process = child;
      ledger.acquire({ kind: "process", pid: child.pid, startTime: started }, () => {});
      for (const m of modules) await hook(m, "attach", () => m.attach?.(s, process));
      now(signal(gate.n));
      await atGate(gate, execed);
      for (const m of modules) await hook(m, "ready", () => m.ready?.(s, process));
      this.#to(s.setup ? "SETUP" : "BOOTING");
      now(signal(gate.n));
      await execed;
      return { start: s, ledger, process, startTime: started, since, ours: true, kept };
    } catch (e) {
      await end(child);
      await execed.catch(() => {}); // it holds a descriptor until then
      throw e;
    }
  }

  #watch(live: Live): void {
    if (this.#state === "BOOTING")
      this.#patience(live, BOOT_MS, () => this.#state === "BOOTING", "not booted");
    if (this.#state === "SHUTDOWN") this.#patience(live, STOP_MS, () => true, "not stopped");
    void ended(live.process.pidfd).then(() => this.#ended(live));
  }

  #patience(live: Live, ms: number, still: () => boolean, what: string): void {
    clearTimeout(live.timer);
    live.timer = setTimeout(() => {
      if (!still()) return;
      this.around.log(`${this.#name}: ${what} after ${ms / 1000} s: killed`);
      this.#forced(what);
      killGroup(this.group);
    }, ms);
  }

  async #ended(live: Live): Promise<void> {
    const { around } = this;
    clearTimeout(live.timer);
    this.#exit = live.ours
      ? reap(live.process.pidfd)
      : await around.exitOf(live.process.pid, live.startTime).catch(() => undefined);
    const killed = this.#exit === undefined || this.#exit.signal === SIGKILL;
    if (killed && this.#state !== "SHUTDOWN") this.#why = shortOfMemory(live.start); // not by us
    for (const entry of live.kept) around.forget(entry);
    // reboot(2) inside a pid namespace ends its init by SIGHUP (pid_namespaces(7))
    const wants = () =>
      this.#exit?.signal === SIGHUP &&
      (this.#state === "RUNNING" || this.#state === "BOOTING") &&
      !this.#halted;
    const reboots = wants();
    // Its volumes stay open: nobody has its key, and nobody can be asked for a PIN now.
    const held = await this.#released(live.ledger, (r) => reboots && isVolumeOf(this.uuid, r));
    if (held && !wants()) await this.#released(live.ledger);
    live.process.pidfd.close();
    this.#live = undefined;
    if (wants()) return this.#reboot(held ? live.ledger : undefined);
    this.#to("STOPPED");
  }

  async #released(ledger: Ledger, keep?: (r: Resource) => boolean): Promise<boolean> {
    return await ledger.release(keep).catch((e) => {
      this.around.log(`${this.#name}: ${chain(e)}`);
      return false;
    });
  }

  /** `held` has the volumes that it had, and are open. */
  async #reboot(held: Ledger | undefined): Promise<void> {
    this.#to("REBOOTING");
    const pause = this.#rebooted + REBOOT_MS - performance.now();
    if (pause > 0) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, pause);
      this.#hurry = resolve;
      await promise;
      clearTimeout(timer);
      this.#hurry = undefined;
    }
    this.#rebooted = performance.now();
    if (this.#state === "REBOOTING" && !this.#halted)
      return this.#startWith(false, undefined, held).catch((e) => this.around.log(chain(e)));
    if (held) await this.#released(held);
    if (this.#state === "REBOOTING") this.#to("STOPPED");
  }

  /** Take over a container that an earlier cmld started. */
  async adopt(ledger: Ledger, running: Running, os: BoundGuestOs): Promise<boolean> {
    const pidfd = openProcess(running.pid, running.startTime);
    if (!pidfd) return false;
    const kept: string[] = [];
    const s = this.#begin(running.state === "SETUP", ledger, os, kept);
    const live: Live = {
      start: s,
      ledger,
      process: { pid: running.pid, pidfd },
      startTime: running.startTime,
      since: running.since,
      ours: false,
      kept,
    };
    this.#live = live;
    this.#state = await this.#seen(running.state as State);
    for (const m of this.around.modules)
      await hook(m, "started", () => m.started?.(s, live.process)).catch((e) => s.log(chain(e)));
    this.#watch(live);
    this.around.log(`${this.#name}: adopted, pid ${running.pid}, ${this.#state}`);
    return true;
  }

  /** The state that was noted, unless the group's freezer, which may have been moved since, says otherwise. */
  async #seen(noted: State): Promise<State> {
    const mayFreeze = noted === "RUNNING" || noted === "FREEZING" || noted === "FROZEN";
    if (!mayFreeze) return noted;
    return isFrozen(this.group) && (await settled(this.group, "frozen", 1, FREEZE_MS)) ? "FROZEN" : "RUNNING";
  }

  async stop(): Promise<void> {
    const name = this.#name;
    if (this.#state === "REBOOTING" || this.#unborn) return this.kill(); // nobody to ask
    if (this.#frozen) await this.unfreeze();
    const live = this.#live;
    if (!live || !["RUNNING", "BOOTING", "SETUP"].includes(this.#state))
      throw new Error(`${name} is ${this.#state}: not running`);
    this.#to("SHUTDOWN");
    this.#note();
    this.#patience(live, STOP_MS, () => true, "not stopped");
    let asked = false;
    for (const m of this.around.modules) {
      try {
        asked = (await m.stop?.(live.start, live.process)) || asked;
      } catch (e) {
        this.around.log(`${name}: stop ${m.name}: ${chain(e)}`);
      }
    }
    if (asked) return;
    this.#forced("nobody to ask");
    killGroup(this.group);
  }

  /** It is ended without its consent. */
  #forced(reason: string): void {
    this.around.host.audit?.record("SSA", "CONTAINER_MGMT", "force-stop", this.uuid, { reason });
  }

  async kill(): Promise<void> {
    this.#halted = true;
    this.#hurry?.();
    try {
      if (this.#unborn) killGroup(this.group); // its child, if there is one: the start fails
      await this.#starting;
      await this.#kill();
    } finally {
      this.#halted = false;
    }
  }

  async #kill(): Promise<void> {
    const live = this.#live;
    if (!live) return this.whenStopped();
    if (this.#frozen) await this.unfreeze();
    if (isUp(this.#state) && this.#state !== "STARTING") this.#to("SHUTDOWN");
    kill(live.process.pidfd, SIGKILL);
    killGroup(this.group);
    await this.whenStopped();
  }

  async freeze(): Promise<void> {
    const live = this.#live;
    if (this.#frozen) return;
    if (!live || (this.#state !== "RUNNING" && this.#state !== "SETUP"))
      throw new Error(`${this.#name} is ${this.#state}: cannot freeze`);
    live.frozenFrom = this.#state;
    this.#to("FREEZING");
    writeFileSync(join(this.group, "cgroup.freeze"), "1");
    const { promise: thawed, resolve } = Promise.withResolvers<boolean>();
    this.#thawed = () => resolve(false);
    const frozen = await Promise.race([settled(this.group, "frozen", 1, FREEZE_MS), thawed]);
    if (this.#live !== live || this.state !== "FREEZING")
      throw new Error(`${this.#name} is ${this.#state} before it was frozen`);
    if (frozen) {
      this.#to("FROZEN");
      this.#note();
      return;
    }
    await this.unfreeze();
    throw new Error(`${this.#name}: not frozen after ${FREEZE_MS / 1000} s`);
  }

  async unfreeze(): Promise<void> {
    const live = this.#live;
    if (!live || !this.#frozen) {
      if (this.#state === "RUNNING" || this.#state === "SETUP") return;
      throw new Error(`${this.#name} is ${this.#state}: not frozen`);
    }
    writeFileSync(join(this.group, "cgroup.freeze"), "0");
    await settled(this.group, "frozen", 0, FREEZE_MS);
    if (this.#live !== live) return;
    this.#to(live.frozenFrom ?? "RUNNING");
    this.#note();
  }

  /** Leave STOPPED for ZOMBIE or back: for what can't be used until it is wiped. */
  mark(state: "ZOMBIE" | "STOPPED"): void {
    this.#to(state);
  }

  explain(): Promise<string[]> {
    if (this.#state !== "STOPPED")
      return Promise.reject(new Error(`${this.#name} is ${this.#state}: stop it first`));
    const before = this.#starting;
    const explaining = this.#explain(before);
    this.#starting = explaining.catch(() => {}); // a start waits until this has let go
    return explaining;
  }

  async #explain(before: Promise<unknown>): Promise<string[]> {
    await before;
    const os = this.around.bind(this.#config);
    const ledger = await this.#ledger(os);
    const kept: string[] = [];
    const images = () => (existsSync(this.imageDir) ? readdirSync(this.imageDir) : []);
    const had = new Set(images());
    try {
      const s = this.#begin(false, ledger, os, kept);
      for (const m of this.around.modules) await hook(m, "prepare", () => m.prepare?.(s));
      return program(s, this.around.modules, { ours: 3, theirs: 4 }, 5).map(show);
    } finally {
      for (const entry of kept) this.around.forget(entry);
      await ledger.release();
      // A first start makes the volumes that it mounts; to explain it is to do nothing.
      for (const name of images()) if (!had.has(name)) rmSync(join(this.imageDir, name), { force: true });
    }
  }
}

async function hook(m: Module, what: string, act: () => void | Promise<void> | undefined): Promise<void> {
  try {
    await act();
  } catch (cause) {
    throw new Error(`${what} ${m.name}`, { cause });
  }
}

/** The child's byte at the gate, or the call that kept it from getting there. */
async function atGate(gate: Fd, execed: Promise<void>): Promise<void> {
  await readable(gate);
  if (attempt(read(gate.n, mem(1))) === 1) return;
  await execed; // rejects with the failed call
  throw new Error("the child ended before the gate");
}

async function end(child: Child): Promise<void> {
  kill(child.pidfd, SIGKILL);
  await collected(child.pidfd);
  child.pidfd.close();
}
