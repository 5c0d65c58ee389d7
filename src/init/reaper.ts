// The only wait() of PID 1: every child and every orphan of the machine is reaped here, at once. How orphans ended
// is kept for a while: a cmld that starts asks about the containers of the one before.
import type { Ended } from "../run/launch.ts";
import { mem } from "../sys/mem.ts";
import { attempt } from "../sys/now.ts";
import { startTime } from "../sys/process.ts";

const [P_ALL, P_PID, WEXITED, WNOHANG, WNOWAIT, WALL] = [0, 1, 4, 1, 0x1000000, 0x40000000]; // linux/wait.h
const CLD_EXITED = 1; // asm-generic/siginfo.h

/** Ends of orphans that are remembered. */
export const EXITS_MAX = 256;

/** As wait(2) encodes it. */
export const waitStatus = (e: Ended): number => (e.signal ?? 0) | ((e.status ?? 0) << 8);

export class Reaper {
  readonly #waiting = new Map<number, (end: Ended) => void>();
  readonly #orphan: (pid: number, startTime: number, end: Ended) => void;
  readonly #idle: (() => void)[] = [];

  constructor(orphan: (pid: number, startTime: number, end: Ended) => void) {
    this.#orphan = orphan;
    process.on("SIGCHLD", () => this.sweep());
  }

  /** How our own child ended. Call it in the same turn as the launch. */
  end(pid: number): Promise<Ended> {
    return new Promise((resolve) => this.#waiting.set(pid, resolve));
  }

  /** Resolves when PID 1 has no child left. */
  alone(): Promise<void> {
    return new Promise((resolve) => {
      this.#idle.push(resolve);
      this.sweep();
    });
  }

  /** Signals coalesce: take all that have ended, every time. */
  sweep(): void {
    const info = mem(128); // siginfo_t
    const view = new DataView(info.buffer);
    for (;;) {
      info.fill(0);
      const left = attempt({
        call: "waitid",
        args: [P_ALL, 0, info, WEXITED | WNOHANG | WNOWAIT | WALL, null],
      });
      if (left < 0) {
        for (const resolve of this.#idle.splice(0)) resolve(); // ECHILD
        return;
      }
      const pid = view.getInt32(16, true);
      if (pid === 0) return;
      const value = view.getInt32(24, true);
      const end: Ended = view.getInt32(8, true) === CLD_EXITED ? { status: value } : { signal: value };
      const started = startTime(pid) ?? 0; // it is a zombie still: its pid is its own
      attempt({ call: "waitid", args: [P_PID, pid, info, WEXITED | WNOHANG | WALL, null] });
      const waiting = this.#waiting.get(pid);
      this.#waiting.delete(pid);
      if (waiting) waiting(end);
      else this.#orphan(pid, started, end);
    }
  }
}
