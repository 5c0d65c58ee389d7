// dm-verity in the machine: one device for an image, as long as somebody uses it, whoever manages it; and what happens when
// the disk does not hold what was signed.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { BLOCK } from "../../src/sys/verity.ts";
import { Chance, SEED } from "../chance.ts";
import { Vm } from "./qemu.ts";
import { beside, sleeper, without } from "./sleeper.ts";

const folder = mkdtempSync(join(tmpdir(), "verity-"));
const at = (...parts: string[]) => join(folder, ...parts);
const base = at("data/cml");
const NOISE = new Chance(SEED).bytes(64 * BLOCK);

/** A guest that has /noise. */
const guest = (name: string, change?: (text: string) => string): Promise<void> =>
  sleeper({
    name,
    out: at("guests"),
    fill: (tree) => writeFileSync(join(tree, "noise"), NOISE),
    ...(change && { change }),
  });

/** One bit of a file is not what it was. */
function wound(path: string, offset: number): void {
  const bytes = readFileSync(path);
  bytes[offset]! ^= 1;
  rmSync(path); // it may be another name of the file that was built
  writeFileSync(path, bytes);
}

const image = (name: string, file = "root.img") => join(base, "operatingsystems", `${name}-1`, file);
/** A block of the noise, in the image. */
const inNoise = (name: string): number =>
  readFileSync(image(name)).indexOf(NOISE.subarray(17 * BLOCK, 18 * BLOCK)) + 100;

beforeAll(async () => {
  mkdirSync(at("guests"));
  beside(at("guests"), "core0-1");
  await guest("sound");
  await guest("worn");
  await guest("torn");
  await guest("whole", without("image_verity_sha256"));
  await guest("old", (text) => without("image_sha2_256")(without("image_verity_sha256")(text)));
  await guest("changed", without("image_verity_sha256"));
  const names = ["sound", "worn", "torn", "whole", "old", "changed"];
  seed(base, {
    from: at("guests"),
    guests: ["core0-1", ...names.map((name) => `${name}-1`)],
    containers: [CORE0, ...names, "second", "third"].map((name) =>
      typeof name === "string"
        ? { name, guest_os: names.includes(name) ? name : "sound", loopback_only: true }
        : name,
    ),
    device: { audit_size: 8 },
  });
  wound(image("worn"), inNoise("worn"));
  wound(image("torn", "root.hash.img"), BLOCK);
  wound(image("changed"), inNoise("changed"));
  disk(at("disk.img"), 256, at("data"));
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true }));

class Machine {
  constructor(readonly vm: Vm) {}
  async control(...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return `${status} ${stdout}${stderr}`;
  }
  async start(name: string): Promise<void> {
    expect(await this.control("start", name)).toStartWith("0 ");
    await this.vm.sees(`${name}: BOOTING → RUNNING`);
  }
  async stop(name: string): Promise<void> {
    expect(await this.control("stop", name)).toStartWith("0 ");
    await this.vm.sees(`${name}: SHUTDOWN → STOPPED`);
  }
  /** Names of the device-mapper's devices, and how many loop devices have a file. */
  async devices(): Promise<{ mapped: string[]; loops: number }> {
    const all = await this.vm.ask("list", { path: "/sys/block" });
    const mapped: string[] = [];
    for (const name of all.filter((n) => n.startsWith("dm-"))) {
      const called = await this.vm.ask("read", { path: `/sys/block/${name}/dm/name` }).catch((e: Error) => {
        if (!e.message.includes("ENOENT")) throw e;
        return ""; // it has gone meanwhile
      });
      if (called !== "") mapped.push(called.trim());
    }
    let loops = 0;
    for (const name of all.filter((n) => n.startsWith("loop")))
      loops += (await this.vm.ask("list", { path: `/sys/block/${name}` })).includes("loop") ? 1 : 0;
    return { mapped: mapped.sort(), loops };
  }
  /** The kernel removes a device a moment after its last user. */
  async until(devices: { mapped: string[]; loops: number }): Promise<void> {
    const end = performance.now() + 20_000;
    for (;;) {
      const now = await this.devices();
      if (Bun.deepEquals(now, devices)) return;
      if (performance.now() > end) expect(now).toEqual(devices);
    }
  }
}

test("one device for an image: shared, found again by the next cmld, gone with its last user", async () => {
  await using vm = Vm.boot({ disks: [at("disk.img")], more: ["-snapshot"] });
  const m = new Machine(vm);
  await vm.sees("core0: BOOTING → RUNNING");
  expect(vm.said).toContain("root.img: proven block by block, as core0-1-root");
  const idle = await m.devices();
  expect(idle.mapped).toEqual(["core0-1-root"]);

  await m.start("sound");
  const used = { mapped: ["core0-1-root", "sound-1-root"], loops: idle.loops + 2 };
  expect(await m.devices()).toEqual(used);
  await m.start("second");
  expect(await m.devices()).toEqual(used);
  await m.stop("sound");
  expect(await m.devices()).toEqual(used);
  expect(await vm.ask("list", { path: "/dev/mapper" })).toEqual(["control"]);

  const cmld = Number(/init: cmld: started, pid (\d+)/.exec(vm.said)![1]);
  await vm.ask("kill", { pid: cmld, signal: "SIGKILL" });
  await vm.sees("second: adopted");
  await vm.sees("listening on /");
  expect(await m.devices()).toEqual(used);
  await m.start("third");
  expect(await m.devices()).toEqual(used);
  await m.stop("second");
  await m.stop("third");
  await m.until(idle);
}, 300_000);

test("what is not what was signed is not read: the container ends, or does not start", async () => {
  await using vm = Vm.boot({ disks: [at("disk.img")], more: ["-snapshot"] });
  const m = new Machine(vm);
  await vm.sees("core0: BOOTING → RUNNING");
  const idle = await m.devices();

  await m.start("worn");
  const read = (path: string) => m.control("run", "--no-tty", "worn", "dd", `if=${path}`, "of=/dev/null");
  expect(await read("/bin/busybox")).toStartWith("0 ");
  expect(await read("/noise")).toMatch(/^1 .*(I\/O|Input\/output) error/s);
  await vm.sees(/worn: image worn-1-root: block \d+ is not what was signed: it is stopped/);
  await vm.sees("worn: SHUTDOWN → STOPPED");
  await m.until(idle);
  const records = await m.control("audit", "--json", "worn");
  expect(records).toContain("verify-image");
  expect(records).toContain("worn-1-root");

  expect(await m.control("start", "torn")).toContain("image torn-1-root: a block is not what was signed");
  expect(await m.control("audit", "--json", "torn")).toContain("verify-image");
  expect(await m.control("start", "changed")).toMatch(/root\.img has sha256 [0-9a-f]{64}, not /);
  await m.start("whole");
  await m.start("old");
  expect(vm.said).toContain("old-1-root: its configuration has nothing better than SHA-1");
  expect((await m.devices()).mapped).toEqual(idle.mapped);
}, 300_000);
