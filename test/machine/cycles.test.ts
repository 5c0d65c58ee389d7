// Starts and stops in a machine, where every controller and every kind of link is there: nothing of them stays.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { counts } from "../counts.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "cycles-"));
const file = join(folder, "disk.img");

beforeAll(() => {
  const data = join(folder, "data");
  // A limit of each kind: what a host under test seldom has.
  const limits = { ram_limit: 64, swap_limit: 16, pids_limit: 100, cpu_weight: 50, assign_cpus: "0" };
  const web = { name: "web", guest_os: "busybox", ...limits };
  seed(join(data, "cml"), { guests: ["core0-1", "busybox-1"], containers: [CORE0, web] });
  disk(file, 256, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

test(
  "starts and stops leave nothing in the machine; its limits are the kernel's",
  async () => {
    await using vm = Vm.boot({ disks: [file] });
    await vm.sees("core0: BOOTING → RUNNING");
    const control = async (...args: string[]): Promise<string> => {
      const { status, stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
      return `${status} ${stdout}${stderr}`;
    };
    const containers = "/sys/fs/cgroup/cml/containers";
    const cmld = /init: cmld: started, pid (\d+)/.exec(vm.said)![1];
    const uuid = /uuid: "([^"]*)"\s+name: "web"/.exec(await control("list"))![1]!;
    const lines = async (path: string) => (await vm.ask("read", { path })).trim().split("\n");
    const numbered = async (path: string) => (await vm.ask("list", { path })).length;
    const machine = async () => ({
      groups: (await vm.ask("list", { path: containers })).filter((name) => name.includes("-")),
      mounts: (await lines(`/proc/${cmld}/mountinfo`)).map((l) => l.split(" ").slice(3, 5).join(" ")).sort(),
      links: (await lines(`/proc/${cmld}/net/dev`)).map((l) => l.split(":")[0]!.trim()).sort(),
      ledgers: await vm.ask("list", { path: "/run/cml/ledger" }),
      descriptors: await numbered(`/proc/${cmld}/fd`),
    });
    const cycle = async () => {
      expect(await control("start", "web")).toMatch(/^0 .*\n.*CONTAINER_START_OK/);
      await vm.sees("web: BOOTING → RUNNING");
      const group = `${containers}/${uuid}`;
      const limit = async (name: string) => (await vm.ask("read", { path: `${group}/${name}` })).trim();
      expect([await limit("memory.max"), await limit("pids.max"), await limit("cpu.weight")]).toEqual([
        String(64 << 20),
        "100",
        "50",
      ]);
      expect([await limit("cpuset.cpus"), await limit("memory.swap.max")]).toEqual(["0", String(16 << 20)]);
      expect(await control("stop", "web")).toMatch(/^0 .*\n.*CONTAINER_STOP_OK/);
      await vm.sees("web: SHUTDOWN → STOPPED");
    };
    await cycle(); // opens what stays open: the image, the console's log
    const before = await machine();
    for (let i = 0; i < counts.cyclesMachine; i++) await cycle();
    expect(await machine()).toEqual(before);
  },
  240_000 + counts.cyclesMachine * 10_000,
);
