// cgroups: one group per container with its limits, and below it the group `child` that belongs to the container
// and is the root of its cgroup namespace, so that an init like systemd can manage groups of its own.
//
// A limit that the configuration names and the kernel cannot enforce fails the start; a default is skipped there.
import { chownSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CLONE_NEWCGROUP, unshare } from "../../sys/calls.ts";
import { delegate, make } from "../../sys/cgroup.ts";
import type { Module, Start } from "../module.ts";

const PIDS_DEFAULT = 4096;
/** Groups that a container may make, and how deep: each costs the kernel memory, and us time when we remove it. */
const BOUNDS = { "cgroup.max.descendants": "4096", "cgroup.max.depth": "64" };
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

interface Limit {
  readonly controller: string;
  readonly file: string;
  readonly value: string;
  /** The configuration's field, or undefined for a default. */
  readonly field?: string;
}

const MiB = 1024 * 1024;

/** What the configuration asks for, and the defaults where it is silent. */
export function limits(s: Pick<Start, "config" | "guestos">): Limit[] {
  const { config, guestos } = s;
  const list: Limit[] = [];
  const add = (controller: string, file: string, value: string | number, field?: string) =>
    list.push({ controller, file, value: String(value), ...(field && { field }) });

  if (config.ram_limit > 0) add("memory", "memory.max", config.ram_limit * MiB, "ram_limit");
  else if (guestos.def_ram_limit_written) add("memory", "memory.max", guestos.def_ram_limit * MiB);
  if (config.swap_limit > 0) add("memory", "memory.swap.max", config.swap_limit * MiB, "swap_limit");
  add("memory", "memory.oom.group", 1);
  if (config.assign_cpus !== "") add("cpuset", "cpuset.cpus", config.assign_cpus, "assign_cpus");
  if (config.cpu_weight > 0) add("cpu", "cpu.weight", config.cpu_weight, "cpu_weight");
  if (config.io_weight > 0) add("io", "io.weight", config.io_weight, "io_weight");
  if (config.pids_limit > 0) add("pids", "pids.max", config.pids_limit, "pids_limit");
  else add("pids", "pids.max", PIDS_DEFAULT);
  return list;
}

export const cgroups: Module = {
  name: "cgroups",
  prepare(s) {
    const group = groupOf(s);
    const missing = new Set<string>();
    s.owned.acquire({ kind: "cgroup", path: group }, () => {
      make(group);
      for (const [file, value] of Object.entries(BOUNDS)) writeFileSync(join(group, file), value);
      for (const { controller, file, value, field } of limits(s)) {
        if (!s.host.controllers.has(controller)) {
          if (field) throw new Error(`${field}: this kernel's cgroup2 has no ${controller} controller here`);
          missing.add(controller);
          continue;
        }
        if (!existsSync(join(group, file))) {
          if (field) throw new Error(`${field}: this kernel has no ${file}`);
          continue;
        }
        try {
          writeFileSync(join(group, file), value);
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
      delegate(group);
      const child = childGroupOf(s);
      make(child);
      chownSync(child, s.uidStart, s.uidStart);
      for (const file of DELEGATED)
        if (existsSync(join(child, file))) chownSync(join(child, file), s.uidStart, s.uidStart);
    });
    if (missing.size > 0)
      s.host.warnOnce(`no ${[...missing].join(", ")} controller in cgroup2: default limits are off`);
  },
  // Here, not at clone3: a namespace made there would be rooted in the parent's group.
  child: () => [unshare(CLONE_NEWCGROUP)],
};
