// The machine starts, outlives what can happen to PID 1, and ends in order.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { counts } from "../counts.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "boot-"));
const master = join(folder, "master.img");
const DISK_MB = 256;

beforeAll(() => {
  const data = join(folder, "data");
  seed(join(data, "cml"), { guests: ["core0-1"], containers: [CORE0] });
  disk(master, DISK_MB, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

let made = 0;
/** A disk of its own for a machine. */
function fresh(): string {
  const file = join(folder, `disk-${made++}.img`);
  copyFileSync(master, file);
  return file;
}

/** Which disk is which is the kernel's affair: they are looked for at the same time. */
const DISK_CLEAN = /init: data partition \/dev\/vd[ab]1: clean/;
const RUNNING = "core0: BOOTING → RUNNING";

test("a machine with 256 MiB boots to core0, finds its disk by label, and ends in order", async () => {
  const file = fresh();
  // Another disk stands before it, so that only the label can tell.
  const other = join(folder, "other.img");
  writeFileSync(other, Buffer.alloc(1 << 20));
  {
    await using vm = Vm.boot({ memory: 256, disks: [other, file] });
    await vm.sees(DISK_CLEAN);
    await vm.sees("init: cmld: ready");
    await vm.sees(RUNNING);
    const status = await vm.ask("run", { argv: ["/usr/sbin/control", "list"] });
    expect(status.status).toBe(0);
    expect(status.stdout).toContain("state: RUNNING");
    const memory = await vm.ask("read", { path: "/proc/meminfo" });
    console.log(/MemAvailable:.*/.exec(memory)![0], "with core0, cmld and the test agent in 256 MiB");
    expect(await vm.ask("list", { path: "/data/cml" })).toContain("random-seed");

    await vm.monitor("system_powerdown");
    await vm.sees("init: power button: power off");
    await vm.sees("core0: SHUTDOWN → STOPPED");
    await vm.sees("init: power off: now");
    await vm.ended();
  }
  {
    // What init said is on the disk, and the disk needs no repair.
    await using vm = Vm.boot({ memory: 256, disks: [other, file] });
    await vm.sees(DISK_CLEAN);
    await vm.sees("init: random numbers: seeded");
    await vm.sees("init: agent: started");
    const log = await vm.ask("read", { path: "/data/logs/cml-init.current" });
    expect(log).toMatch(DISK_CLEAN);
    const logs = await vm.ask("list", { path: "/data/logs" });
    expect(logs.filter((l) => /^cml-init\.\d/.test(l)).length).toBe(2);
  }
}, 240_000);

test(
  "PID 1 outlives every fatal signal: same children, same descriptors, no panic",
  async () => {
    await using vm = Vm.boot({ disks: [fresh()] });
    await vm.sees(RUNNING);
    const state = async () =>
      JSON.parse(await vm.ask("read", { path: "/run/cml/init.json" })) as {
        daemons: Record<string, { pid: number; startTime: number }>;
        descriptors: Record<string, number>;
      };
    const before = await state();
    expect(Object.keys(before.daemons).sort()).toEqual(["agent", "cmld"]);
    const signals = ["SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"];
    for (let crash = 0; crash < counts.crashesOfInit; crash++) {
      await vm.ask("kill", { pid: 1, signal: signals[crash % signals.length]! });
      await vm.sees("init: crashed; executing myself again");
      await vm.sees(/init: cmld: still running, pid \d+/);
      const after = await state();
      expect(after.daemons).toEqual(before.daemons);
      expect(Object.keys(after.descriptors)).toEqual(Object.keys(before.descriptors));
    }
    // It still does its work: it starts what ends, and reaps.
    const weight = `/sys/fs/cgroup/cml/containers/${C0}/cpu.weight`;
    await vm.ask("write", { path: weight, text: "10000" }); // as while it starts
    await vm.ask("kill", { pid: before.daemons.cmld!.pid, signal: "SIGKILL" });
    await vm.sees("init: cmld: killed by signal 9; starting it again");
    await vm.sees("init: cmld: ready");
    expect(await vm.ask("read", { path: weight })).toBe("100\n");
    expect(await vm.ask("read", { path: "/proc/sys/kernel/modprobe" })).toBe("\n"); // nobody is executed for a module
    const list = await vm.ask("run", { argv: ["/usr/sbin/control", "list"] });
    expect(list.stdout).toContain("state: RUNNING");
    expect(vm.said).not.toContain("Kernel panic");
  },
  240_000 + counts.crashesOfInit * 5_000,
);

test("Ctrl-Alt-Del starts the machine again, in order", async () => {
  await using vm = Vm.boot({ disks: [fresh()], reboots: true, more: ["-device", "virtio-keyboard-pci"] });
  await vm.sees(RUNNING);
  while (!(await vm.ask("read", { path: "/proc/bus/input/devices" })).includes("kbd")) await Bun.sleep(100); // its driver comes after core0, and says nothing on the console
  await vm.monitor("send-key", { keys: ["ctrl", "alt", "delete"].map((data) => ({ type: "qcode", data })) });
  await vm.sees("init: SIGINT: reboot");
  await vm.sees("init: reboot: now");
  await vm.sees("init: data partition /dev/vda1: clean");
  await vm.sees(RUNNING);
}, 240_000);

test("after a power cut the data partition is checked, with a sentence; the clock is never 1970", async () => {
  const file = fresh();
  {
    await using vm = Vm.boot({ disks: [file] });
    await vm.sees(RUNNING);
    vm.kill();
    await vm.ended();
  }
  await using vm = Vm.boot({ disks: [file], more: ["-rtc", "base=1971-01-01"] });
  await vm.sees("init: data partition /dev/vda1: was not unmounted in order; checking it");
  await vm.sees(/init: data partition \/dev\/vda1: checked, (clean|repaired)/);
  await vm.sees(/init: the clock said 1971-\S+: set to 20[2-9]\d-\S+, the newest file on the data partition/);
  await vm.sees(RUNNING);
}, 240_000);

test("words on the kernel's command line do not reach the runtime", async () => {
  const append = "quiet BUN_BE_BUN=1 BUN_OPTIONS=--preload=/nowhere.js BUN_JSC_useJIT=0 init_is_bun";
  await using vm = Vm.boot({ disks: [fresh()], append });
  await vm.sees(RUNNING);
  expect(await vm.ask("read", { path: "/proc/cmdline" })).toContain("BUN_BE_BUN=1");
  const { daemons } = JSON.parse(await vm.ask("read", { path: "/run/cml/init.json" })) as {
    daemons: Record<string, { pid: number }>;
  };
  for (const pid of [1, daemons.cmld!.pid]) {
    const environment = await vm.ask("read", { path: `/proc/${pid}/environ` });
    expect(environment).not.toContain("BUN_BE_BUN");
    expect(environment).not.toContain("BUN_OPTIONS");
    expect(environment).not.toContain("useJIT");
  }
  expect((await vm.ask("read", { path: "/proc/1/cmdline" })).split("\0").filter((a) => a !== "")).toEqual([
    "init",
  ]);
}, 240_000);

test("without a data partition init says why and starts the machine again", async () => {
  await using vm = Vm.boot({ disks: [] });
  await vm.sees(
    "init: data: no partition labelled cml-data within 30 s: cannot go on; starting the machine again in 10 s",
  );
  await vm.ended(); // -no-reboot
}, 240_000);

test("the hardware watchdog leaves a machine alone that works, and resets one whose PID 1 hangs", async () => {
  const more = ["-device", "i6300esb", "-action", "watchdog=reset"];
  // Counted: where nothing is to be done, a minute takes no time.
  await using vm = Vm.boot({ disks: [fresh()], more, counted: true });
  // Its driver comes while core0 starts: either may be first.
  await vm.sees(new RegExp(`${RUNNING}[^]*the watchdog is watching|the watchdog is watching[^]*${RUNNING}`));
  const seconds = async () => Number.parseFloat(await vm.ask("read", { path: "/proc/uptime" }));
  const end = (await seconds()) + 3 * 60;
  while ((await seconds()) < end) await Bun.sleep(20); // each look lets the machine's time go on

  const group = "/sys/fs/cgroup/hangs";
  await vm.ask("write", { path: `${group}/cgroup.procs`, text: "1" });
  await vm.ask("write", { path: `${group}/cgroup.freeze`, text: "1" });
  await vm.ended(); // -no-reboot
  expect(vm.said).not.toMatch(/init: (reboot|power off|SIG)|Kernel panic/);
}, 240_000);

test("the product's ramdisk has no test agent, no shell, no busybox, no kmod, no udev", () => {
  const files = readFileSync("out/initramfs.files", "utf8");
  expect(files).toContain("/runtime.squashfs:/usr/sbin/cml");
  for (const name of [
    "/test/",
    "agent",
    "/sh\n",
    "/bash",
    "busybox",
    "/kmod",
    "/modprobe",
    "/udevd",
    "/insmod",
  ])
    expect(files).not.toContain(name);
});
