// The terminal that somebody sits at, if there is one: secrets read without showing them, raw mode for a command in a
// container. Whatever changes its settings gives them back on every way out: return, error, exit and signal.
import { isUtf8 } from "node:buffer";
import { constants } from "node:os";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { out } from "../sys/output.ts";
import { undumpable } from "../sys/process.ts";
import { getSettings, raw, type Settings, setSettings, silent } from "../sys/pty.ts";
import { Secret } from "../sys/secret.ts";
import { isTerminal, say } from "./print.ts";

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

  /** Without its end of line; at the end of the input what is left, perhaps nothing. What was read is wiped. */
  async line(): Promise<Uint8Array> {
    let line: Uint8Array = mem(0);
    for (;;) {
      const chunk = await this.chunk();
      if (!chunk) return line;
      const end = chunk.indexOf(10);
      const part = end < 0 ? chunk : chunk.subarray(0, end);
      if (line.length + part.length > LINE_MAX) throw new Error(`a line of more than ${LINE_MAX} bytes`);
      const longer = mem(line.length + part.length);
      longer.set(line);
      longer.set(part, line.length);
      line.fill(0);
      part.fill(0);
      line = longer;
      if (end >= 0) {
        this.#rest = chunk.subarray(end + 1);
        return line;
      }
    }
  }

  /** Ask for a secret. The question goes to standard output, as the original's; to the terminal if that is elsewhere. */
  async secret(question: string): Promise<Secret> {
    undumpable();
    const elsewhere = this.quiet || ((await isTerminal(0)) && !(await isTerminal(1)));
    using _silent = Changed.toSilent(); // before the question: an answer may come at once
    if (elsewhere) await Bun.write(Bun.stderr, question);
    else await out(question);
    const line = Secret.take(await this.line());
    if (line.lend((bytes) => isUtf8(bytes) && !bytes.includes(0))) return line;
    line[Symbol.dispose]();
    throw new Error("the password is not UTF-8");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reader?.cancel();
  }
}
