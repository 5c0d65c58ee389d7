// Numbers for clients: what the machine has, what a container uses. Fields that the kernel does not count are absent.
import { readFile, stat, statfs } from "node:fs/promises";
import type { IContainerStats, IDeviceStats, IPressure } from "../../proto/gen/proto.js";
import { UINT64_MAX } from "../lib/protobuf.ts";
import { keyed, read } from "../sys/cgroup.ts";

interface Disk {
  readonly total: number;
  readonly free: number;
  readonly used: number;
}

/** core.md 11: what cannot be asked is shown as 2^64-1. */
async function disk(path: string): Promise<Disk> {
  try {
    const { blocks, bfree, bsize } = await statfs(path);
    return { total: blocks * bsize, free: bfree * bsize, used: (blocks - bfree) * bsize };
  } catch {
    return { total: UINT64_MAX, free: UINT64_MAX, used: UINT64_MAX };
  }
}

/** "MemTotal:  1024 kB" of proc_meminfo(5), in bytes. */
export function meminfo(text: string, name: string): number | undefined {
  const found = new RegExp(`^${name}: +(\\d+) kB$`, "m").exec(text);
  return found ? Number(found[1]) * 1024 : undefined;
}

/** `containers`: its own triple only if it is another file system than `base`. */
export async function deviceStats(base: string, containers: string): Promise<IDeviceStats> {
  const system = await disk(base);
  const [mine, theirs] = await Promise.all([base, containers].map((p) => stat(p).catch(() => undefined)));
  const other = mine && theirs && mine.dev !== theirs.dev ? await disk(containers) : undefined;
  const memory = await readFile("/proc/meminfo", "utf8");
  return {
    disk_system: system.total,
    disk_system_free: system.free,
    disk_system_used: system.used,
    disk_containers: other?.total,
    disk_containers_free: other?.free,
    disk_containers_used: other?.used,
    mem_total: meminfo(memory, "MemTotal"),
    mem_free: meminfo(memory, "MemFree"),
    mem_available: meminfo(memory, "MemAvailable"),
  };
}

const number = (text: string | undefined): number | undefined =>
  text === undefined || !/^\d+\s*$/.test(text) ? undefined : Number(text); // "max": no limit

/** "some avg10=1.23 avg60=0.45 avg300=0.06 total=789" and the same for "full" (Documentation/accounting/psi.rst). */
export function pressure(text: string | undefined): IPressure | undefined {
  const line = (kind: string): readonly number[] | undefined =>
    new RegExp(`^${kind} avg10=([\\d.]+) avg60=([\\d.]+) avg300=[\\d.]+ total=(\\d+)$`, "m")
      .exec(text ?? "")
      ?.slice(1)
      .map(Number);
  const hundredths = (n: number | undefined) => (n === undefined ? undefined : Math.round(n * 100));
  const [some, full] = [line("some"), line("full")];
  if (!some) return undefined;
  return {
    some_avg10: hundredths(some[0]),
    some_avg60: hundredths(some[1]),
    some_usec: some[2],
    full_avg10: hundredths(full?.[0]),
    full_avg60: hundredths(full?.[1]),
    full_usec: full?.[2],
  };
}

/** Sum of one key over all devices of io.stat. */
function io(text: string | undefined, key: string): number | undefined {
  if (text === undefined) return undefined;
  let sum = 0;
  for (const [, n] of text.matchAll(new RegExp(` ${key}=(\\d+)`, "g"))) sum += Number(n);
  return sum;
}

/** `group`: the container's own, or undefined if it is not up. */
export function containerStats(uuid: string, name: string, group: string | undefined): IContainerStats {
  if (group === undefined) return { uuid, name };
  const file = (name: string) => read(group, name);
  const cpu = file("cpu.stat");
  const disks = file("io.stat");
  const [memory_stall, cpu_stall, io_stall] = ["memory", "cpu", "io"].map((of) =>
    pressure(file(`${of}.pressure`)),
  );
  return {
    uuid,
    name,
    memory_current: number(file("memory.current")),
    memory_peak: number(file("memory.peak")),
    memory_limit: number(file("memory.max")),
    swap_current: number(file("memory.swap.current")),
    cpu_usec: keyed(cpu, "usage_usec"),
    cpu_user_usec: keyed(cpu, "user_usec"),
    cpu_system_usec: keyed(cpu, "system_usec"),
    pids_current: number(file("pids.current")),
    pids_limit: number(file("pids.max")),
    io_read_bytes: io(disks, "rbytes"),
    io_write_bytes: io(disks, "wbytes"),
    memory_pressure: memory_stall?.some_avg10,
    cpu_pressure: cpu_stall?.some_avg10,
    io_pressure: io_stall?.some_avg10,
    memory_stall,
    cpu_stall,
    io_stall,
    oom_kills: keyed(file("memory.events"), "oom_kill"),
  };
}
