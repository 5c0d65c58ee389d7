// The end of the machine, the one place that decides it: daemons stop (cmld stops its containers), whatever is left
// is killed, file systems are unmounted, and the kernel is told to start again or to switch off.
import { readFileSync } from "node:fs";
import { MNT_DETACH, MS_RDONLY, MS_REMOUNT, mount, umount2 } from "../sys/calls.ts";
import { chain, ESRCH } from "../sys/error.ts";
import { attempt, now } from "../sys/now.ts";
import { SIGKILL, SIGTERM } from "../sys/process.ts";
import { renewSeed } from "./clock.ts";
import type { Daemons } from "./daemons.ts";
import type { Log } from "./log.ts";
import type { Reaper } from "./reaper.ts";
import type { Watchdog } from "./watchdog.ts";

export type End = "reboot" | "power off";

// linux/reboot.h
const [MAGIC1, MAGIC2] = [0xfee1dead, 672274793];
const COMMAND = { reboot: 0x01234567, "power off": 0x4321fedc } as const;

/** cmld gives a container 45 s; a little more for what comes after. */
const DAEMONS_MS = 60_000;
const OTHERS_MS = 5_000;
const KILLED_MS = 10_000;

const within = (promise: Promise<unknown>, ms: number): Promise<unknown> =>
  Promise.race([promise, new Promise((resolve) => setTimeout(resolve, ms))]);

export const restart = (): number => now({ call: "reboot", args: [MAGIC1, MAGIC2, COMMAND.reboot, 0] });

/** Mount points of /proc/self/mountinfo text below the directories, innermost first. */
export function mountPoints(mountinfo: string, below: readonly string[]): string[] {
  return mountinfo
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .map((path) =>
      path.replace(/\\([0-7]{3})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 8))),
    )
    .filter((path) => below.some((b) => path === b || path.startsWith(`${b}/`)))
    .reverse();
}

function unmountData(log: Log): void {
  for (const path of mountPoints(readFileSync("/proc/self/mountinfo", "utf8"), ["/data"])) {
    if (attempt(umount2(path, 0)) === 0) continue;
    // Somebody still holds it: what is written is written, and no more may be.
    if (attempt(mount("none", path, "none", MS_REMOUNT | MS_RDONLY)) === 0) {
      log.line(`init: ${path}: busy; made read-only`);
      continue;
    }
    try {
      now(umount2(path, MNT_DETACH));
      log.line(`init: ${path}: busy; detached`);
    } catch (e) {
      log.line(`init: ${chain(e)}`);
    }
  }
}

export async function shutdown(
  end: End,
  machine: { log: Log; daemons: Daemons | undefined; reaper: Reaper; watchdog: Watchdog },
): Promise<never> {
  const { log, daemons, reaper, watchdog } = machine;
  log.line(`init: ${end}: stopping`);
  await daemons?.stop(DAEMONS_MS);
  const everybody = (signal: number) => attempt({ call: "kill", args: [-1, signal] }) !== -ESRCH;
  if (everybody(SIGTERM)) await within(reaper.alone(), OTHERS_MS);
  if (everybody(SIGKILL)) await within(reaper.alone(), KILLED_MS);
  try {
    renewSeed("/data/cml");
  } catch {
    // no data partition, or a full one: the old seed stays
  }
  log.line(`init: ${end}: unmounting`);
  log.closeFile();
  unmountData(log);
  attempt({ call: "sync", args: [] });
  if (end === "power off") watchdog.stop();
  log.line(`init: ${end}: now`);
  log.said();
  for (;;) now({ call: "reboot", args: [MAGIC1, MAGIC2, COMMAND[end], 0] });
}
