// Hot-plug in a machine, through QEMU's monitor: a network card and USB devices come and go while containers start and
// stop. What is named goes to the container that names it, tokens and PIN pads to none, and nothing is left behind.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { ContainerUsbType } from "../../proto/gen/proto.js";
import { counts } from "../counts.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "hotplug-"));
const file = join(folder, "disk.img");
const MAC = "52:54:00:00:00:02";
/** QEMU's usb-storage and usb-kbd: docs/specs/usb-ids.rst of QEMU. */
const [STICK, KEYBOARD] = ["46f4:0001", "0627:0001"];
/** Device programs that src/cmld/modules/devices.ts keeps: each device of a new number asks for a new one. */
const PROGRAMS_MAX = 32;
const { GENERIC, TOKEN, PIN_ENTRY } = ContainerUsbType;
/** For a shell inside: media are unmounted a moment after their device is gone. */
const EMPTY =
  'n=0; while [ -n "$(ls -A /media/external)" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; ls -A /media/external';

beforeAll(() => {
  const data = join(folder, "data");
  const web = {
    ...{ name: "web", guest_os: "busybox", net_ifaces: [{ netif: MAC, mac_filter: [] }] },
    usb_configs: [{ id: STICK, serial: "STICK", assign: true, type: GENERIC }],
  };
  // All of USB, all disks, all input devices.
  const greedy = ["c 189:* rwm", "b 8:* rwm", "c 13:* rwm"];
  const db = { name: "db", guest_os: "busybox", allow_dev: greedy };
  const vault = {
    ...{ name: "vault", guest_os: "busybox" },
    usb_configs: [
      { id: STICK, serial: "TOKEN", assign: false, type: TOKEN },
      { id: KEYBOARD, serial: "PIN", assign: false, type: PIN_ENTRY },
    ],
  };
  seed(join(data, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [CORE0, web, db, vault] as never,
  });
  disk(file, 256, data);

  const content = join(folder, "content");
  mkdirSync(content);
  writeFileSync(join(content, "hello"), "from the stick\n");
  const made = Bun.spawnSync([
    "mke2fs",
    "-q",
    "-F",
    "-t",
    "ext4",
    "-d",
    content,
    join(folder, "ext4.img"),
    "8M",
  ]);
  if (made.exitCode !== 0) throw new Error(made.stderr.toString());
  const fat = Bun.spawnSync(["mkfs.vfat", "-C", "-F", "16", join(folder, "fat.img"), "16384"]);
  if (fat.exitCode !== 0) throw new Error(fat.stderr.toString());
});
afterAll(() => rmSync(folder, { recursive: true }));

test(
  `hot-plug: a card and a USB disk ${counts.hotplug} times; never a wrong owner, no leak; tokens are nobody's`,
  async () => {
    await using vm = Vm.boot({
      disks: [file],
      more: ["-device", "qemu-xhci,id=xhci", "-netdev", "user,id=n1,restrict=on"],
    });
    const control = async (...args: string[]): Promise<string> => {
      const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
      return stdout + stderr;
    };
    /** Words on the console after `from`, in whatever order they come. */
    const said = async (from: number, ...words: RegExp[]): Promise<void> => {
      for (const end = performance.now() + 120_000; ; ) {
        const missing = words.filter((w) => !w.test(vm.said.slice(from)));
        if (missing.length === 0) return;
        if (performance.now() > end) throw new Error(`not said: ${missing}\n${vm.said.slice(from)}`);
        await Bun.sleep(20); // the console tells nobody that it has grown
      }
    };
    const image = (name: string) =>
      vm.monitor("blockdev-add", {
        ...{ driver: "raw", "node-name": name, "read-only": false },
        file: { driver: "file", filename: join(folder, `${name}.img`) },
      });
    /** What was there before is gone when QEMU has let go of it, which it does not answer but tells. */
    const plug = async (driver: string, id: string, more: object): Promise<void> => {
      for (let left = 600; ; left--)
        try {
          await vm.monitor("device_add", { driver, id, ...more });
          return;
        } catch (e) {
          if (left === 0 || !/Duplicate|in use|Permission conflict/.test(String(e))) throw e;
          await Bun.sleep(100); // until then its name, or its disk, is taken
        }
    };
    const stick = (id: string, drive: string, serial: string) =>
      plug("usb-storage", id, { bus: "xhci.0", drive, serial });
    const card = () => plug("virtio-net-pci", "nic", { netdev: "n1", mac: MAC, bus: "pci.0" });
    const unplug = (id: string) => vm.monitor("device_del", { id });
    const run = (name: string, ...argv: string[]) => control("run", name, ...argv);

    await vm.sees("core0: BOOTING → RUNNING");
    const pidOf = () => [...vm.said.matchAll(/init: cmld: started, pid (\d+)/g)].at(-1)![1];
    await image("ext4");
    await image("fat");
    expect(await control("start", "web")).toContain("CONTAINER_START_OK");
    await vm.sees(/web: \w+ → RUNNING/);

    const cycle = async (i: number): Promise<void> => {
      const from = vm.said.length;
      const starting = control("start", "db");
      await card();
      await stick("stick", "ext4", "STICK");
      expect(await starting).toContain("CONTAINER_START_OK");
      await said(
        from,
        /web: network interface cmleth\d \(52:54:00:00:00:02\) has come/,
        /web: USB device 46f4:0001 "STICK" at \S+ is there/,
        /web: media: sd\w+ \(ext4\) is on \/media/,
      );
      const node = /web: media: (sd\w+) /.exec(vm.said.slice(from))![1]!;
      const web = await run(
        ...["web", "sh", "-c"],
        `cat /media/external/${node}/hello; ls -d /dev/${node} /dev/bus/usb/*/*; ip -o link; mount`,
      );
      expect(web).toContain("from the stick");
      expect(web).toContain(`/dev/${node}`);
      expect(web).toContain(MAC);
      expect(web).toMatch(new RegExp(`${node} type ext4 \\(.*nosuid,nodev,noexec`));
      const [usb, ...more] = web.match(/^\/dev\/bus\/usb\/.*$/gm) ?? [];
      expect([usb, more]).toEqual([expect.any(String), []]);
      const db = await run("db", "sh", "-c", `ls -d /dev/sd* /dev/bus/usb/*/*; ip -o link; mount; echo end`);
      expect(db).toContain("end");
      expect(db).toContain("/dev/bus/usb/001/001"); // the hub is nobody's in particular
      expect(db).not.toContain(usb!.trim());
      expect(db).not.toMatch(/^\/dev\/sd/m);
      expect(db).not.toContain(MAC);
      expect(db).not.toContain("/media");
      const stopping = i % 2 === 0 ? control("stop", "db") : undefined;
      await unplug("stick");
      await unplug("nic");
      await said(
        from,
        /web: network interface cmleth\d \(52:54:00:00:00:02\) has gone/,
        /web: USB device 46f4:0001 "STICK" at \S+ has gone/,
      );
      expect((await stopping) ?? (await control("stop", "db"))).toContain("CONTAINER_STOP_OK");
      await said(from, /db: SHUTDOWN → STOPPED/);
      const left = await run(
        "web",
        "sh",
        "-c",
        `${EMPTY}; ls -d /dev/sd* /dev/bus/usb/*/*; ip -o link; echo end`,
      );
      expect(left).toContain("end");
      expect(left).not.toContain(MAC);
      expect(left).not.toMatch(/^(sd|\/dev)/m);
    };
    const machine = async () => {
      const cmld = pidOf();
      const open = await vm.ask("descriptors", { pid: Number(cmld) });
      const programs = open.filter((d) => d === "anon_inode:bpf-prog").length;
      expect(programs).toBeLessThanOrEqual(PROGRAMS_MAX);
      const lines = async (path: string) => (await vm.ask("read", { path })).trim().split("\n");
      return {
        mounts: (await lines(`/proc/${cmld}/mountinfo`)).length,
        links: (await lines(`/proc/${cmld}/net/dev`)).map((l) => l.split(":")[0]!.trim()).sort(),
        ledgers: await vm.ask("list", { path: "/run/cml/ledger" }),
        descriptors: open.length - programs,
        loops: (await vm.ask("list", { path: "/sys/block" })).filter((n) => n.startsWith("sd")),
      };
    };
    await cycle(0); // opens what stays open
    const before = await machine();
    for (let i = 0; i < counts.hotplug; i++) await cycle(i);
    expect(await machine()).toEqual(before);

    // Tokens and PIN pads, in the face of one whose rules allow all of USB: whether it runs already, or starts.
    const seen = async (): Promise<string> =>
      (
        await run("db", "sh", "-c", "ls -1d /dev/bus/usb/*/* /dev/sd* /dev/input/* 2>/dev/null; echo end")
      ).replaceAll("\r", "");
    expect(await control("start", "db")).toContain("CONTAINER_START_OK");
    await stick("plain", "ext4", "PLAIN");
    const until = async (what: string, right: (now: string) => boolean): Promise<string> => {
      for (let left = 200; ; left--) {
        const now = await seen();
        if (now.endsWith("end\n") && right(now)) return now;
        if (left === 0) throw new Error(`${what}: ${now}`);
        await Bun.sleep(50); // the container says nothing when a node appears
      }
    };
    const count = (text: string, word: RegExp) => text.match(word)?.length ?? 0;
    const [usbNodes, disks, inputs] = [/^\/dev\/bus\/usb/gm, /^\/dev\/sd/gm, /^\/dev\/input\/event/gm];
    // What nobody names goes by the rules: the test is able to fail.
    const plain = await until("no disk", (now) => count(now, disks) > 0);
    await unplug("plain");
    await until("a disk", (now) => count(now, disks) === 0);
    /** The machine itself has so many. */
    const has = async (path: string, word: RegExp, number: number): Promise<void> => {
      for (
        let left = 600;
        (await vm.ask("list", { path })).filter((n) => word.test(n)).length !== number;
        left--
      ) {
        if (left === 0) throw new Error(`${path}: not ${number} of ${word}`);
        await Bun.sleep(50); // what the kernel finds, it does not tell the test
      }
    };
    const [events, machineEvents] = [
      count(plain, inputs),
      (await vm.ask("list", { path: "/sys/class/input" })).filter((n) => /^event/.test(n)).length,
    ];
    await stick("token", "fat", "TOKEN");
    await plug("usb-kbd", "pin", { bus: "xhci.0", serial: "PIN" });
    await has("/sys/block", /^sd/, 1);
    await has("/sys/class/input", /^event/, machineEvents + 1);
    await plug("usb-kbd", "keys", { bus: "xhci.0", serial: "KEYS" });
    const withKeys = await until("not one keyboard more", (now) => count(now, inputs) > events);
    expect(count(withKeys, inputs)).toBe(events + 1);
    expect(count(withKeys, disks)).toBe(0);
    // The hubs and the keyboard that nobody names; not the token, nor the PIN pad.
    expect(count(withKeys, usbNodes)).toBe(count(plain, usbNodes));
    const stopped = vm.said.length;
    expect(await control("stop", "db")).toContain("CONTAINER_STOP_OK");
    await said(stopped, /db: SHUTDOWN → STOPPED/);
    expect(await control("start", "db")).toContain("CONTAINER_START_OK");
    const again = await seen();
    expect(again).toBe(withKeys);

    // The next cmld knows whose the stick is, and that it goes.
    const from = vm.said.length;
    await stick("stick", "ext4", "STICK");
    await said(from, /web: media: sd\w+ \(ext4\)/);
    await vm.ask("kill", { pid: Number(pidOf()), signal: "SIGKILL" });
    await said(from, /web: adopted/, /db: adopted/);
    const next = await seen();
    expect(next).toEndWith("end\n");
    expect(count(next, disks)).toBe(0);
    expect(await run("web", "sh", "-c", "cat /media/external/sd*/hello")).toContain("from the stick");
    await unplug("stick");
    await said(from, /web: USB device 46f4:0001 "STICK" at \S+ has gone/);
    expect(await run("web", "sh", "-c", `${EMPTY}; echo end`)).toMatch(/^end/);

    // A stick with a FAT file system, named by nobody, goes to the one whose rules allow disks.
    await unplug("token");
    const later = vm.said.length;
    await stick("fat", "fat", "FAT");
    await said(later, /db: media: sd\w+ \(vfat\) is on/);
    expect(
      await run("db", "sh", "-c", "echo x > /media/external/$(ls /media/external)/x && echo written"),
    ).toContain("written");
  },
  600_000 + counts.hotplug * 30_000,
);
