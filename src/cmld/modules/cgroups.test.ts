import { expect, test } from "bun:test";
import type { Start } from "../module.ts";
import { bounds, childGroupOf, limits, processors, refuseAbsent } from "./cgroups.ts";

const silent = {
  ram_limit: 0,
  swap_limit: 0,
  assign_cpus: "",
  cpu_weight: 0,
  io_weight: 0,
  pids_limit: 0,
};
const of = (
  config: Partial<typeof silent>,
  guestos = { def_ram_limit: 1024, def_ram_limit_written: false },
) =>
  limits({ config: { ...silent, ...config }, guestos } as unknown as Start).map(
    ({ controller, file, value, field }) => `${controller} ${file}=${value}${field ? ` (${field})` : ""}`,
  );

test("defaults: processes are bounded, memory is not, nothing is swapped, a container out of memory ends as a whole", () => {
  expect(of({})).toEqual(["memory memory.swap.max=0", "memory memory.oom.group=1", "pids pids.max=4096"]);
});

test("no container has more than half of all processes by default", () => {
  const list = limits({ config: silent, guestos: {} } as unknown as Start, 3000);
  expect(list.find((l) => l.file === "pids.max")?.value).toBe("1500");
});

test("a small machine has few groups for a container, a large one many: each may cost a thread of the kernel's", () => {
  const groups = (processes: number) => bounds(processes)["cgroup.max.descendants"];
  expect([1000, 4464, 1e9, Number.POSITIVE_INFINITY].map(groups)).toEqual(["128", "279", "4096", "4096"]);
});

test("processors() reads the kernel's lists; what is not here is refused with its number", () => {
  expect(processors("0-2,5\n")).toEqual([0, 1, 2, 5]);
  expect(processors("")).toEqual([]);
  const host = { cgroup: "/nowhere" };
  refuseAbsent({ assign_cpus: "0" }, host);
  expect(() => refuseAbsent({ assign_cpus: "0,99999" }, host)).toThrow("processor 99999 is not here, only 0");
});

test("the GuestOS' memory limit counts if it is written, the container's before it", () => {
  const written = { def_ram_limit: 64, def_ram_limit_written: true };
  expect(of({}, written)[0]).toBe("memory memory.max=67108864");
  expect(of({ ram_limit: 32 }, written)[0]).toBe("memory memory.max=33554432 (ram_limit)");
});

test("what the configuration names carries the name of its field", () => {
  expect(of({ swap_limit: 1, assign_cpus: "0-1", cpu_weight: 50, io_weight: 60, pids_limit: 7 })).toEqual([
    "memory memory.swap.max=1048576 (swap_limit)",
    "memory memory.oom.group=1",
    "cpuset cpuset.cpus=0-1 (assign_cpus)",
    "cpu cpu.weight=50 (cpu_weight)",
    "io io.weight=60 (io_weight)",
    "pids pids.max=7 (pids_limit)",
  ]);
});

test("its processes live in a group below the one that has the limits", () => {
  const s = { host: { cgroup: "/sys/fs/cgroup/cml" }, uuid: "1" } as unknown as Start;
  expect(childGroupOf(s)).toBe("/sys/fs/cgroup/cml/1/child");
});
