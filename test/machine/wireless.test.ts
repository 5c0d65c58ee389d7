// Wireless cards in a machine: a link cannot change its network namespace, only its radio can, with all of its links.
// The radios are the kernel's own for tests, mac80211_hwsim, whose modules lie on the data disk.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { select } from "../../initramfs/modules.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "wireless-"));
const file = join(folder, "disk.img");
const MODULES = "out/kernel/modules";
const radios = select(MODULES, ["mac80211_hwsim"]);
/** drivers/net/wireless/mac80211_hwsim.c: 02:00:00:00:N:00. */
const [FIRST, SECOND] = ["02:00:00:00:00:00", "02:00:00:00:01:00"];
/** finit_module(2) of x86-64, by the runtime's executable and the C library: the machine has no insmod. */
const LOAD = `
const { dlopen, ptr } = require("bun:ffi");
const { existsSync, openSync } = require("node:fs");
const { syscall } = dlopen("libc.so.6", { syscall: { args: ["i64", "i32", "ptr", "i32"], returns: "i64" } }).symbols;
for (const name of process.argv.slice(1)) {
  if (existsSync("/sys/module/" + name)) continue;
  const words = Buffer.from((name === "mac80211_hwsim" ? "radios=2" : "") + "\\0");
  if (syscall(313, openSync("/data/modules/" + name + ".ko"), ptr(words), 0) != 0) throw new Error(name);
}`;

beforeAll(() => {
  const data = join(folder, "data");
  seed(join(data, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [
      CORE0,
      { name: "web", guest_os: "busybox" },
      { name: "db", guest_os: "busybox", net_ifaces: [{ netif: SECOND, mac_filter: [] }] } as never,
    ],
  });
  mkdirSync(join(data, "modules"));
  for (const { name, path } of radios) copyFileSync(join(MODULES, path), join(data, "modules", `${name}.ko`));
  disk(file, 256, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

test("wireless cards are core0's, are lent with their radio, and come back", async () => {
  await using vm = Vm.boot({ disks: [file] });
  const control = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return stdout + stderr;
  };
  const start = async (name: string): Promise<void> => {
    expect(await control("start", name)).toContain("CONTAINER_START_OK");
    await vm.sees(new RegExp(`${name}: \\w+ → RUNNING`));
  };
  const stop = async (name: string): Promise<void> => {
    expect(await control("stop", name)).toContain("CONTAINER_STOP_OK");
    await vm.sees(new RegExp(`${name}: \\w+ → STOPPED`));
  };
  /** Addresses of wireless links, by name. */
  const has = async (name: string): Promise<string[]> => {
    const table = await control("ifaces", name);
    return [...table.matchAll(/cmlwlan\d[\s\S]*?link\/ether (\S+)/g)].map(([, mac]) => mac!).sort();
  };
  await vm.sees("core0: BOOTING → RUNNING");

  const loaded = await vm.ask("run", {
    argv: ["/usr/sbin/cml", "-e", LOAD, ...radios.map(({ name }) => name)],
    env: { BUN_BE_BUN: "1" },
  });
  expect(loaded.stderr).toBe("");
  await vm.sees(new RegExp(`core0: network interface cmlwlan\\d \\(${FIRST}\\) has come`));
  await vm.sees(new RegExp(`core0: network interface cmlwlan\\d \\(${SECOND}\\) has come`));
  expect(await has("core0")).toEqual([FIRST, SECOND]);
  expect((await vm.ask("list", { path: "/sys/class/net" })).filter((n) => /wlan/.test(n))).toEqual([]);

  // From core0 to one that runs, and back when it ends.
  await start("web");
  expect(await control("assign_iface", "web", "--iface", FIRST)).toContain("CMD_OK");
  expect([await has("core0"), await has("web")]).toEqual([[SECOND], [FIRST]]);
  // From core0 to one that names it; one that another has is not given.
  await start("db");
  expect([await has("core0"), await has("db")]).toEqual([[], [SECOND]]);
  expect(await control("assign_iface", "db", "--iface", FIRST)).toContain("is assigned to web");
  await stop("web");
  expect([await has("core0"), await has("db")]).toEqual([[FIRST], [SECOND]]);

  // Taken back while it runs; and a container that ends by itself loses nothing.
  expect(await control("unassign_iface", "db", "--iface", SECOND)).toContain("CMD_OK");
  expect([await has("core0"), await has("db")]).toEqual([[FIRST, SECOND], []]);
  expect(await control("assign_iface", "db", "--iface", SECOND)).toContain("CMD_OK");
  const cmld = Number([...vm.said.matchAll(/init: cmld: started, pid (\d+)/g)].at(-1)![1]);
  await vm.ask("kill", { pid: cmld, signal: "SIGKILL" });
  await vm.sees("db: adopted");
  await stop("db");
  expect(await has("core0")).toEqual([FIRST, SECOND]);
  expect((await vm.ask("list", { path: "/sys/class/net" })).filter((n) => /wlan/.test(n))).toEqual([]);
}, 600_000);
