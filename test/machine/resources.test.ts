// What a configuration allows a container is what the kernel gives it and what its /proc says, and not more: bombs of every kind go off inside
// one container and nobody else notices. Needs the machine: a host under test seldom has these controllers.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import type { ContainerStats } from "../../proto/gen/proto.js";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "resources-"));
const file = join(folder, "disk.img");
const swap = join(folder, "swap.img");
const SWAP_MB = 64;
const GROUPS = "/sys/fs/cgroup/cml/containers";
const guest_os = "busybox";

beforeAll(() => {
  const data = join(folder, "data");
  const containers = [
    { name: "web", ram_limit: 64, swap_limit: 32, pids_limit: 60, cpu_weight: 400, io_weight: 50 },
    { name: "db", ram_limit: 64, tmpfs_size: 7 },
    { name: "far", assign_cpus: "7" },
    { name: "huge", ram_limit: 1 << 20 },
  ].map((c) => ({ assign_cpus: "0", ...c, guest_os }));
  seed(join(data, "cml"), { guests: ["core0-1", "busybox-1"], containers: [CORE0, ...containers] });
  disk(file, 256, data);
  writeFileSync(swap, "");
  truncateSync(swap, SWAP_MB << 20);
  const made = Bun.spawnSync(["/sbin/mkswap", swap]);
  if (!made.success) throw new Error(made.stderr.toString());
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The ramdisk has no swapon; the runtime can call the kernel. */
const SWAPON = `
  const { dlopen } = require("bun:ffi");
  const libc = dlopen("libc.so.6", { swapon: { args: ["cstring", "i32"], returns: "i32" } });
  const on = (path) => libc.symbols.swapon(Buffer.from(path + "\\0"), 0) === 0;
  process.exit(process.argv.slice(-2).some(on) ? 0 : 1);`;

test("limits of a container are the kernel's, and its bombs are its own", async () => {
  await using vm = Vm.boot({ disks: [file, swap] });
  await vm.sees("core0: BOOTING → RUNNING");
  const serves = async () =>
    Number((await vm.sees(/views of \/proc: lxcfs serves them, pid \d+\s/)).split(" ").at(-1));
  const lxcfs = await serves();
  const control = async (...args: string[]): Promise<string> => {
    const { status, stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return `${status} ${stdout}${stderr}`;
  };
  const inside = (name: string, command: string) => control("run", name, "nopty", "sh", "-c", command);
  const list = await control("list");
  const group = (name: string) =>
    join(GROUPS, new RegExp(`uuid: "([^"]*)"\\s+name: "${name}"`).exec(list)![1]!);
  const limit = async (name: string, of: string) =>
    (await vm.ask("read", { path: join(group(name), of) })).trim();
  const count = async (name: string, of: string, key: string) =>
    Number(new RegExp(`^${key} (\\d+)`, "m").exec(await limit(name, of))![1]);
  const stats = async (name: string): Promise<ContainerStats> =>
    JSON.parse((await control("--json", "stats", name)).slice(2)).stats[0];

  // --- what cannot be is refused, with the field named
  expect(await control("start", "far")).toContain("assign_cpus: 7: processor 7 is not here, only 0-1");
  const conf = (line: string) =>
    `name: "new"\nguest_os: "busybox"\nguestos_version: 1\ncolor: 0\ntoken_type: NONE\n${line}\n`;
  const created = async (line: string): Promise<string> => {
    await vm.ask("write", { path: "/run/new.conf", text: conf(line) });
    return control("create", "/run/new.conf");
  };
  expect(await created('assign_cpus: "0,2"')).toContain(
    "assign_cpus: 0,2: processor 2 is not here, only 0-1",
  );
  expect(await created("ram_limit: -1")).toContain("ram_limit");
  expect(await created("ram_limit: 4294967295")).toContain(
    "ram_limit: 4294967295 is not within 0 to 16777216",
  );
  expect(await created("pids_limit: 0")).toContain("pids_limit: 0 is not within 1 to");
  expect(await created("cpu_weight: 10001")).toContain("cpu_weight: 10001 is not within 1 to 10000");
  expect(await control("list")).not.toContain('"new"');

  // --- what is asked for is what the kernel has
  for (const name of ["web", "db", "huge"]) {
    expect(await control("start", name)).toMatch(/^0 .*\n.*CONTAINER_START_OK/);
    await vm.sees(`${name}: BOOTING → RUNNING`);
  }
  expect(vm.said).toMatch(/huge: ram_limit: 1048576 MiB is more than all containers get here, \d+ MiB/);
  expect(await limit("web", "memory.swap.max")).toBe(String(32 << 20));
  expect(await limit("db", "memory.swap.max")).toBe("0");
  expect(await limit("web", "io.weight")).toBe("default 50");
  expect(await vm.ask("read", { path: "/sys/fs/cgroup/io.cost.qos" })).toContain("enable=1");
  expect(Number(await limit("db", "pids.max"))).toBeLessThanOrEqual(4096);
  expect(await inside("web", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; nproc")).toBe(
    `0 ${64 << 20}\n60\n1\n`,
  );
  expect(await inside("web", "echo max > /sys/fs/cgroup/memory.max")).toContain("Permission denied");
  expect(await inside("db", "df -m / /run /dev/shm | awk '/%/ { print $2 }'")).toBe("0 1M-blocks\n7\n7\n7\n");
  expect(await inside("db", "dd if=/dev/zero of=/run/full bs=1M count=9; rm /run/full")).toContain(
    "No space left",
  );

  // --- /proc says the same, also when who serves it has ended meanwhile
  const seen = () =>
    inside(
      "web",
      "awk '/MemTotal/ { print $2 }' /proc/meminfo; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online",
    );
  expect(await seen()).toBe("0 65536\n1\n0\n");
  console.log(/Pss:.*/.exec(await vm.ask("read", { path: `/proc/${lxcfs}/smaps_rollup` }))![0], "of lxcfs");
  expect(await vm.ask("read", { path: `/proc/${lxcfs}/status` })).toContain("CapEff:\t00000000002c0004");
  await vm.ask("kill", { pid: lxcfs, signal: "SIGKILL" });
  await vm.sees("views of /proc: lxcfs has ended");
  expect(await serves()).not.toBe(lxcfs);
  while ((await seen()) !== "0 65536\n1\n0\n") await Bun.sleep(100); // until it is attached again; the test's time is the limit

  // --- processors go by weight: both want all of processor 0
  const BUSY = "while :; do :; done & sleep 100";
  for (const name of ["web", "db"]) void inside(name, BUSY);
  const used = async (name: string) => Number(/usage_usec (\d+)/.exec(await limit(name, "cpu.stat"))![1]);
  const since = async (before: readonly number[]): Promise<readonly number[]> =>
    (await Promise.all(["web", "db"].map(used))).map((n, i) => n - before[i]!);
  const enough = 3e6; // microseconds: what a tick or two cannot blur
  let [web, db] = [0, 0];
  let from = await since([0, 0]);
  while ((await used("db")) < 2e5) await Bun.sleep(50); // until both run
  from = await since([0, 0]);
  while (web + db < enough) {
    await Bun.sleep(100); // the kernel counts meanwhile
    [web, db] = (await since(from)) as [number, number];
  }
  console.log(`cpu.weight 400 and 100: ${web} and ${db} µs, ${(web / db).toFixed(1)} to 1`);
  expect(web / db).toBeGreaterThan(2); // its processors are the host's threads: they stumble
  expect(web / db).toBeLessThan(12);
  for (const name of ["web", "db"]) await inside(name, "kill -9 $(pidof sleep)");
  for (const name of ["web", "db"]) await inside(name, "killall -9 sh");
  const busy = await stats("db");
  expect(busy.cpu_stall?.some_usec).toBeGreaterThan(1e5);
  expect(busy.cpu_stall?.full_avg60).toBeGreaterThanOrEqual(0);

  // --- processes
  const forked = await inside("web", "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done");
  expect(forked).toContain("can't fork");
  expect(Number(await limit("web", "pids.current"))).toBeLessThanOrEqual(60);
  expect(await inside("db", "echo alive")).toBe("0 alive\n");
  await control("stop", "web");
  await vm.sees("web: SHUTDOWN → STOPPED");
  expect(await control("start", "web")).toContain("CONTAINER_START_OK");
  await vm.sees("web: BOOTING → RUNNING");

  // --- memory: swap where it is allowed, an end where it is not
  const swapon = await vm.ask("run", {
    argv: ["/usr/sbin/cml", "-e", SWAPON, "/dev/vda", "/dev/vdb"], // which is which is the kernel's affair
    env: { BUN_BE_BUN: "1" },
  });
  expect(swapon.status).toBe(0);
  // The tmpfs would take more; web has 64 MiB of memory and 32 of swap.
  const fill = (mb: number) => `dd if=/dev/zero of=/dev/shm/x bs=1M count=${mb} 2>/dev/null; echo filled`;
  expect(await inside("web", fill(80))).toBe("0 filled\n");
  expect((await stats("web")).swap_current).toBeGreaterThan(10 << 20);
  expect(await inside("web", "tail /dev/zero")).toStartWith("137 ");
  await vm.sees("web: RUNNING → STOPPED, killed by its memory limit");
  expect(await inside("huge", fill(20))).toBe("0 filled\n");
  expect((await stats("huge")).swap_current).toBe(0);
  expect(await inside("db", "tail /dev/zero")).toStartWith("137 ");
  await vm.sees("db: RUNNING → STOPPED, killed by its memory limit");

  // One container without a limit of its own that is felt: all together have one, and core0 is not the one that ends.
  void inside("huge", "tail /dev/zero");
  await vm.sees("huge: RUNNING → STOPPED, killed because all containers together ran out of memory");
  expect(await control("list")).toMatch(/name: "core0"\s+type: CONTAINER\s+state: RUNNING/);
  expect(await count("core0", "memory.events", "oom_kill").catch(() => 0)).toBe(0);
}, 580_000);
