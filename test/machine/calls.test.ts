// What cmld does for a container and only a machine of its own can show: the clock, the real-time clock, kernel modules,
// the memory that a limit leaves.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "calls-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** In the image of the machine, and no device wants it. */
const MODULE = "e1000";
/** 2030-03-17: later than any clock that the test could meet. */
const LATER = 1_900_000_000;

test("the clock, the real-time clock, modules and memory: with the fields that allow it, and without", async () => {
  const data = join(folder, "data");
  const may = {
    name: "may",
    guest_os: "busybox",
    allow_system_time: true,
    allow_module: [MODULE],
    ram_limit: 64,
  };
  const web = { name: "web", guest_os: "busybox" };
  seed(join(data, "cml"), { guests: ["core0-1", "busybox-1"], containers: [CORE0, may, web] });
  const file = join(folder, "disk.img");
  disk(file, 256, data);
  await using vm = Vm.boot({ disks: [file], append: "quiet module.sig_enforce=1" });
  await vm.sees("core0: BOOTING → RUNNING");
  const control = (...argv: string[]) => vm.ask("run", { argv: ["/usr/sbin/control", ...argv] });
  for (const name of ["may", "web"])
    expect(await control("start", name, "--wait")).toMatchObject({ status: 0 });
  const sh = async (name: string, script: string): Promise<string> => {
    const { stdout, stderr } = await control(
      "run",
      name,
      "--",
      "/bin/busybox",
      "sh",
      "-c",
      `PATH=/bin; ${script}`,
    );
    return `${stdout}${stderr}`.trim().replaceAll("\r", "");
  };
  const read = async (path: string) => (await vm.ask("read", { path })).trim();

  // Reading is everybody's; setting is not.
  for (const name of ["may", "web"])
    expect([name, await sh(name, "busybox adjtimex | busybox grep -c freq.adjust")]).toEqual([name, "1"]);
  expect(await sh("web", `busybox date -s @${LATER} 2>&1`)).toContain("Operation not permitted");
  expect(await sh("web", "busybox adjtimex -t 10001 2>&1")).toContain("Operation not permitted");
  expect(await sh("web", "busybox unshare -U -r busybox date -s @5 2>&1")).toContain(
    "Operation not permitted",
  );
  expect(await sh("may", "busybox unshare -U -r busybox date -s @5 2>&1")).toContain(
    "Operation not permitted",
  );
  expect(Number(await sh("may", "busybox date +%s"))).toBeLessThan(LATER);

  expect(
    await sh("may", "busybox adjtimex -t 10001 > /dev/null && busybox adjtimex | busybox grep tick"),
  ).toMatch(/10001/);
  await sh("may", `busybox date -s @${LATER}`);
  for (const name of ["may", "web"])
    expect(Number(await sh(name, "busybox date +%s"))).toBeWithin(LATER, LATER + 600);
  expect(vm.said).toContain(`may: has set the clock: ${LATER}`);

  // The machine's own real-time clock, once a rule gives it to the container.
  const rtc = await read("/sys/class/rtc/rtc0/dev");
  expect(await control("dev_access", "may", `c ${rtc} rw`)).toMatchObject({ status: 0 });
  expect(await sh("may", "busybox hwclock -u -w && echo set")).toBe("set");
  expect(Number(await read("/sys/class/rtc/rtc0/since_epoch"))).toBeWithin(LATER, LATER + 600);
  expect(await control("dev_access", "web", `c ${rtc} rw`)).toMatchObject({ status: 0 });
  expect(await sh("web", "busybox hwclock -u -w 2>&1")).toMatch(/denied|not permitted/);

  // A module by its name: the bytes are the machine's.
  const loaded = async () =>
    (await read("/proc/modules")).split("\n").some((l) => l.startsWith(`${MODULE} `));
  expect(await loaded()).toBe(false);
  const insmod = (name: string) => `: > /run/${name}.ko; busybox insmod /run/${name}.ko 2>&1 && echo loaded`;
  expect(await sh("web", insmod(MODULE))).not.toContain("loaded");
  expect(await sh("may", insmod("e1000e"))).not.toContain("loaded");
  expect(await loaded()).toBe(false);
  expect(await sh("may", insmod(MODULE))).toContain("loaded");
  expect(await loaded()).toBe(true);

  // As much memory as there is for it.
  expect(await sh("may", "busybox free -m | busybox awk '/^Mem/ { print $2 }'")).toBe("64");
  expect(Number(await sh("web", "busybox free -m | busybox awk '/^Mem/ { print $2 }'"))).toBeGreaterThan(64);
}, 600_000);
