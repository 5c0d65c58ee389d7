// Whether the machine's clock may be believed (device.conf: ntp_server; none, nobody is asked). Who sets it is core0 or a
// container that may; we only look. When it has been moved by a minute or more, the server is asked, and if it is more
// than an hour off, that is said in the log and recorded. Nothing is decided by it, and we never set the clock.
import { uptime } from "node:os";
import { chain } from "../sys/error.ts";
import type { Auditor } from "./audit/audit.ts";

/** isolation.md 11: how often we look, what counts as moved, and as off. */
const LOOK_MS = 11 * 60_000;
const [MOVED_S, OFF_S] = [60, 3600];

export interface Surroundings {
  readonly server: string;
  /** Seconds by which the server is ahead. */
  ask(server: string): Promise<number>;
  readonly audit: Pick<Auditor, "record"> | undefined;
  warn(line: string): void;
  /** When the machine was started, by its clock: seconds since 1970. */
  started?(): number;
}

const started = (): number => Date.now() / 1000 - uptime();

export class Clock implements Disposable {
  #base: number;
  #failed = false;
  #asking: Promise<void> | undefined;
  readonly #timer: Timer | undefined;

  constructor(readonly around: Surroundings) {
    this.#base = this.#now();
    if (around.server !== "") this.#timer = setInterval(() => void this.look(true), LOOK_MS);
  }

  #now(): number {
    return (this.around.started ?? started)();
  }

  /** Resolves when the server, if it had to be asked, has answered or not. One that has not answered is asked `again`
   * when it is time, not at every start of a container. */
  look(again = false): Promise<void> {
    if (this.#failed && !again) return Promise.resolve();
    if (this.around.server === "" || Math.abs(this.#now() - this.#base) < MOVED_S) return Promise.resolve();
    this.#asking ??= this.#compare().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  async #compare(): Promise<void> {
    const { server, ask, audit, warn } = this.around;
    const [before, base] = [this.#base, this.#now()];
    try {
      const offset = await ask(server);
      this.#base = base;
      this.#failed = false;
      if (Math.abs(offset) <= OFF_S) return;
      warn(
        `the clock is ${Math.round(-offset)} s ahead of ${server}, and was moved by ${Math.round(base - before)} s`,
      );
      audit?.record("FSA", "GENERIC", "time-out-of-trusted-range", undefined, { offset: Math.round(offset) });
    } catch (e) {
      this.#failed = true;
      warn(`comparing the time with ${server}: ${chain(e)}`);
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
