// Processes by pid and start time: a pid alone may be another process by now.
import { readFileSync } from "node:fs";
import { pidfdOpen, pidfdSendSignal } from "./calls.ts";
import { ENOENT, ESRCH, isErrno } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";

/** Clock ticks since boot at which the process started (proc_pid_stat(5), field 22); undefined if there is none. */
export function startTime(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]); // the name may hold spaces and ")"
  } catch (e) {
    if (isErrno(e, ENOENT) || isErrno(e, ESRCH)) return undefined;
    throw e;
  }
}

/** A pidfd of exactly that process, or undefined if it is gone or a zombie whose pid stands for it still. */
export function openProcess(pid: number, started: number): Fd | undefined {
  const n = attempt(pidfdOpen(pid));
  if (n < 0) return undefined;
  const fd = new Fd(n);
  if (startTime(pid) === started) return fd; // checked after the open: the pidfd is of this very process
  fd.close();
  return undefined;
}

/** Send a signal; a process that is gone is no error. */
export function kill(pidfd: Fd, signal: number): void {
  const result = attempt(pidfdSendSignal(pidfd.n, signal));
  if (result < 0 && result !== -ESRCH) now(pidfdSendSignal(pidfd.n, signal));
}

export const SIGHUP = 1; // asm-generic/signal.h
export const SIGINT = 2;
export const SIGKILL = 9;
export const SIGTERM = 15;

const PR_SET_DUMPABLE = 4; // linux/prctl.h

/** No core file of this process, and nobody of its own user may look into it: it holds secrets. */
export const undumpable = (): void => void now({ call: "prctl", args: [PR_SET_DUMPABLE, 0] });
