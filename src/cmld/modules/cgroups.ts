// cgroups: one group per container with its limits, and below it the group `child` that belongs to the container
// and is the root of its cgroup namespace, so that an init like systemd can manage groups of its own.
//
// A limit that the configuration names and the kernel cannot enforce fails the start; a default is skipped there.
// Limits of memory and processes are written into `child` too: there the container sees them (a Java machine reads
// memory.max of its root), and cannot change them. All others are shares, or show in what they leave.
import { chownSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CLONE_NEWCGROUP, unshare } from "../../sys/calls.ts";
import { delegate, keyed, make, read, shareByWeight, watchFile } from "../../sys/cgroup.ts";
import type { ContainerConfig } from "../config.ts";
import type { Host, Module, Start } from "../module.ts";

const PIDS_DEFAULT = 4096;
/** Part of the processes of all containers that one may have which names no limit. */
const PIDS_PART = 0.5;
/** Groups that a container may make, and how deep: each costs the kernel memory, and us time when we remove it. */
const [GROUPS_MAX, GROUPS_LEAST, DEPTH_MAX] = [4096, 128, 64];
/** Part of the processes of all containers: who watches the pressure of a group (PSI) has a thread of the kernel's for it,
 * which is in no group and counts for nobody (psimon, kernel/sched/psi.c). What the machine keeps has room for two. */
const GROUPS_PART = 1 / 16;
/** Files that a delegate owns besides the directory: cgroups(7), /sys/kernel/cgroup/delegate. */
const DELEGATED = [
  "cgroup.procs",
  "cgroup.threads",
  "cgroup.subtree_control",
  "memory.oom.group",
  "memory.reclaim",
];

export const groupOf = (s: Pick<Start, "host" | "uuid">): string => join(s.host.cgroup, s.uuid);
/** The container's own group: where its init and what `control run` starts live. */
export const childGroupOf = (s: Pick<Start, "host" | "uuid">): string => join(groupOf(s), "child");

/** Limits that the container is to see. */
const SEEN = new Set(["memory.max", "memory.swap.max", "pids.max"]);
/** Only there: whether all of it ends for want of memory is its own affair. What the kernel needs for its groups counts
 * above, so the limit above may be the first that is met. */
const ITS_OWN = new Set(["memory.oom.group"]);

interface Limit {
  readonly controller: string;
  readonly file: string;
  readonly value: string;
  /** The configuration's field, or undefined for a default. */
  readonly field?: string;
}

/** cgroup-v2.rst: of a group whose weight nobody has said, and the most that one can have. */
const [CPU_WEIGHT, CPU_WEIGHT_MAX] = [100, 10_000];

const MiB = 1024 * 1024;

/** `processes`: of all containers together. */
export const bounds = (processes: number): Readonly<Record<string, string>> => ({
  "cgroup.max.descendants": String(
    Math.min(GROUPS_MAX, Math.max(GROUPS_LEAST, Math.floor(processes * GROUPS_PART))),
  ),
  "cgroup.max.depth": String(DEPTH_MAX),
});

/** What the configuration asks for, and the defaults where it is silent. `processes`: of all containers together. */
export function limits(s: Pick<Start, "config" | "guestos">, processes = Number.POSITIVE_INFINITY): Limit[] {
  const { config, guestos } = s;
  const list: Limit[] = [];
  const add = (controller: string, file: string, value: string | number, field?: string) =>
    list.push({ controller, file, value: String(value), ...(field && { field }) });

  if (config.ram_limit > 0) add("memory", "memory.max", config.ram_limit * MiB, "ram_limit");
  else if (guestos.def_ram_limit_written) add("memory", "memory.max", guestos.def_ram_limit * MiB);
  // Silence means none: what is in a container's memory is not written to a disk unless somebody wants it.
  if (config.swap_limit > 0) add("memory", "memory.swap.max", config.swap_limit * MiB, "swap_limit");
  else add("memory", "memory.swap.max", 0);
  add("memory", "memory.oom.group", 1);
  if (config.assign_cpus !== "") add("cpuset", "cpuset.cpus", config.assign_cpus, "assign_cpus");
  if (config.cpu_weight > 0) add("cpu", "cpu.weight", config.cpu_weight, "cpu_weight");
  if (config.io_weight > 0) add("io", "io.weight", config.io_weight, "io_weight");
  if (config.pids_limit > 0) add("pids", "pids.max", config.pids_limit, "pids_limit");
  else add("pids", "pids.max", Math.min(PIDS_DEFAULT, Math.floor(processes * PIDS_PART)));
  return list;
}

/** "0-3,6" → 0 1 2 3 6 (Documentation/admin-guide/cputopology.rst). */
export const processors = (list: string): number[] =>
  list
    .trim()
    .split(",")
    .filter(Boolean)
    .flatMap((range) => {
      const [first, last = first] = range.split("-").map(Number) as [number, number?];
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });

/** What this machine can never give, whoever asks: before a configuration is stored, and before each start. */
export function refuseAbsent(config: Pick<ContainerConfig, "assign_cpus">, host: Pick<Host, "cgroup">): void {
  if (config.assign_cpus === "") return;
  const ours = join(host.cgroup, "cpuset.cpus.effective");
  const here = readFileSync(existsSync(ours) ? ours : "/sys/devices/system/cpu/online", "utf8").trim();
  const present = new Set(processors(here));
  const absent = processors(config.assign_cpus).find((n) => !present.has(n));
  if (absent !== undefined)
    throw new Error(`assign_cpus: ${config.assign_cpus}: processor ${absent} is not here, only ${here}`);
}

/** A limit of all containers together, or Infinity. */
function common(host: Pick<Host, "cgroup">, file: string): number {
  const path = join(host.cgroup, file);
  const text = existsSync(path) ? readFileSync(path, "utf8").trim() : "max";
  return text === "max" ? Number.POSITIVE_INFINITY : Number(text);
}

/** A limit above the one of all containers does nothing: said, not refused, for the same file fits larger machines. */
function sayBeyond(s: Start): void {
  const memory = common(s.host, "memory.max");
  if (s.config.ram_limit * MiB > memory)
    s.log(
      `ram_limit: ${s.config.ram_limit} MiB is more than all containers get here, ${Math.floor(memory / MiB)} MiB`,
    );
  const processes = common(s.host, "pids.max");
  if (s.config.pids_limit > processes)
    s.log(`pids_limit: ${s.config.pids_limit} is more than all containers get here, ${processes}`);
}

/** Why the kernel ended processes of the group, in words, or undefined if it did not. */
export function shortOfMemory(s: Pick<Start, "host" | "uuid">): string | undefined {
  const group = groupOf(s);
  const count = (g: string, name: string, key: string) => keyed(read(g, name), key) ?? 0;
  if (count(group, "memory.events", "oom_kill") === 0) return undefined;
  const own = [group, childGroupOf(s)].some((g) => count(g, "memory.events.local", "oom") > 0);
  return own ? "killed by its memory limit" : "killed because all containers together ran out of memory";
}

/** The kernel changes the file whenever a limit is met, up to a hundred times a second. */
const KILLS_MS = 500;
/** A line whenever the kernel kills inside: a guest's own limits may end one service and leave the rest alone. */
function tellKills(s: Start): void {
  const path = join(groupOf(s), "memory.events");
  if (!existsSync(path)) return;
  let before = 0;
  const tell = (text: string | undefined) => {
    const all = keyed(text, "oom_kill") ?? before;
    if (all > before) s.log(`out of memory: the kernel killed ${all - before} of its processes`);
    before = all;
  };
  const watching = watchFile(path, tell, KILLS_MS);
  s.owned.use({
    [Symbol.dispose]() {
      watching[Symbol.dispose]();
      tell(read(groupOf(s), "memory.events"));
    },
  });
}

export const cgroups: Module = {
  name: "cgroups",
  prepare(s) {
    const group = groupOf(s);
    const missing = new Set<string>();
    const processes = common(s.host, "pids.max");
    const list = limits(s, processes);
    refuseAbsent(s.config, s.host);
    sayBeyond(s);
    s.owned.acquire({ kind: "cgroup", path: group }, () => {
      make(group);
      for (const [file, value] of Object.entries(bounds(processes))) writeFileSync(join(group, file), value);
      for (const { controller, file, value, field } of list) {
        if (!s.host.controllers.has(controller)) {
          if (field) throw new Error(`${field}: this kernel's cgroup2 has no ${controller} controller here`);
          missing.add(controller);
          continue;
        }
        if (!existsSync(join(group, file))) {
          if (field) throw new Error(`${field}: this kernel has no ${file}`);
          continue;
        }
        if (ITS_OWN.has(file)) continue;
        try {
          writeFileSync(join(group, file), value);
          if (file === "io.weight") shareByWeight(statSync(s.host.base).dev, !s.host.hosted);
        } catch (cause) {
          throw new Error(`${field ?? file}: writing ${value} to ${file}`, { cause });
        }
        if (
          file === "memory.max" &&
          field &&
          Number(readFileSync(join(group, file), "utf8")) !== Number(value)
        )
          throw new Error(`${field}: the kernel did not take ${value} bytes for ${file}`);
      }
      // Until its init runs: there is nothing of the container's in it yet, only what cmld has to do there.
      if (s.host.controllers.has("cpu")) writeFileSync(join(group, "cpu.weight"), String(CPU_WEIGHT_MAX));
      delegate(group);
      const child = childGroupOf(s);
      make(child);
      for (const { file, value } of list)
        if ((SEEN.has(file) || ITS_OWN.has(file)) && existsSync(join(child, file)))
          writeFileSync(join(child, file), value);
      chownSync(child, s.uidStart, s.uidStart);
      for (const file of DELEGATED)
        if (existsSync(join(child, file))) chownSync(join(child, file), s.uidStart, s.uidStart);
    });
    if (missing.size > 0)
      s.host.warnOnce(`no ${[...missing].join(", ")} controller in cgroup2: default limits are off`);
  },
  started(s) {
    // Also by a cmld that takes over: an earlier one may have come to its end just here.
    if (s.host.controllers.has("cpu"))
      writeFileSync(join(groupOf(s), "cpu.weight"), String(s.config.cpu_weight || CPU_WEIGHT));
    tellKills(s);
  },
  // Here, not at clone3: a namespace made there would be rooted in the parent's group.
  child: () => [unshare(CLONE_NEWCGROUP)],
};
