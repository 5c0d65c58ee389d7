// The machine as cmld finds it: where its control groups are, which limits the kernel can enforce.
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { controllers, delegate, make, where } from "../sys/cgroup.ts";
import type { DeviceConfig } from "./config.ts";
import type { Host } from "./module.ts";

/** What the machine keeps for init, cmld and the kernel when containers ask for everything, bytes. */
const RESERVED = 96 * 1024 * 1024;

/** Part of the processes that the kernel can have which stays free of containers. */
const RESERVED_PIDS = 0.125;

const setting = (name: string): number => Number(readFileSync(`/proc/sys/kernel/${name}`, "utf8"));

export interface Places {
  readonly base: string;
  readonly run: string;
  readonly logs: string;
  /** A group that somebody else has made for the containers, as /proc/self/cgroup would name it. */
  readonly cgroup?: string;
  readonly device: DeviceConfig;
  readonly audit?: Host["audit"];
  readonly claims?: Host["claims"];
  readonly hash: Host["hash"];
  warn(line: string): void;
}

/** Make room in a group that was made for us: whoever keeps it there moves into one below. */
function keep(top: string): void {
  const processes = readFileSync(join(top, "cgroup.procs"), "utf8").split("\n").filter(Boolean);
  if (processes.length === 0) return;
  const keeper = join(top, "keeper");
  make(keeper);
  for (const pid of processes) writeFileSync(join(keeper, "cgroup.procs"), pid);
}

/** Prepare the control groups and the volatile folder. */
export function openHost(places: Places): Host {
  const { mount, own } = where();
  // Processes may sit in the root group only; below it, a group has processes or hands controllers down, not both.
  const top = join(mount, places.cgroup ?? (own === "/" ? "cml" : own.replace(/\/cmld$/, "")));
  const containers = join(top, "containers");
  if (places.cgroup !== undefined) keep(top);
  else if (own !== "/") {
    make(join(top, "cmld"));
    writeFileSync(join(top, "cmld/cgroup.procs"), "0");
  } else {
    delegate(mount);
    make(top);
  }
  delegate(top);
  make(containers);
  delegate(containers);
  const usable = new Set(controllers(containers));
  if (usable.has("memory")) {
    const total = Number(readFileSync("/proc/meminfo", "utf8").match(/^MemTotal:\s+(\d+) kB/m)?.[1]) * 1024;
    writeFileSync(join(containers, "memory.max"), String(Math.max(total - RESERVED, RESERVED)));
  }
  // Out of memory a small machine has room for few thousand processes: kernel.threads-max.
  if (usable.has("pids")) {
    const most = Math.min(setting("pid_max"), setting("threads-max"));
    writeFileSync(join(containers, "pids.max"), String(Math.floor(most * (1 - RESERVED_PIDS))));
  }
  // The child of a start has the container's ids: it passes through here by search permission alone.
  mkdirSync(places.run, { recursive: true, mode: 0o711 });
  mkdirSync(join(places.run, "root"), { recursive: true, mode: 0o755 });
  mkdirSync(join(places.run, "devices"), { recursive: true, mode: 0o700 });
  for (let dir = places.run; dir !== "/"; dir = dirname(dir))
    if ((statSync(dir).mode & 0o001) === 0)
      throw new Error(`${dir}: others may not pass through it, and containers' ids must reach ${places.run}`);

  const said = new Set<string>();
  return {
    hosted: places.device.hostedmode,
    device: places.device,
    base: places.base,
    run: places.run,
    logs: places.logs,
    cgroup: containers,
    controllers: usable,
    audit: places.audit,
    claims: places.claims ?? (() => []),
    hash: places.hash,
    warnOnce(line) {
      if (said.has(line)) return;
      said.add(line);
      places.warn(line);
    },
  };
}
