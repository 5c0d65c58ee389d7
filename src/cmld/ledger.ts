// Everything that a container start acquires, as values in a file under /run/cml/ledger: written before it is
// acquired, so that whoever reads the file later (this cmld, or the next one) can release it. A ledger is one JSON
// value per line: first its head, then resources, then facts about the running container.
import {
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { deactivate } from "../run/mapper.ts";
import { remove as removeGroup } from "../sys/cgroup.ts";
import { chain, ENOENT, isErrno } from "../sys/error.ts";
import { ended } from "../sys/poll.ts";
import { kill, openProcess, SIGKILL } from "../sys/process.ts";
import { type FifoResource, removeSource } from "./fifos.ts";
import type { DevicesResource } from "./modules/devices.ts";
import { type NetworkResource, networkReleases } from "./network/router.ts";

/** Grows when an entry changes its meaning: an older cmld refuses a newer ledger with a sentence. */
export const LEDGER_VERSION = 3;

/** How a thing outside our own descriptors is found again. Releasing what is not there is no error. */
export type Resource =
  | { readonly kind: "cgroup"; readonly path: string }
  | NetworkResource
  | { readonly kind: "process"; readonly pid: number; readonly startTime: number }
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "mapper"; readonly name: string }
  | DevicesResource
  | FifoResource;

export interface Owned {
  /** Write `resource` down, then do `how`. It is released in reverse order, whatever happens. */
  acquire<T>(resource: Resource, how: () => T): T;
  /** Something that ends with this process anyway (a descriptor): closed in reverse order. */
  use<T extends Disposable>(value: T): T;
  /** It is gone, or somebody else's now: nobody releases it. */
  forget(resource: Resource): void;
  /** Resources of one kind, in the order they were acquired: what a new cmld adopts. */
  all<K extends Resource["kind"]>(kind: K): Extract<Resource, { kind: K }>[];
}

/** What a later cmld must know to adopt a running container. */
export interface Running {
  readonly pid: number;
  readonly startTime: number;
  /** Seconds since 1970. */
  readonly since: number;
  readonly state: string;
}

interface Head {
  readonly version: number;
  readonly uuid: string;
  readonly guestos: string;
  readonly guestosVersion: number;
  readonly uidStart: number;
}

type Line =
  | { readonly head: Head }
  | { readonly own: Resource }
  | { readonly gone: Resource }
  | { readonly running: Running };

/** Lines that say nothing any more, before the file is written anew: devices come and go for years. */
const STALE_MAX = 64;

/** How each kind is released. */
const releases: { [K in Resource["kind"]]: (r: Extract<Resource, { kind: K }>) => void | Promise<void> } = {
  ...networkReleases,
  cgroup: (r) => removeGroup(r.path),
  async process(r) {
    const pidfd = openProcess(r.pid, r.startTime);
    if (!pidfd) return;
    kill(pidfd, SIGKILL);
    await ended(pidfd);
    pidfd.close();
  },
  file: (r) => rmSync(r.path, { force: true }),
  mapper: (r) => deactivate(r.name),
  fifo: removeSource,
  devices(r) {
    for (const path of [r.file, `${r.file}.new`]) rmSync(path, { force: true });
  },
};

const release = (r: Resource): void | Promise<void> =>
  (releases[r.kind] as (r: Resource) => void | Promise<void>)(r);

export class Ledger implements Owned {
  readonly #path: string;
  #file: number;
  readonly #owned: (Resource | Disposable)[] = [];
  #running: Running | undefined;
  #stale = 0;

  #head: Head;

  private constructor(path: string, head: Head, flags: "a" | "ax") {
    this.#path = path;
    this.#head = head;
    this.#file = openSync(path, flags, 0o600);
  }

  /** A new ledger for a start; one that is there already is an error: see finish(). */
  static open(directory: string, head: Omit<Head, "version">): Ledger {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const ledger = new Ledger(join(directory, head.uuid), { version: LEDGER_VERSION, ...head }, "ax");
    try {
      ledger.#write({ head: ledger.head });
    } catch (e) {
      closeSync(ledger.#file);
      unlinkSync(ledger.#path);
      throw e;
    }
    return ledger;
  }

  /** Try once more to release what an earlier start of this container could not. */
  static async finish(directory: string, uuid: string, log: (line: string) => void): Promise<void> {
    const path = join(directory, uuid);
    if (existsSync(path)) await Ledger.#read(path, log)?.ledger.release();
  }

  /** What an earlier cmld left: each ledger with the container it says is running. */
  static async load(
    directory: string,
    log: (line: string) => void,
  ): Promise<{ ledger: Ledger; running?: Running }[]> {
    let names: string[];
    try {
      names = readdirSync(directory);
    } catch (e) {
      if (isErrno(e, ENOENT)) return [];
      throw e;
    }
    const found: { ledger: Ledger; running?: Running }[] = [];
    for (const name of names.sort()) {
      const read = Ledger.#read(join(directory, name), log);
      if (read) found.push(read);
    }
    return found;
  }

  static #read(path: string, log: (line: string) => void): { ledger: Ledger; running?: Running } | undefined {
    const name = basename(path);
    const lines = parse(readFileSync(path, "utf8"), (line) => log(`ledger ${name}: not readable: ${line}`));
    const head = lines.find((l) => "head" in l)?.head;
    if (head && head.version > LEDGER_VERSION)
      throw new Error(
        `ledger ${name} has version ${head.version}, this cmld knows ${LEDGER_VERSION}: use the newer cmld`,
      );
    if (!head || head.uuid !== name) {
      log(`ledger ${name}: no head line; nothing was acquired`); // written before anything else
      unlinkSync(path);
      return undefined;
    }
    const ledger = new Ledger(path, head, "a");
    for (const line of lines) {
      if ("own" in line) ledger.#owned.push(line.own);
      if ("gone" in line) ledger.#drop(line.gone);
      if ("running" in line) ledger.#running = line.running;
    }
    return ledger.#running ? { ledger, running: ledger.#running } : { ledger };
  }

  get head(): Head {
    return this.#head;
  }

  /** What the next start of this container owns from its beginning: what release() has left. */
  renew(head: Omit<Head, "version">): void {
    this.#head = { version: LEDGER_VERSION, ...head };
    this.#compact();
  }

  #write(line: Line): void {
    const bytes = Buffer.from(JSON.stringify(line) + "\n");
    const before = fstatSync(this.#file).size;
    if (writeSync(this.#file, bytes) === bytes.length) return;
    ftruncateSync(this.#file, before); // half a line would spoil the next
    throw new Error(`${this.#path}: no space left`);
  }

  acquire<T>(resource: Resource, how: () => T): T {
    this.#write({ own: resource });
    this.#owned.push(resource);
    return how();
  }

  use<T extends Disposable>(value: T): T {
    this.#owned.push(value);
    return value;
  }

  #drop(resource: Resource): boolean {
    const text = JSON.stringify(resource);
    const at = this.#owned.findLastIndex((r) => "kind" in r && JSON.stringify(r) === text);
    if (at >= 0) this.#owned.splice(at, 1);
    return at >= 0;
  }

  forget(resource: Resource): void {
    if (this.#file < 0 || !this.#drop(resource)) return; // released meanwhile
    this.#write({ gone: resource });
    if (++this.#stale >= STALE_MAX) this.#compact();
  }

  /** The same without what is gone, as a file that takes the place of the old one at once. */
  #compact(): void {
    const fresh = `${this.#path}.new`; // one that a crash leaves has no ledger's name, and load() removes it
    const before = this.#file;
    rmSync(fresh, { force: true });
    this.#file = openSync(fresh, "ax", 0o600);
    try {
      this.#write({ head: this.head });
      for (const r of this.#owned) if ("kind" in r) this.#write({ own: r });
      if (this.#running) this.#write({ running: this.#running });
      renameSync(fresh, this.#path);
    } catch (e) {
      closeSync(this.#file);
      this.#file = before;
      rmSync(fresh, { force: true });
      throw e;
    }
    closeSync(before);
    this.#stale = 0;
  }

  /** From here on a later cmld adopts the container instead of releasing it. */
  running(r: Running): void {
    this.#running = r;
    this.#write({ running: r });
  }

  all<K extends Resource["kind"]>(kind: K): Extract<Resource, { kind: K }>[] {
    return this.#owned.filter((r): r is Extract<Resource, { kind: K }> => "kind" in r && r.kind === kind);
  }

  /** Release everything in reverse, and the ledger itself. One failure does not stop the rest; all are reported, and
   * the file stays for whoever tries again: releasing what is gone is no error. What is to be kept stays in it, for the
   * next start (renew()) or another release(); resolves with whether there is any. */
  async release(keep: (r: Resource) => boolean = () => false): Promise<boolean> {
    const failures: unknown[] = [];
    const stays: Resource[] = [];
    let left = false;
    for (let r = this.#owned.pop(); r; r = this.#owned.pop()) {
      if ("kind" in r && keep(r)) {
        stays.unshift(r);
        continue;
      }
      try {
        if ("kind" in r) await release(r);
        else r[Symbol.dispose]();
      } catch (e) {
        failures.push(new Error("kind" in r ? `releasing ${JSON.stringify(r)}` : "closing", { cause: e }));
        if ("kind" in r) left = true;
      }
    }
    const kept = stays.length > 0 && !left; // where something is stuck, the next start begins with all of it
    if (kept) {
      this.#owned.push(...stays);
      this.#running = undefined;
      this.#compact();
    } else {
      closeSync(this.#file);
      this.#file = -1;
      if (!left) unlinkSync(this.#path);
    }
    if (failures.length > 0) throw new Error(failures.map(chain).join("; "));
    return kept;
  }
}

/** Whole lines only: the last one may have been cut by a crash. */
function parse(text: string, bad: (line: string) => void): Line[] {
  const lines: Line[] = [];
  for (const line of text.slice(0, text.lastIndexOf("\n") + 1).split("\n")) {
    if (line === "") continue;
    try {
      lines.push(JSON.parse(line) as Line);
    } catch {
      bad(line);
    }
  }
  return lines;
}
