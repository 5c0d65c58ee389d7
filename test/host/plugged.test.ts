// Devices and media that come and go while real containers run. The devices are zram disks, which the kernel makes and
// removes when it is asked to; what a container hears is heard in its own network namespace.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { closure } from "../../initramfs/libraries.ts";
import type { Container } from "../../src/cmld/container.ts";
import { hotplug } from "../../src/cmld/devices/hotplug.ts";
import { eject, insert } from "../../src/cmld/devices/media.ts";
import { rulesOf } from "../../src/cmld/modules/devices.ts";
import { openIn } from "../../src/run/netns.ts";
import { AT_FDCWD, bindNetlink, O_RDWR, openat, SOL_SOCKET, setsockopt } from "../../src/sys/calls.ts";
import { chain } from "../../src/sys/error.ts";
import { Fd } from "../../src/sys/fd.ts";
import { attachLoop, type Loop } from "../../src/sys/loop.ts";
import { now } from "../../src/sys/now.ts";
import { receiveMessage } from "../../src/sys/scm.ts";
import { parseUevent, senderSocket, type Uevent } from "../../src/sys/uevent.ts";
import { busyboxRoot, difference, Type, UID_START, until, World } from "./world.ts";

const ZRAM = "/sys/class/zram-control";
let world: World;
let before: string[];
const said: string[] = [];
const running: Container[] = [];

beforeAll(async () => {
  if (!existsSync(ZRAM)) throw new Error("this test plugs zram disks in and out: modprobe zram");
  world = World.open();
  hotplug.begin(
    () => [],
    (line) => void said.push(line),
  );
  await world.sh("true");
  await hotplug.idle();
  before = await world.atRest();
});
afterAll(async () => {
  hotplug.end();
  await world[Symbol.asyncDispose]();
});
afterEach(async () => {
  for (const c of running.splice(0)) await c.kill();
  await hotplug.idle();
  await until(() => difference(before, world.snapshot()));
  expect(said.splice(0)).toEqual([]);
});

const up = async (config: Record<string, unknown> = {}, recipe: object = {}): Promise<Container> => {
  const c = world.container({
    init: ["/bin/sleep", "1000000"],
    config: { loopback_only: true, ...config },
    ...recipe,
  });
  await c.start({ setup: false });
  running.push(c);
  hotplug.running(c.uuid); // as the daemon says it
  await hotplug.idle();
  return c;
};
const inside = (c: Container, path: string): string => `/proc/${c.pid}/root${path}`;

const plug = (): string => `zram${readFileSync(`${ZRAM}/hot_add`, "utf8").trim()}`;
const unplug = (name: string): void => writeFileSync(`${ZRAM}/hot_remove`, name.slice("zram".length));
const numberOf = (name: string): string => readFileSync(`/sys/block/${name}/dev`, "utf8").trim();

/** What is heard in a container, with the user who is said to have sent it. */
function listen(c: Container) {
  const [fd] = openIn(c.process!.pidfd, [senderSocket]);
  const SO_PASSCRED = 16;
  now(setsockopt(fd!.n, SOL_SOCKET, SO_PASSCRED, 1));
  now(bindNetlink(fd!.n, 1));
  return {
    [Symbol.dispose]: () => fd!.close(),
    events(): { event: Uevent; uid: number }[] {
      const all: { event: Uevent; uid: number }[] = [];
      for (;;) {
        const got = receiveMessage(fd!, 8192);
        if (typeof got === "string") return all;
        const event = parseUevent(got.bytes);
        if (event) all.push({ event, uid: got.uid ?? -1 });
      }
    },
  };
}

test("a device that a rule allows: its node, its number and the kernel's words come and go with it; others get nothing", async () => {
  const owner = await up({ allow_dev: ["b 253:* rwm"] });
  const other = await up({ allow_dev: ["b 8:* rwm"] }, { uidStart: UID_START + 65536 });
  using heard = listen(owner);
  using elsewhere = listen(other);
  const name = plug();
  const number = numberOf(name);
  await hotplug.idle();
  await until(() => (existsSync(inside(owner, `/dev/${name}`)) ? [] : [`no /dev/${name}`]));
  expect(existsSync(inside(other, `/dev/${name}`))).toBe(false);
  unplug(name);
  await until(() => (existsSync(inside(owner, `/dev/${name}`)) ? [`/dev/${name} is there`] : []));
  await hotplug.idle();

  const events = heard.events().filter(({ event }) => event.values.get("DEVNAME") === name);
  expect(events.map(({ event }) => event.action)).toEqual(["add", "remove"]);
  for (const { event, uid } of events) {
    expect(uid).toBe(UID_START); // root of the container: else its udev would not believe it
    expect(`${event.values.get("MAJOR")}:${event.values.get("MINOR")}`).toBe(number);
    expect(event.values.has("SEQNUM")).toBe(true);
  }
  expect(elsewhere.events()).toEqual([]);
});

test("a container that has booted is told what was there before it", async () => {
  const name = plug();
  const c = world.container({
    init: ["/bin/sleep", "1000000"],
    config: { loopback_only: true, allow_dev: [`b ${numberOf(name)} rwm`] },
  });
  await c.start({ setup: false });
  running.push(c);
  using heard = listen(c);
  hotplug.running(c.uuid);
  await hotplug.idle();
  const told = heard.events().map(({ event, uid }) => [event.action, event.values.get("DEVNAME"), uid]);
  expect(told).toEqual([["add", name, UID_START]]);
  unplug(name);
});

test("Debian's udevd in a container takes the events for the kernel's: its rules run, its links come and go", async () => {
  const [UDEVADM, FOLDER] = ["/usr/bin/udevadm", "/run/udev"];
  world.image("udev", (root) => {
    busyboxRoot(root);
    for (const folder of ["lib", "lib64", "etc/udev/rules.d"])
      mkdirSync(join(root, folder), { recursive: true });
    for (const { name, from } of closure([UDEVADM]))
      copyFileSync(from, join(root, name.startsWith("ld-") ? "lib64" : "lib", name));
    copyFileSync(UDEVADM, join(root, "bin/systemd-udevd")); // by its name it is the daemon
    const run = "/bin/busybox sh -c 'echo $env{ACTION} %k >> /run/told'";
    writeFileSync(
      join(root, "etc/udev/rules.d/10-test.rules"),
      `KERNEL=="zram*", SYMLINK+="disk/by-test/%k", RUN+="${run}"\n`,
    );
  });
  const c = await up(
    { allow_dev: ["b 253:* rwm"] },
    {
      init: ["/bin/systemd-udevd"],
      mounts: [{ image_file: "udev", mount_point: "/", mount_type: Type.SHARED }],
    },
  );
  // Its control socket comes before the one that hears the kernel (NETLINK_KOBJECT_UEVENT is 15, whose group is 1).
  const hearsKernel = /^\S+ 15 +\d+ +00000001 /m;
  await until(() =>
    hearsKernel.test(readFileSync(`/proc/${c.pid}/net/netlink`, "utf8")) ? [] : ["udevd does not listen"],
  );
  const told = () => {
    const file = inside(c, "/run/told");
    return existsSync(file) ? readFileSync(file, "utf8").trim().split("\n") : [];
  };
  const hears = (word: string) => until(() => (told().includes(word) ? [] : [`not ${word}`, ...told()]));
  const name = plug();
  const [link, data] = [
    inside(c, `/dev/disk/by-test/${name}`),
    inside(c, `${FOLDER}/data/b${numberOf(name)}`),
  ];
  await hears(`add ${name}`);
  expect(readlinkSync(link)).toBe(`../../${name}`);
  expect(existsSync(data)).toBe(true);
  await until(() => {
    try {
      unplug(name);
      return [];
    } catch (e) {
      return [chain(e)]; // udevd has it open until its rules have run
    }
  });
  await hears(`remove ${name}`);
  await until(() => [link, data].filter((path) => lstatSync(path, { throwIfNoEntry: false }) !== undefined));
});

test("links that a container puts into its /dev lead no node of ours outside", async () => {
  const c = await up({ allow_dev: ["b 253:* rwm"] });
  // A device's name may have folders (bus/usb/001/002); the container owns them.
  const dev = inside(c, "/dev");
  const name = plug();
  unplug(name);
  await hotplug.idle();
  const outside = join(world.directory, "outside");
  mkdirSync(outside);
  symlinkSync(join(outside, "file"), join(dev, name));
  const again = plug();
  expect(again).toBe(name);
  await until(() => (world.log.some((l) => l.includes(`/dev/${name} cannot be made`)) ? [] : world.log));
  expect(readdirSync(outside)).toEqual([]);
  unplug(name);
  await hotplug.idle();
  expect(readdirSync(outside)).toEqual([]);
  expect(rulesOf(c.uuid).length).toBe(1);
});

// --- media -----------------------------------------------------------------------------

/** A disk with an ext4 on it. */
function disk(): Loop & { node: string } & Disposable {
  const file = join(world.directory, "medium");
  const folder = join(world.directory, "content");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "hello"), "from the stick\n");
  const made = Bun.spawnSync(["mke2fs", "-q", "-F", "-t", "ext4", "-d", folder, file, "8M"]);
  if (made.exitCode !== 0) throw new Error(made.stderr.toString());
  using fd = new Fd(now(openat(AT_FDCWD, file, O_RDWR)));
  const loop = attachLoop(fd, false, file);
  return { ...loop, node: loop.path.slice("/dev/".length), [Symbol.dispose]: () => loop.fd.close() };
}
const medium = (d: { node: string }) => {
  const [major, minor] = numberOf(d.node).split(":").map(Number);
  return { kind: "b" as const, major: major!, minor: minor!, node: d.node, sequence: "" };
};
const hostOf = (c: Container) => ({
  uidStart: UID_START,
  pid: c.pid!,
  pidfd: c.process!.pidfd,
  stage: join(world.host.run, "root"),
});

test("a medium is mounted in the container alone, by its kind, locked, its files the container's; and goes again", async () => {
  const c = await up({}, { mounts: [{ mount_point: "/", mount_type: Type.SHARED_RW }] });
  using d = disk();
  expect(await insert(medium(d), hostOf(c), false)).toBe("ext4");
  const place = `/media/external/${d.node}`;
  expect(readFileSync(inside(c, `${place}/hello`), "utf8")).toBe("from the stick\n");
  const mounts = () => readFileSync(`/proc/${c.pid}/mountinfo`, "utf8").split("\n");
  expect(mounts().find((l) => l.includes(place))).toMatch(/ rw,nosuid,nodev,noexec,relatime.* - ext4 /);
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(place);
  expect(await insert(medium(d), hostOf(c), false)).toBeUndefined(); // somebody has it

  // Its root can neither take the flags off nor is it shown as somebody else's.
  const asRoot = (...argv: string[]) =>
    Bun.spawnSync(["nsenter", "-t", String(c.pid), "-U", "-m", "-S", "0", "-G", "0", "--", ...argv]);
  const remount = ["/bin/busybox", "mount", "-o", "remount,bind,suid,dev,exec", place];
  expect(asRoot(...remount).exitCode).not.toBe(0);
  expect(asRoot("/bin/busybox", "stat", "-c", "%u", `${place}/hello`).stdout.toString()).toBe("0\n");
  expect(asRoot("/bin/busybox", "touch", `${place}/mine`).exitCode).toBe(0);

  await eject(d, hostOf(c));
  await eject(d, hostOf(c));
  expect(mounts().some((l) => l.includes(place))).toBe(false);
  expect(existsSync(inside(c, place))).toBe(false);
});

test("a root that cannot be written to gets room on /media if it has one, and a medium never leads outside", async () => {
  world.image("room", (root) => {
    mkdirSync(join(root, "bin"));
    for (const folder of ["media", "proc", "sys", "dev", "run", "sbin", "etc"]) mkdirSync(join(root, folder));
    writeFileSync(join(root, "bin/sleep"), readFileSync("/bin/busybox"), { mode: 0o755 });
  });
  const c = await up({}, { mounts: [{ mount_point: "/", image_file: "room" }] });
  using d = disk();
  expect(await insert(medium(d), hostOf(c), true)).toBe("ext4");
  const line = readFileSync(`/proc/${c.pid}/mountinfo`, "utf8")
    .split("\n")
    .find((l) => l.includes(`/media/external/${d.node}`));
  expect(line).toMatch(/nosuid,nodev,noexec,.* - ext4 \S+ ro,/);
  await eject(d, hostOf(c));

  // /media is a link out of the image's tree, as far as the host is concerned.
  const target = join(world.directory, "target");
  mkdirSync(target);
  world.image("linked", (root) => {
    mkdirSync(join(root, "bin"));
    for (const folder of ["proc", "sys", "dev", "run", "sbin", "etc"]) mkdirSync(join(root, folder));
    symlinkSync(`../../../../../../../..${target}`, join(root, "media"));
    writeFileSync(join(root, "bin/sleep"), readFileSync("/bin/busybox"), { mode: 0o755 });
  });
  const hostile = await up(
    {},
    { mounts: [{ mount_point: "/", image_file: "linked", mount_type: Type.SHARED_RW }] },
  );
  const refused = await insert(medium(d), hostOf(hostile), false).then(() => "mounted", chain);
  expect(refused).toMatch(/openat2.*ELOOP|ENOTDIR/);
  expect(readdirSync(target)).toEqual([]);
});

test("a medium that says nothing that we know, or nothing at all, is mounted nowhere", async () => {
  const c = await up();
  const name = plug();
  const [major, minor] = numberOf(name).split(":").map(Number);
  const m = { kind: "b" as const, major: major!, minor: minor!, node: name, sequence: "" };
  expect(await insert(m, hostOf(c), false)).toBeUndefined(); // no size
  writeFileSync(`/sys/block/${name}/disksize`, "1M");
  expect(await insert(m, hostOf(c), false)).toBeUndefined();
  expect(await insert({ ...m, minor: minor! + 1 }, hostOf(c), false)).toBeUndefined(); // another device
  const sequence = readFileSync(`/sys/block/${name}/diskseq`, "utf8").trim();
  Bun.spawnSync(["mke2fs", "-q", "-F", "-t", "ext4", `/dev/${name}`]);
  expect(await insert({ ...m, sequence: `${sequence}1` }, hostOf(c), false)).toBeUndefined(); // replaced since
  writeFileSync(`/sys/block/${name}/reset`, "1");
  unplug(name);
});
