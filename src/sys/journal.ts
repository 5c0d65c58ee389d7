// Where a daemon's log lines go: its console (standard output) and a file that is replaced when it is large or a day
// old, of which the newest few are kept.
//
// Neither may stop the daemon. The console is opened a second time without blocking (the original descriptor may be
// shared with a shell); what it does not take waits in a bounded list, of which the oldest lines are given up first.
// The file is written at once, so that a killed daemon's last words are there; a full disk costs lines and no more.
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { type Level, line, timestamp } from "../lib/log.ts";
import {
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  O_APPEND,
  O_NOCTTY,
  O_NONBLOCK,
  O_WRONLY,
  openat,
  write,
} from "./calls.ts";
import { EAGAIN } from "./error.ts";
import { Fd } from "./fd.ts";
import { lasting } from "./mem.ts";
import { attempt } from "./now.ts";
import { EPOLLOUT, type Watch, watch } from "./poll.ts";

export interface Limits {
  /** Bytes after which a new file begins. */
  readonly fileBytes: number;
  /** Files that are kept, the current one included. */
  readonly files: number;
  /** Bytes that wait for a slow console. */
  readonly waiting: number;
}
export const LIMITS: Limits = { fileBytes: 4 << 20, files: 8, waiting: 256 << 10 };
/** The original begins a new file every 24 hours. */
const FILE_MS = 24 * 3600 * 1000;

/** A descriptor that takes text when it can, and never makes us wait. */
export class Console {
  readonly #fd: Fd;
  readonly #isSocket: boolean;
  #waiting: Uint8Array<ArrayBuffer>[] = [];
  #bytes = 0;
  #lost = 0;
  #watch: Watch | undefined;

  constructor(
    descriptor: number,
    readonly limit: number,
  ) {
    this.#isSocket = fstatSync(descriptor).isSocket();
    const again = attempt(
      openat(-100, `/proc/self/fd/${descriptor}`, O_WRONLY | O_NONBLOCK | O_APPEND | O_NOCTTY),
    );
    // A socket cannot be opened again, but can be told not to wait with each send.
    this.#fd = new Fd(this.#isSocket || again < 0 ? descriptor : again);
    if (again < 0 && !this.#isSocket) throw new Error(`descriptor ${descriptor} cannot be opened again`);
  }

  put(text: string): void {
    const bytes = lasting(Buffer.from(text));
    while (this.#bytes + bytes.length > this.limit && this.#waiting.length > 0) {
      this.#bytes -= this.#waiting.shift()!.length;
      this.#lost++;
    }
    this.#waiting.push(bytes);
    this.#bytes += bytes.length;
    if (!this.#watch) this.#flush();
  }

  /** What waits is lost. */
  close(): void {
    this.#watch?.[Symbol.dispose]();
    this.#fd.close();
  }

  #send(bytes: Uint8Array): number {
    return attempt(
      this.#isSocket
        ? { call: "sendto", args: [this.#fd.n, bytes, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL, null, 0] }
        : write(this.#fd.n, bytes),
    );
  }

  #flush(): void {
    for (let first = this.#waiting[0]; first; first = this.#waiting[0]) {
      const n = this.#send(first);
      if (n === -EAGAIN) {
        this.#watch ??= watch(this.#fd, EPOLLOUT, () => this.#flush());
        return;
      }
      // A console that is gone takes everything.
      if (n < 0 || n === first.length) this.#waiting.shift();
      else this.#waiting[0] = lasting(first.subarray(n));
      this.#bytes -= n < 0 ? first.length : n;
    }
    this.#watch?.[Symbol.dispose]();
    this.#watch = undefined;
    if (this.#lost === 0) return;
    const lost = this.#lost;
    this.#lost = 0;
    this.put(`… ${lost} lines lost: the console was too slow\n`);
  }
}

/** `<directory>/<name>.<time>`, with `<name>.current` naming the newest. */
class File {
  #fd = -1;
  #bytes = 0;
  #since = 0;

  constructor(
    readonly directory: string,
    readonly name: string,
    readonly limits: Limits,
  ) {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    this.#begin(new Date());
  }

  put(text: string, now: Date): void {
    if (this.#bytes >= this.limits.fileBytes || now.getTime() - this.#since >= FILE_MS) this.#begin(now);
    if (this.#fd < 0) return;
    try {
      this.#bytes += writeSync(this.#fd, text);
    } catch {
      this.#bytes += text.length; // a full disk: this line is lost, the next one is tried again
    }
  }

  #begin(now: Date): void {
    const before = this.#fd;
    try {
      const path = this.#fresh(timestamp(now));
      this.#fd = openSync(path, "ax", 0o640);
      const link = join(this.directory, `.${this.name}.current.new`);
      rmSync(link, { force: true });
      symlinkSync(path, link);
      renameSync(link, join(this.directory, `${this.name}.current`));
      if (before >= 0) closeSync(before);
      this.#prune(basename(path));
    } catch (e) {
      if (before < 0) throw e;
      this.#fd = before; // go on in the old one
    }
    this.#bytes = 0;
    this.#since = now.getTime();
  }

  #fresh(time: string): string {
    const taken = new Set(readdirSync(this.directory));
    for (let n = 0; ; n++) {
      const name = `${this.name}.${time}${n === 0 ? "" : `-${n}`}`;
      if (!taken.has(name)) return join(this.directory, name);
    }
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  #prune(current: string): void {
    const old = logFiles(this.directory, this.name).filter((f) => f !== current);
    for (const f of old.slice(0, Math.max(0, old.length - (this.limits.files - 1))))
      rmSync(join(this.directory, f), { force: true });
  }
}

/** The regular files of a daemon's log, oldest first. */
export function logFiles(directory: string, name: string): string[] {
  const found: { file: string; at: number }[] = [];
  for (const entry of readdirSync(directory, { withFileTypes: true }))
    if (entry.isFile() && entry.name.startsWith(`${name}.`))
      found.push({ file: entry.name, at: statSync(join(directory, entry.name)).mtimeMs });
  return found.sort((a, b) => a.at - b.at || (a.file < b.file ? -1 : 1)).map((f) => f.file);
}

export interface Log {
  error(message: string): void;
  warn(message: string): void;
  info(message: string): void;
  debug(message: string): void;
}

export interface Options {
  /** "cml-daemon"; with a directory, or the lines go to the console alone. */
  readonly name: string;
  readonly directory?: string;
  /** A descriptor, or none. */
  readonly console?: number;
  readonly debug?: boolean;
  readonly limits?: Partial<Limits>;
}

/** Throws if the directory cannot be written to. */
export class Journal implements Log, Disposable {
  readonly #sinks: { put(text: string, now: Date): void; close(): void }[] = [];
  readonly #debug: boolean;

  constructor(options: Options) {
    const limits = { ...LIMITS, ...options.limits };
    this.#debug = options.debug ?? false;
    if (options.console !== undefined) this.#sinks.push(new Console(options.console, limits.waiting));
    if (options.directory !== undefined) this.#sinks.push(new File(options.directory, options.name, limits));
  }

  #put(level: Level, message: string): void {
    const now = new Date();
    const text = `${line(now, process.pid, level, message)}\n`;
    for (const sink of this.#sinks) sink.put(text, now);
  }

  [Symbol.dispose](): void {
    for (const sink of this.#sinks.splice(0)) sink.close();
  }

  error(message: string): void {
    this.#put("ERROR", message);
  }
  warn(message: string): void {
    this.#put("WARN", message);
  }
  info(message: string): void {
    this.#put("INFO", message);
  }
  debug(message: string): void {
    if (this.#debug) this.#put("DEBUG", message);
  }
}
