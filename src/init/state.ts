// What PID 1 must know after its own crash: one file below /run, replaced whole at every change. Everything in it is
// checked against the kernel when it is read: a descriptor that is not open, a process that is another one by now,
// does not count.
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { ENOENT, isErrno } from "../sys/error.ts";

export const RUN = "/run/cml";
const FILE = `${RUN}/init.json`;
const VERSION = 1;

export interface Daemon {
  readonly pid: number;
  readonly startTime: number;
}

export interface State {
  version: number;
  /** Names of boot phases that are done. */
  phases: string[];
  /** Descriptors that stay open across execve, by name: init's own begin with "init:". */
  descriptors: Record<string, number>;
  daemons: Record<string, Daemon>;
  /** How orphans ended: pid, start time, wait status; oldest first. */
  exits: [pid: number, startTime: number, status: number][];
  /** When init was executed again, milliseconds since boot. */
  crashes: number[];
}

export function loadState(): State {
  const fresh: State = { version: VERSION, phases: [], descriptors: {}, daemons: {}, exits: [], crashes: [] };
  try {
    const found = JSON.parse(readFileSync(FILE, "utf8")) as State;
    return found.version === VERSION ? found : fresh;
  } catch (e) {
    if (isErrno(e, ENOENT)) return fresh;
    throw new Error(`reading ${FILE}`, { cause: e });
  }
}

export function saveState(state: State): void {
  mkdirSync(RUN, { recursive: true, mode: 0o711 });
  writeFileSync(`${FILE}.new`, JSON.stringify(state), { mode: 0o600 });
  renameSync(`${FILE}.new`, FILE);
}
