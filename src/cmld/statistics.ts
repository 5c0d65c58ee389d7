// Numbers for clients: what the machine has, what a container uses. Fields that the kernel does not count are absent.
import { readFileSync } from "node:fs";
import { readFile, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import type { IContainerStats, IDeviceStats } from "../../proto/gen/proto.js";
import { UINT64_MAX } from "../lib/protobuf.ts";
import { ENODEV, ENOENT, EOPNOTSUPP, isErrno } from "../sys/error.ts";

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

/** A file of a group, or undefined where the controller, the kernel's option or the group is missing. */
function file(group: string, name: string): string | undefined {
  try {
    return readFileSync(join(group, name), "utf8");
  } catch (e) {
    // EOPNOTSUPP: pressure stall information switched off on the kernel's command line
    if ([ENOENT, ENODEV, EOPNOTSUPP].some((errno) => isErrno(e, errno))) return undefined;
    throw e;
  }
}

const number = (text: string | undefined): number | undefined =>
  text === undefined || !/^\d+\s*$/.test(text) ? undefined : Number(text); // "max": no limit

/** "key value" lines. */
function keyed(text: string | undefined, key: string): number | undefined {
  const found = text && new RegExp(`^${key} (\\d+)$`, "m").exec(text);
  return found ? Number(found[1]) : undefined;
}

/** "some avg10=1.23 …" (Documentation/accounting/psi.rst) in hundredths of a per cent. */
function pressure(text: string | undefined): number | undefined {
  const found = text && /^some avg10=(\d+)\.(\d\d)/m.exec(text);
  return found ? Number(found[1]) * 100 + Number(found[2]) : undefined;
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
  const cpu = file(group, "cpu.stat");
  const disks = file(group, "io.stat");
  return {
    uuid,
    name,
    memory_current: number(file(group, "memory.current")),
    memory_peak: number(file(group, "memory.peak")),
    memory_limit: number(file(group, "memory.max")),
    swap_current: number(file(group, "memory.swap.current")),
    cpu_usec: keyed(cpu, "usage_usec"),
    cpu_user_usec: keyed(cpu, "user_usec"),
    cpu_system_usec: keyed(cpu, "system_usec"),
    pids_current: number(file(group, "pids.current")),
    pids_limit: number(file(group, "pids.max")),
    io_read_bytes: io(disks, "rbytes"),
    io_write_bytes: io(disks, "wbytes"),
    memory_pressure: pressure(file(group, "memory.pressure")),
    cpu_pressure: pressure(file(group, "cpu.pressure")),
    io_pressure: pressure(file(group, "io.pressure")),
    oom_kills: keyed(file(group, "memory.events"), "oom_kill"),
  };
}
