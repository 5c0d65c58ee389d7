// Where PID 1 says things: the console at once, the data partition as soon as there is one. Neither may ever hold
// PID 1 up: the console is written without waiting, and both are bounded.
import { readFileSync } from "node:fs";
import { AT_FDCWD, O_NOCTTY, O_NONBLOCK, O_WRONLY, openat } from "../sys/calls.ts";
import { Console, Journal } from "../sys/journal.ts";
import { attempt } from "../sys/now.ts";

/** Where the original keeps its logs on a device. */
const LOGS = "/data/logs";
/** Bytes that wait for a slow console, and for the data partition. */
const WAITING_MAX = 256 * 1024;
const LIMITS = { fileBytes: 1 << 20, files: 4 };
/** A line that a daemon's own journal has written to its own file already (src/lib/log.ts). */
const IN_A_JOURNAL = /^\d{4}-\d\d-\d\dT\S+ \[\d+\] </;
const TCSBRK = 0x5409; // asm-generic/ioctls.h: with 1, wait until all output has been sent

/** Seconds from the kernel's start to this process', so that our lines stand beside the kernel's. */
const started = Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) - performance.now() / 1000;
const stamp = (): string => `[${(started + performance.now() / 1000).toFixed(6).padStart(12)}]`;

export class Log {
  readonly #descriptor: number;
  readonly #console: Console | undefined;
  #journal: Journal | undefined;
  /** Lines from before the data partition. */
  #early: string[] = [];
  #earlySize = 0;

  constructor(path = "/dev/console") {
    this.#descriptor = attempt(openat(AT_FDCWD, path, O_WRONLY | O_NOCTTY | O_NONBLOCK));
    if (this.#descriptor >= 0) this.#console = new Console(this.#descriptor, WAITING_MAX);
  }

  /** One line of init's own. */
  line(text: string): void {
    this.#console?.put(`${stamp()} ${text}\n`);
    if (this.#journal) this.#journal.info(text);
    else if (this.#earlySize + text.length <= WAITING_MAX) {
      this.#early.push(text);
      this.#earlySize += text.length;
    }
  }

  /** One line that a daemon or a helper wrote. */
  forward(text: string): void {
    if (IN_A_JOURNAL.test(text)) this.#console?.put(`${stamp()} ${text}\n`);
    else this.line(text);
  }

  /** The data partition is mounted: from here on lines go to a file as well. */
  toFile(): void {
    this.#journal = new Journal({ name: "cml-init", directory: LOGS, limits: LIMITS });
    for (const text of this.#early.splice(0)) this.#journal.info(text);
  }

  /** Before it is unmounted. */
  closeFile(): void {
    this.#journal?.[Symbol.dispose]();
    this.#journal = undefined;
  }

  /** Let the console take what it was given. */
  said(): void {
    if (this.#descriptor >= 0) attempt({ call: "ioctl", args: [this.#descriptor, TCSBRK, 1] });
  }
}
