// One line of a log, as the original writes it: "2014-05-23T21:29:11.150495+0200 [pid] <INFO>  message". Pure; who
// writes it where is src/sys/journal.ts.

export type Level = "ERROR" | "WARN" | "INFO" | "DEBUG";

/** As the original's; what is longer is cut. */
export const MESSAGE_MAX = 4096;

/** "<INFO>  ": levels are padded so that messages stand below each other. */
const TAG: Record<Level, string> = {
  ERROR: "<ERROR> ",
  WARN: "<WARN>  ",
  INFO: "<INFO>  ",
  DEBUG: "<DEBUG> ",
};

const two = (n: number): string => String(n).padStart(2, "0");

/** Local time with its offset. The clock has milliseconds; the format has six digits. */
export function timestamp(time: Date, offsetMinutes = -time.getTimezoneOffset()): string {
  const local = new Date(time.getTime() + offsetMinutes * 60_000).toISOString().slice(0, -1);
  const away = Math.abs(offsetMinutes);
  return `${local}000${offsetMinutes < 0 ? "-" : "+"}${two(Math.floor(away / 60))}${two(away % 60)}`;
}

/** Nobody who gets a text into a message can begin a line of the log or move the cursor of who reads it. */
const escaped = (message: string): string =>
  message.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]/g, (c) =>
    c === "\n" ? "\\n" : `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );

/**
 * For lines that somebody else causes, who could make so many of them that nothing else is left in the log: `burst` at
 * once, and one more every `everyMs`.
 */
export class Ration {
  #left: number;
  #at: number;
  #lost = 0;
  constructor(
    readonly burst: number,
    readonly everyMs: number,
    readonly clock: () => number = () => performance.now(),
  ) {
    this.#left = burst;
    this.#at = clock();
  }

  /** The line, after a word on those that were left out before it; undefined: it is one too many. */
  take(line: string): string | undefined {
    const more = Math.floor((this.clock() - this.#at) / this.everyMs);
    this.#at += more * this.everyMs;
    this.#left = Math.min(this.burst, this.#left + more);
    if (this.#left === 0) {
      this.#lost++;
      return undefined;
    }
    this.#left--;
    const lost = this.#lost;
    this.#lost = 0;
    return lost === 0 ? line : `(${lost} lines before this one were left out) ${line}`;
  }
}

/** Without the newline at its end. */
export function line(time: Date, pid: number, level: Level, message: string, offsetMinutes?: number): string {
  const cut = message.length > MESSAGE_MAX ? `${message.slice(0, MESSAGE_MAX - 1)}…` : message;
  return `${timestamp(time, offsetMinutes)} [${pid}] ${TAG[level]}${escaped(cut)}`;
}
