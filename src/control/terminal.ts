// The terminal that somebody sits at, if there is one: secrets read without showing them, raw mode for a command in a
// container. Whatever changes its settings gives them back on every way out: return, error, exit and signal.
import { isUtf8 } from "node:buffer";
import { read } from "node:fs";
import { constants } from "node:os";
import { promisify } from "node:util";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { out } from "../sys/output.ts";
import { undumpable } from "../sys/process.ts";
import { getSettings, raw, type Settings, setSettings, silent } from "../sys/pty.ts";
import { Secret } from "../sys/secret.ts";
import { isTerminal, say } from "./print.ts";

const reading = promisify(read);
const STDIN = 0;
/** More than a terminal's line can hold (N_TTY_BUF_SIZE, drivers/tty/n_tty.c). */
const LINE_MAX = 4096;

export const FATAL = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

/** Standard input with other settings, until disposed. Nothing happens if it is no terminal. */
export class Changed implements Disposable {
  readonly #before = getSettings(STDIN);
  readonly #restore = (): void => this[Symbol.dispose]();
  readonly #killed = (signal: NodeJS.Signals): never => {
    this[Symbol.dispose]();
    if (this.silent) say(""); // the question still stands in the line
    process.exit(128 + constants.signals[signal]);
  };
  #open = false;

  private constructor(
    change: (from: Settings) => Settings,
    readonly silent: boolean,
  ) {
    if (!this.#before) return;
    this.#open = true;
    process.on("exit", this.#restore);
    for (const signal of FATAL) process.on(signal, this.#killed);
    now(setSettings(STDIN, change(this.#before), silent));
  }
  static toRaw(): Changed {
    return new Changed(raw, false);
  }
  static toSilent(): Changed {
    return new Changed(silent, true);
  }
  [Symbol.dispose](): void {
    if (!this.#open || !this.#before) return;
    this.#open = false;
    process.off("exit", this.#restore);
    for (const signal of FATAL) process.off(signal, this.#killed);
    now(setSettings(STDIN, this.#before));
  }
}

/** What we need of a stream's reader. */
interface Reader {
  read(): Promise<{ readonly done: boolean; readonly value?: Uint8Array | undefined }>;
  cancel(): Promise<void>;
}

/**
 * Standard input in lines, or in the pieces in which it comes. Nothing is read before it is asked for; to be disposed,
 * because a program with a read under way does not end.
 */
export class Input implements AsyncDisposable {
  /** `quiet`: standard output is a program's: questions go elsewhere. */
  constructor(readonly quiet = false) {}
  #reader: Reader | undefined;
  #rest: Uint8Array = new Uint8Array(0);
  /** What has come for secrets, so many bytes of it. */
  readonly #typed = mem(LINE_MAX);
  #size = 0;

  /** Undefined at the end. */
  async chunk(): Promise<Uint8Array | undefined> {
    if (this.#rest.length > 0) {
      const rest = this.#rest;
      this.#rest = new Uint8Array(0);
      return rest;
    }
    this.#reader ??= Bun.stdin.stream().getReader() as Reader;
    for (;;) {
      const { value, done } = await this.#reader.read();
      if (done || !value) return undefined;
      if (value.length > 0) return value;
    }
  }

  /** More of standard input behind #typed: by the kernel, because the runtime's streams keep what they have read. False
   * at the end. */
  async #more(): Promise<boolean> {
    const room = this.#typed.subarray(this.#size);
    if (room.length === 0) throw new Error(`a line of more than ${LINE_MAX} bytes`);
    try {
      const { bytesRead } = await reading(STDIN, room, 0, room.length, null);
      this.#size += bytesRead;
      return bytesRead > 0;
    } catch (e) {
      if ((e as { code?: string }).code !== "EAGAIN") throw e;
    }
    const chunk = await this.chunk(); // somebody else has made it non-blocking
    if (!chunk) return false;
    const some = chunk.subarray(0, room.length);
    room.set(some);
    this.#size += some.length;
    this.#rest = chunk.subarray(some.length);
    some.fill(0);
    return true;
  }

  /** A line without its end; at the end of the input what is left, perhaps nothing. What was read is wiped. */
  async #line(): Promise<Secret> {
    for (;;) {
      const end = this.#typed.subarray(0, this.#size).indexOf(10);
      if (end < 0 && (await this.#more())) continue;
      const line = Secret.take(this.#typed.subarray(0, end < 0 ? this.#size : end));
      const used = end < 0 ? this.#size : end + 1;
      this.#typed.copyWithin(0, used, this.#size);
      this.#typed.fill(0, this.#size - used, this.#size);
      this.#size -= used;
      return line;
    }
  }

  /** Ask for a secret. The question goes to standard output, as the original's; to the terminal if that is elsewhere. */
  async secret(question: string): Promise<Secret> {
    undumpable();
    const elsewhere = this.quiet || ((await isTerminal(0)) && !(await isTerminal(1)));
    using _silent = Changed.toSilent(); // before the question: an answer may come at once
    if (elsewhere) await Bun.write(Bun.stderr, question);
    else await out(question);
    const line = await this.#line();
    if (line.lend((bytes) => isUtf8(bytes) && !bytes.includes(0))) return line;
    line[Symbol.dispose]();
    throw new Error("the password is not UTF-8");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#typed.fill(0);
    await this.#reader?.cancel();
  }
}
