// PID 1. It prepares the ground, finds the data partition, starts the daemons, and then reaps, keeps descriptors,
// pats the watchdog and waits for the end. A crash of its own runtime executes it again ("init again"): same pid,
// same children, same descriptors; /run/cml/init.json says what was done before.
import { existsSync, mkdirSync, readdirSync, watch as watchFolder, writeFileSync } from "node:fs";
import { release } from "node:os";
import { basename } from "node:path";
import { type Ended, launch } from "../run/launch.ts";
import {
  AF_UNIX,
  AT_FDCWD,
  bindUnix,
  cloexecFrom,
  dup3,
  execve,
  fcntl,
  listen,
  MS_NOATIME,
  MS_NODEV,
  MS_NOSUID,
  mkdir,
  mount,
  O_NONBLOCK,
  read,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  SOL_SOCKET,
  setsockopt,
  socket,
  unlinkat,
} from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import { Fd, pipe } from "../sys/fd.ts";
import { accepting } from "../sys/listen.ts";
import { mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { EPOLLIN, watch } from "../sys/poll.ts";
import { receiveMessage } from "../sys/scm.ts";
import { survive } from "../sys/survive.ts";
import { type Uevent, ueventSocket, uevents } from "../sys/uevent.ts";
import { mendClock, renewSeed, seed } from "./clock.ts";
import { DAEMONS, Daemons, MODULES, moreDaemons, NOTIFY, STORE, WANTED } from "./daemons.ts";
import { Disks, LABEL } from "./disk.ts";
import { type Errand, errand } from "./errand.ts";
import { isOpen, keepOpen } from "./kept.ts";
import { Log } from "./log.ts";
import { devicesPresent, Loader, listed, Modules } from "./modules.ts";
import { boot, ground, machine, type Phase } from "./phases.ts";
import { watchButton } from "./power.ts";
import { EXITS_MAX, Reaper, waitStatus } from "./reaper.ts";
import { type End, restart, shutdown } from "./shutdown.ts";
import { loadState, type State, saveState } from "./state.ts";
import { Watchdog } from "./watchdog.ts";

const SELF = "/usr/sbin/init";
const DATA = "/data";
const BASE = "/data/cml";
const SO_PASSCRED = 16; // asm-generic/socket.h
const F_SETFL = 4; // asm-generic/fcntl.h
const BACKLOG = 16;
const LOG_READ = 65_536;
/** How long what other guests may need waits for cmld to ask for it. */
const GUESTS_MS = 15_000;
/** The power button, and keys. */
const BUTTON = ["button", "evdev"];
const WATCHDOGS = ["i6300esb", "iTCO_wdt", "sp5100_tco"];
/** What the data partition is mounted with. */
const FILE_SYSTEM = ["crc32c_generic", "ext4"];
const E2FSCK_UNCORRECTED = 4; // e2fsck(8): 1 and 2 mean repaired
const NOTIFY_MAX = 4096;
/** How long the disk may take to appear: a slow USB disk needs about 10 s. */
const DISK_MS = 30_000;
/** Time to read why, before the machine starts again. */
const FAILED_MS = 10_000;
/** Crashes of init within a minute, after which starting it again is no help. */
const [CRASHES_MAX, CRASHES_MS] = [50, 60_000];
const SEED_MS = 3_600_000;
/** Name of the descriptor that tells waiting daemons to begin. */
const GATE = "init:gate";

export async function main(args: string[]): Promise<number> {
  if (process.pid !== 1) throw new Error("not PID 1: this program starts and ends a whole machine");
  const again = args[0] === "again";
  const sent = again ? undefined : process.env.CML_FIRST_MODULES;
  delete process.env.CML_FIRST_MODULES; // its pipe does not outlive a crash
  const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value}`);
  survive(SELF, ["init", "again"], environment, "init: crashed; executing myself again, signal ");
  await new Init(again, errand(sent)).run();
  return 0;
}

const SIGNALS = [
  ["SIGINT", "reboot"], // Ctrl-Alt-Del
  ["SIGTERM", "power off"],
] as const;

class Init {
  readonly #again: boolean;
  readonly #errand: Errand;
  readonly #state: State = loadState();
  readonly #log = new Log();
  readonly #reaper: Reaper;
  readonly #watchdog = new Watchdog();
  readonly #disks = new Disks();
  readonly #kept = new Map<string, Fd>();
  #known: Modules | undefined;
  /** Drivers of devices; beside them what core0 needs; and what can wait. */
  readonly #drivers: Loader;
  readonly #features: Loader;
  readonly #others: Loader;
  #fileSystem: Promise<void> = Promise.resolve();
  #looked = false;
  #daemons: Daemons | undefined;
  #ending = false;

  constructor(again: boolean, sent: Errand) {
    this.#again = again;
    this.#errand = sent;
    // Before anything is saved: what stands in the file would be lost with the next crash.
    for (const [name, n] of Object.entries(this.#state.descriptors)) {
      if (!isOpen(n)) continue;
      const fd = new Fd(n);
      keepOpen(fd);
      this.#kept.set(name, fd);
    }
    this.#reaper = new Reaper((pid, startTime, end) => {
      const exits = this.#state.exits;
      exits.push([pid, startTime, waitStatus(end)]);
      if (exits.length > EXITS_MAX) exits.shift();
      this.#save();
    });
    const loader = (patient = false) =>
      new Loader(
        () => this.#modules,
        this.#say,
        (pid) => void this.#reaper.end(pid),
        patient,
      );
    this.#drivers = loader();
    this.#features = loader();
    this.#others = loader(true);
    for (const [signal, end] of SIGNALS) process.on(signal, () => this.#end(end, signal));
    process.on("uncaughtException", (e) => this.#say(`init: ${chain(e)}`));
    process.on("unhandledRejection", (e) => this.#say(`init: ${chain(e)}`));
  }

  /** Read when they are needed: other things come first. */
  get #modules(): Modules {
    this.#known ??= Modules.read(`/usr/lib/modules/${release()}`);
    return this.#known;
  }

  readonly #say = (line: string): void => this.#log.line(line);

  #save(): void {
    this.#state.descriptors = Object.fromEntries([...this.#kept].map(([name, fd]) => [name, fd.n]));
    saveState(this.#state);
  }

  async run(): Promise<void> {
    if (!this.#again) this.#say(`init: Linux ${release()}`);
    try {
      if (this.#again) this.#crashed();
      await boot(this.#phases(), {
        done: new Set(this.#state.phases),
        tell: (name) => {
          this.#state.phases.push(name);
          this.#save();
        },
        say: this.#say,
      });
    } catch (e) {
      this.#say(`init: ${chain(e)}: cannot go on; starting the machine again in ${FAILED_MS / 1000} s`);
      await Bun.sleep(FAILED_MS);
      this.#log.said();
      restart();
    }
    this.#reaper.sweep(); // who ended while nobody listened
  }

  #crashed(): void {
    const { crashes } = this.#state;
    crashes.push(Date.now());
    while (crashes.length > CRASHES_MAX) crashes.shift();
    this.#say(`init: executed again after a crash`);
    if (crashes.length === CRASHES_MAX && Date.now() - crashes[0]! < CRASHES_MS)
      throw new Error(`${CRASHES_MAX} crashes within ${CRASHES_MS / 1000} s`);
  }

  #phases(): Phase[] {
    return [
      ...ground,
      { name: "kept descriptors", vital: true, own: true, run: () => this.#adopt() },
      { name: "daemons ahead", vital: true, run: () => this.#ahead() },
      ...machine(this.#say),
      { name: "devices", vital: true, own: true, run: () => this.#devices() },
      { name: "data", vital: true, run: () => this.#data() },
      { name: "clock", vital: false, run: () => this.#clock() },
      // They do not wait for the rest: what needs random numbers waits for the kernel's generator.
      { name: "daemons", vital: true, own: true, run: () => this.#start() },
      { name: "seed", vital: false, own: true, run: () => this.#seed() },
      { name: "log", vital: false, own: true, run: () => this.#log.toFile() },
      { name: "watchdog", vital: false, own: true, run: () => this.#watch() },
    ];
  }

  /** Take over what the init before us kept open, and make what is missing. */
  #adopt(): void {
    const make = (name: string, how: () => Fd): Fd => {
      const found = this.#kept.get(name);
      if (found) return found;
      const fd = how();
      keepOpen(fd);
      this.#kept.set(name, fd);
      return fd;
    };
    const bound = (path: string, type: number) => (): Fd => {
      const fd = new Fd(now(socket(AF_UNIX, type | SOCK_NONBLOCK)));
      attempt(unlinkat(AT_FDCWD, path));
      const mask = process.umask(0o177);
      now(bindUnix(fd.n, path));
      process.umask(mask);
      return fd;
    };
    const ends = this.#kept.has("init:log") ? undefined : pipe();
    const log = make("init:log", () => ends!.read);
    make("init:log-in", () => ends!.write);
    const notify = make("init:notify", bound(NOTIFY, SOCK_DGRAM));
    now(setsockopt(notify.n, SOL_SOCKET, SO_PASSCRED, 1));
    const store = make("init:store", bound(STORE, SOCK_SEQPACKET));
    now(listen(store.n, BACKLOG));
    this.#save();

    this.#readLog(log);
    watch(notify, EPOLLIN, () => {
      for (;;) {
        const got = receiveMessage(notify, NOTIFY_MAX);
        if (got === "later" || got === "closed") return;
        for (const fd of got.descriptors) fd.close();
        this.#daemons?.notified(got.pid ?? 0, Buffer.from(got.bytes).toString());
      }
    });
    const host = {
      kept: this.#kept,
      save: () => this.#save(),
      exitOf: (pid: number, startTime: number) =>
        this.#state.exits.findLast((e) => e[0] === pid && e[1] === startTime)?.[2],
      log: this.#say,
    };
    // Loaded when somebody asks: the protocol's tables would hold up the boot.
    accepting(store, (connection) => {
      void import("./store.ts").then(({ Store }) => new Store(host).serve(connection));
    });
  }

  /** What daemons and helpers write, line by line. */
  #readLog(from: Fd): void {
    now(fcntl(from.n, F_SETFL, O_NONBLOCK));
    const bytes = mem(LOG_READ);
    const decoder = new TextDecoder();
    let rest = "";
    watch(from, EPOLLIN, () => {
      const n = attempt(read(from.n, bytes));
      if (n <= 0) return;
      const lines = (rest + decoder.decode(bytes.subarray(0, n), { stream: true })).split("\n");
      rest = lines.pop()!.slice(-LOG_READ);
      for (const line of lines) if (line.trim() !== "") this.#log.forward(line);
    });
  }

  /** Run a helper program to its end; what it says goes to the log. */
  async #tool(argv: readonly string[]): Promise<Ended> {
    const log = this.#kept.get("init:log-in")!.n;
    const child = launch([
      dup3(log, 1),
      dup3(log, 2),
      cloexecFrom(3),
      execve(argv[0]!, argv, ["PATH=/usr/sbin", "LC_ALL=C.UTF-8"]),
    ]);
    child.pidfd.close();
    const end = this.#reaper.end(child.pid);
    await child.started();
    return end;
  }

  /** Drivers for what is there, and from now on for what comes. */
  #devices(): void {
    const heard = ueventSocket(); // before the look around: nothing is missed in between
    uevents(
      heard,
      (e) => this.#event(e),
      () => this.#look(),
    );
    this.#look();
    for (const name of readdirSync("/sys/class/input")) this.#button(name);
  }

  /** Load drivers for every device that is there; disks tell of themselves when theirs has found them. */
  #look(): void {
    const drivers = new Set(devicesPresent().flatMap((m) => this.#modules.drivers(m)));
    // In a virtual machine everything that core0 needs is on one bus; what else it has can wait (an idle IDE
    // controller costs as much as all of that).
    const virtual = drivers.has("virtio_pci");
    const { fileSystem, disk, core } = this.#errand;
    if (virtual)
      void this.#drivers.load(["virtio_pci", ...[...drivers].filter((d) => d.startsWith("virtio"))], disk);
    else void this.#drivers.load([...drivers]);
    void this.#disks.scan();
    if (this.#looked || existsSync(`${MODULES}/guests`)) return; // by us, or by the init that crashed
    this.#looked = true;
    this.#fileSystem = this.#features.load(FILE_SYSTEM, fileSystem);
    const forCore0 = this.#features.load(listed("core"), core);
    void this.#ready("core", forCore0);
    // Whoever presses the button does not wait for guests, and a watchdog watches core0's start.
    void this.#others.load([...BUTTON, ...WATCHDOGS.filter((name) => drivers.has(name))], forCore0);
    const asked = this.#asked();
    if (virtual) void this.#others.load([...drivers], asked);
    void this.#ready("guests", this.#others.load(listed("guests"), asked));
  }

  /** When cmld has started core0, and asks for more (src/cmld/kernel.ts): whoever loads modules stops every processor again
   * and again. */
  #asked(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    mkdirSync(MODULES, { recursive: true, mode: 0o755 });
    const watcher = watchFolder(MODULES, (_event, name) => name === WANTED && resolve());
    const timer = setTimeout(resolve, GUESTS_MS);
    if (existsSync(`${MODULES}/${WANTED}`)) resolve(); // an init before us was asked
    return promise.finally(() => {
      clearTimeout(timer);
      watcher.close();
    });
  }

  /** Tell cmld that these modules are loaded; core0 also needs its console's driver, and its network cards'. */
  async #ready(what: "core" | "guests", loaded: Promise<void>): Promise<void> {
    await loaded;
    await this.#drivers.idle();
    mkdirSync(MODULES, { recursive: true, mode: 0o755 });
    writeFileSync(`${MODULES}/${what}`, "");
  }

  #event(e: Uevent): void {
    const modalias = e.values.get("MODALIAS");
    if (e.action === "add" && modalias !== undefined) {
      const drivers = this.#modules.drivers(modalias);
      if (drivers.length > 0) void this.#drivers.load(drivers);
    }
    this.#disks.event(e);
    const device = e.values.get("DEVNAME") ?? "";
    if (e.action === "add" && device.startsWith("input/event")) this.#button(basename(device));
    if (e.action === "add" && device === "watchdog") this.#watch();
  }

  #button(name: string): void {
    if (name.startsWith("event")) watchButton(name, () => this.#end("power off", "power button"));
  }

  async #data(): Promise<void> {
    const { promise: late, reject } = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => reject(new Error(`no partition labelled ${LABEL} within ${DISK_MS / 1000} s`)),
      DISK_MS,
    );
    const { device, clean } = await Promise.race([this.#disks.found, late]);
    clearTimeout(timer);
    // As e2fsck itself: a file system that was unmounted in order and knows of no error needs no look.
    const checked = clean ? "clean" : await this.#check(device);
    await this.#fileSystem;
    now(mount(device, DATA, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME));
    this.#say(`init: data partition ${device}: ${checked}`);
    now(mkdir(BASE, 0o755));
  }

  async #check(device: string): Promise<string> {
    this.#say(`init: data partition ${device}: was not unmounted in order; checking it`);
    const { status = 255 } = await this.#tool(["/usr/sbin/e2fsck", "-p", device]);
    if (status >= E2FSCK_UNCORRECTED)
      throw new Error(`${device}: e2fsck could not repair it, exit status ${status}`);
    return status === 0 ? "checked, clean" : "checked, repaired";
  }

  #clock(): void {
    const said = mendClock(DATA);
    if (said !== undefined) this.#say(`init: ${said}`);
  }

  #seed(): void {
    if (!this.#again) this.#say(`init: random numbers: ${seed(BASE)}`);
    setInterval(() => renewSeed(BASE), SEED_MS);
  }

  #watch(): void {
    if (this.#watchdog.start(() => this.#daemons?.healthy() ?? true))
      this.#say("init: the watchdog is watching");
  }

  /** cmld loads while the data partition is looked for. */
  #ahead(): void {
    const { read, write } = pipe();
    using _read = read; // the child has its own
    keepOpen(write);
    this.#kept.set(GATE, write);
    this.#save();
    this.#theDaemons().ahead(read);
  }

  #start(): void {
    const gate = this.#kept.get(GATE);
    this.#theDaemons().start(gate);
    if (!gate) return;
    this.#kept.delete(GATE);
    gate.close();
    this.#save();
  }

  #theDaemons(): Daemons {
    const pipe = this.#kept.get("init:log-in")!.n;
    this.#daemons ??= new Daemons(
      [...DAEMONS, ...moreDaemons()],
      { state: this.#state, log: this.#log, reaper: this.#reaper, pipe },
      (what) => this.#end(what, "cmld"),
    );
    return this.#daemons;
  }

  #end(end: End, why: string): void {
    if (this.#ending) return;
    this.#ending = true;
    this.#say(`init: ${why}: ${end}`);
    void shutdown(end, {
      log: this.#log,
      daemons: this.#daemons,
      reaper: this.#reaper,
      watchdog: this.#watchdog,
    });
  }
}
