// Sealed volumes in a machine, whose kernel has the device-mapper: made, opened, grown, and refused when somebody has
// changed them. dmsetup(8) opens ours, and we open its, by the original's table strings.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { C0 } from "../../src/lib/uuid.ts";
import { SEED } from "../chance.ts";
import { counts } from "../counts.ts";
import { Vm } from "./qemu.ts";
import { inside, MIB, sealedDisk, telling, WEB } from "./sealed.ts";

const folder = mkdtempSync(join(tmpdir(), "crypt-"));
const file = join(folder, "disk.img");
beforeAll(() => sealedDisk(folder, file, 1024));
afterAll(() => rmSync(folder, { recursive: true }));

test("a volume is made once, sealed, and has the same content at the next start; wiped, it is gone", async () => {
  await using vm = Vm.boot({ disks: [file] });
  await telling(vm, async () => {
    await vm.sees("core0: BOOTING → RUNNING");
    const { control, dmsetup, start, stop, sh } = inside(vm);
    const images = () => vm.ask("list", { path: `/data/cml/containers/${WEB}` });
    expect(await vm.ask("list", { path: "/sys/module" })).not.toContain("dm_crypt");

    await start();
    expect(vm.said).toContain(`made volume data: ${MIB} MiB, INTEGRITY_ENCRYPT`);
    expect(await images()).toEqual(["data.img", "data.made", "data.meta.img", "not-stacked"]);
    expect(await dmsetup("table", `${WEB}-data`)).toMatch(
      new RegExp(`^0 0 ${MIB * 2048} crypt aes-xts-plain64 :64:logon:cml:\\S+ 0 \\d+:\\d+ 0\\s*$`),
    );
    expect(await dmsetup("table", `${WEB}-data-integrity`)).not.toContain("allow_discards");
    expect(await sh("echo precious > /data/kept; sync; grep ' /data ' /proc/mounts")).toContain("ext4");
    expect(await control("state", "web")).toContain("INTEGRITY_ENCRYPT");
    await stop();
    expect(await dmsetup("ls")).not.toContain(WEB);

    await start();
    expect(await sh("cat /data/kept")).toBe("0 precious\n");
    expect(vm.said.match(/made volume/g)).toHaveLength(1);
    await stop();

    // In setup mode it is below /setup, and no descriptor of it or of ours is in there.
    expect(await control("start", "--setup", "web")).toContain("CONTAINER_START_OK");
    await vm.sees("web: STARTING → SETUP");
    const busybox = (...args: string[]) => control("run", "web", "nopty", "/setup/bin/busybox", ...args);
    expect(await busybox("cat", "/setup/data/kept")).toBe("0 precious\n");
    expect(await busybox("grep", " /setup/data ", "/proc/mounts")).toContain(" /setup/data ext4 ");
    const open = await busybox("ls", "-l", "/proc/1/fd");
    for (const [, n, what] of open.matchAll(/ (\d+) -> (.*)$/gm))
      if (Number(n) > 2) expect(what).toMatch(/^(anon_inode|pipe|socket):/);
    await stop();

    // A key without its volume's superblock opens nothing, and nothing is made in its place.
    const meta = `/data/cml/containers/${WEB}/data.meta.img`;
    await vm.ask("write", { path: meta, text: "no superblock" });
    expect(await control("start", "web")).toContain("superblock is damaged");
    for (const verb of ["start", "stop"])
      expect(await control(verb, "web")).toMatch(/CONTAINER_CTRL_EINTERNAL[\s\S]*ZOMBIE/);
    expect(await control("wipe", "web")).toMatch(/^0 /);
    expect(await images()).toEqual([]);
    expect(await vm.ask("list", { path: "/data/cml/keys" })).toEqual([]);
    await start();
    expect(await sh("ls /data")).toBe("0 lost+found\n");
    await stop();
  });
}, 400_000);

test("dmsetup opens ours and we open its, in the three modes; what is changed is refused; what grows keeps its files", async () => {
  await using vm = Vm.boot({ disks: [file] });
  await telling(vm, async () => {
    await vm.sees("core0: BOOTING → RUNNING");
    const { volumes } = inside(vm);
    const at = (name: string) => `/data/${name}`;
    for (const kind of ["INTEGRITY_ENCRYPT", "INTEGRITY_ONLY", "AUTHENC"]) {
      const made = await volumes("as-original", at(kind), 16, kind, "one", "two");
      expect(await volumes("read", at(kind), 16, kind)).toEqual(made);
      expect(await volumes("by-original", at(kind), 16, kind)).toEqual(made);
    }
    const first = await volumes("write", at("ours"), 16, "one");
    expect(await volumes("by-original", at("ours"), 16, "INTEGRITY_ENCRYPT")).toEqual(first);
    const second = (await volumes("write", at("ours"), 40, "two")) as Record<string, string>;
    expect(second).toMatchObject(first as object);
    expect((await vm.ask("stat", { path: `${at("ours")}/data.img` })).size).toBe(40 << 20);
    expect(await volumes("by-original", at("ours"), 40, "INTEGRITY_ENCRYPT")).toEqual(second);
    expect(await volumes("read", at("ours"), 16)).toEqual(second);
    await expect(volumes("with-another-key", at("ours"), 40)).rejects.toThrow(
      "its first sectors can't be read",
    );
    expect(await volumes("read", at("ours"), 40)).toEqual(second);

    // A key that is another's, or an image that somebody has changed, gives an error and never other data.
    const big = (await volumes("write", at("changed"), 32, "a", "b", "c")) as object;
    expect(Object.keys(big)).toEqual(["a", "b", "c"]);
    const told = await volumes("tamper", at("changed"), 32, counts.tampered, SEED);
    console.log(JSON.stringify(told));
    expect(told).toEqual({
      unreadable: 0,
      tags: 8,
      changed: { right: 0, refused: counts.tampered, wrong: 0 },
      forged: { right: 0, refused: 8, wrong: 0 },
      intact: { right: 32, refused: 0, wrong: 0 },
    });
  });
}, 600_000);

test("a backup is restored on another machine, by its recovery key alone; core0's volume; volume_discard", async () => {
  const [one, two] = ["one", "two"].map((name) => join(folder, `${name}.img`)) as [string, string];
  sealedDisk(join(folder, "one"), one, 512, { core0: "vault", device: { volume_discard: true } });
  let words = "";
  {
    await using vm = Vm.boot({ disks: [one], more: ["-uuid", "00000000-1111-4000-8000-000000000001"] });
    await telling(vm, async () => {
      await vm.sees("core0: BOOTING → RUNNING");
      const { control, dmsetup, start, stop, sh } = inside(vm);
      expect(vm.said).toContain(`core0: made volume data: ${MIB} MiB, INTEGRITY_ENCRYPT`);
      expect(await vm.ask("list", { path: "/data/cml/keys" })).toContain(`${C0}.sealed`);
      expect(await dmsetup("table", `${C0}-data-integrity`)).toContain("allow_discards");
      await start();
      for (const device of [`${WEB}-data`, `${WEB}-data-integrity`])
        expect(await dmsetup("table", device)).toContain("allow_discards");
      expect(await sh("grep ' /data ' /proc/mounts")).toContain("discard");
      // What is removed there is not on the disk any more.
      const image = `/data/cml/containers/${WEB}/data.img`;
      const stored = async () => (await vm.ask("stat", { path: image })).blocks;
      expect(await sh("dd if=/dev/urandom of=/data/big bs=1M count=8; sync")).toStartWith("0 ");
      const full = await stored();
      expect(await sh("rm /data/big; sync")).toBe("0 ");
      for (let left = 200; full - (await stored()) < (6 << 20) / 512; left--) {
        if (left === 0) throw new Error(`${await stored()} of ${full} blocks are still there`);
        await Bun.sleep(50); // ext4 discards after its commit, and tells nobody
      }
      expect(await sh("echo saved > /data/saved; sync")).toBe("0 ");
      expect(await control("export", "web", "/data/web.backup")).toContain("stop it first");
      await stop();
      expect(await control("export", "web", "/data/web.backup")).toContain("it has no recovery key");
      words = /^0 ((?:[a-z]{5}-){8}[a-z]{5})$/m.exec(await control("recovery_key", "web"))![1]!;
      expect(await control("export", "web", "/data/web.backup")).toMatch(/^0 /);
      expect((await vm.ask("stat", { path: "/data/web.backup" })).mode & 0o777).toBe(0o600);
      await vm.monitor("system_powerdown");
      await vm.ended();
    });
  }
  const backup = join(folder, "web.backup");
  const read = Bun.spawnSync(["debugfs", "-R", `dump /web.backup ${backup}`, `${one}?offset=${1 << 20}`]);
  expect([read.exitCode, existsSync(backup)]).toEqual([0, true]);
  sealedDisk(join(folder, "two"), two, 512, { empty: true, file: backup });
  await using vm = Vm.boot({ disks: [two], more: ["-uuid", "00000000-1111-4000-8000-000000000002"] });
  await telling(vm, async () => {
    await vm.sees("core0: BOOTING → RUNNING");
    const { control, stop, sh } = inside(vm);
    const restore = async (said: string) => {
      const argv = ["/usr/sbin/control", "import", "/data/web.backup"];
      const { status, stdout, stderr } = await vm.ask("run", { argv, stdin: `${said}\n` });
      return `${status} ${stdout}${stderr}`;
    };
    expect(await restore(words.replace(/^./, (c) => (c === "b" ? "d" : "b")))).toContain("recovery key");
    expect(await restore("lusab-babad-gutih-tugad-lusab-babad-gutih-tugad-tizol")).toContain("recovery key");
    expect(await control("list")).not.toContain('"web"');
    expect(await restore(words)).toMatch(/^0 /);
    expect(await control("start", "web")).toContain("CONTAINER_START_OK");
    await vm.sees("web: BOOTING → RUNNING");
    expect(await sh("cat /data/saved")).toBe("0 saved\n");
    await stop();
  });
}, 400_000);
