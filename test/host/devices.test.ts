// Devices on a real kernel: the program on the container's group, nodes in its /dev, attempts to get at others.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import {
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { Container } from "../../src/cmld/container.ts";
import { deviceOf, makeNode, type Node, removeNode } from "../../src/cmld/devices/nodes.ts";
import {
  DEFAULT,
  DEFAULT_DEVICES,
  type Device,
  parseDeviceRule,
  program,
  ruleOf,
  type Statement,
} from "../../src/cmld/devices/rules.ts";
import type { Module } from "../../src/cmld/module.ts";
import * as devices from "../../src/cmld/modules/devices.ts";
import { launch, reap } from "../../src/run/launch.ts";
import {
  AT_FDCWD,
  exit,
  mkdirat,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  openat,
  symlinkat,
} from "../../src/sys/calls.ts";
import { make, remove } from "../../src/sys/cgroup.ts";
import { attach, attached, detach, loadDeviceProgram } from "../../src/sys/ebpf.ts";
import { chain } from "../../src/sys/error.ts";
import { Fd } from "../../src/sys/fd.ts";
import { mountAsFd } from "../../src/sys/mounts.ts";
import { now } from "../../src/sys/now.ts";
import { ended } from "../../src/sys/poll.ts";
import { counts } from "../counts.ts";
import type { Task } from "./manager.ts";
import { difference, product, ROOT, UID_START, until, World } from "./world.ts";

let world: World;
let before: string[];

beforeAll(async () => {
  world = World.open();
  await world.sh("true");
  before = await world.atRest();
});
afterAll(async () => await world[Symbol.asyncDispose]());
afterEach(async () => {
  for (const c of running.splice(0)) await c.kill();
  world.log.length = 0;
  await until(() => difference(before, world.snapshot()));
});

/** A device of this machine that is on no list and that everybody may open, as far as its node is concerned. */
const FOREIGN: Node = { kind: "c", major: 10, minor: 235, path: "autofs", mode: 0o666 };
const FOREIGN_RULE = "c 10:235 rwm";
const rule = parseDeviceRule;

const running: Container[] = [];
async function started(recipe: Parameters<World["container"]>[0] = {}): Promise<Container> {
  const c = world.container({ init: ["/bin/sleep", "1000"], ...recipe });
  running.push(c);
  await c.start({ setup: false });
  return c;
}

/** What a process in the container's group is told when it opens a device of the host. */
async function opens(group: string, path: string, flags = O_RDONLY): Promise<string> {
  using at = new Fd(now(openat(AT_FDCWD, group, O_RDONLY | O_DIRECTORY)));
  const child = launch([openat(AT_FDCWD, path, flags), exit(0)], 0n, at.n);
  using pidfd = child.pidfd;
  const failure = child.started().catch(chain);
  await ended(pidfd);
  reap(pidfd);
  return (await failure)?.replace(/.*: /, "") ?? "opened";
}
const inside = (c: Container, path: string, flags?: number) => opens(join(c.group, "child"), path, flags);

/** Nodes in a running container's /dev. */
function nodesIn(c: Container, folder = ""): string[] {
  return readdirSync(`/proc/${c.pid}/root/dev/${folder}`, { withFileTypes: true })
    .flatMap((e) => {
      const path = join(folder, e.name);
      if (e.isDirectory()) return ["pts", ".cml"].includes(path) ? [] : nodesIn(c, path);
      return e.isCharacterDevice() || e.isBlockDevice() ? [path] : [];
    })
    .sort();
}
const USUAL = ["full", "fuse", "net/tun", "null", "random", "tty", "urandom", "zero"];

// --- the program -----------------------------------------------------------------------

const loaded = (...list: Statement[]): Fd => loadDeviceProgram("test", program(list));
const statement = (allow: boolean, text: string): Statement => ({ allow, rule: rule(text), by: "control" });

test("a program decides, is replaced in one step, and goes with its group", async () => {
  const group = join(world.host.cgroup, "probe");
  make(group);
  {
    using at = new Fd(now(openat(AT_FDCWD, group, O_RDONLY | O_DIRECTORY)));
    using first = loaded(statement(true, "c 1:5 r"), statement(true, "c 1:7 r"), statement(true, "c 1:7 w"));
    attach(at, first);
    const said = async () => [
      await opens(group, "/dev/zero"),
      await opens(group, "/dev/zero", O_RDWR),
      await opens(group, "/dev/full", O_RDWR),
      await opens(group, "/dev/null"),
    ];
    expect(await said()).toEqual(["opened", "EPERM", "opened", "EPERM"]);
    const [id] = attached(at);
    using second = loaded(statement(true, "c 1:* rw"), statement(false, "c 1:7 rwm"));
    attach(at, second);
    expect(attached(at)).toHaveLength(1);
    expect(attached(at)).not.toEqual([id!]);
    expect(await said()).toEqual(["opened", "opened", "EPERM", "opened"]);
    second.close(); // the group has it
    expect(await said()).toEqual(["opened", "opened", "EPERM", "opened"]);
    using third = loaded();
    attach(at, third);
    expect(await said()).toEqual(["EPERM", "EPERM", "EPERM", "EPERM"]);
    detach(at, third);
    expect(attached(at)).toEqual([]);
    expect(await said()).toEqual(["opened", "opened", "opened", "opened"]);
  }
  await remove(group);
});

test("the kernel's verifier takes as many statements as there may be", () => {
  const some = (n: number): Statement => ({
    allow: n % 3 > 0,
    rule: { kind: (["a", "b", "c"] as const)[n % 3]!, major: n % 7, minor: n, access: 1 + (n % 7) },
    by: "control",
  });
  const began = performance.now();
  loaded(...Array.from({ length: 1024 }, (_, n) => some(n))).close();
  console.log(`1024 statements: loaded in ${(performance.now() - began).toFixed(1)} ms`);
});

test("what the kernel does not take is said in its words", () => {
  expect(() => loadDeviceProgram("bad", program([]).slice(0, 1))).toThrow(/^loading program bad \(.+\)$/);
});

// --- what a container has --------------------------------------------------------------

test("every container has the default list, and its nodes", async () => {
  const c = await started();
  using group = new Fd(now(openat(AT_FDCWD, c.group, O_RDONLY | O_DIRECTORY)));
  expect(attached(group)).toHaveLength(1);
  expect(nodesIn(c)).toEqual(USUAL);
  for (const [numbers] of DEFAULT_DEVICES.filter(([n]) => !n.includes("*")))
    expect(devices.accessFor(c.uuid, rule(`c ${numbers}`) as Device)).toBe(7);
  for (const path of ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"])
    expect([path, await inside(c, path, O_RDWR)]).toEqual([path, "opened"]);
  // Nothing else that this machine has, as root of the machine: 4:0 is tty0, 7 are loops.
  for (const path of [
    "/dev/loop-control",
    "/dev/loop0",
    "/dev/tty0",
    "/dev/console",
    "/dev/kmsg",
    "/dev/autofs",
  ])
    if (existsSync(path)) expect([path, await inside(c, path)]).toEqual([path, "EPERM"]);
});

test("allow_dev: the device can be used and has its node, others have none", async () => {
  const c = await started({ config: { allow_dev: [FOREIGN_RULE, "c 4:1 r"] } });
  expect(nodesIn(c)).toEqual([...USUAL, "autofs", "tty1"].sort());
  const { uid, gid } = statSync(`/proc/${c.pid}/root/dev/tty1`);
  expect([uid, gid]).toEqual([UID_START, UID_START]);
  expect([await inside(c, "/dev/autofs", O_RDWR), await inside(c, "/dev/tty1", O_RDWR)]).toEqual([
    "opened",
    "EPERM",
  ]);
  const { said } = await world.sh("cat /dev/autofs", { config: { allow_dev: [FOREIGN_RULE] } });
  expect(said).toMatch(/Invalid argument|Inappropriate/); // opened; there is nothing to read
});

test("a rule for many devices stops at the machine's own, and says so", async () => {
  const c = await started({ config: { allow_dev: ["c 10:* rwm", "b 7:* rwm"] } });
  expect(world.log.join("\n")).toContain(
    "allow_dev[0]: c 10:* rwm: the machine's own stay closed: c 10:130 rwm",
  );
  expect(world.log.join("\n")).toContain("allow_dev[1]: b 7:* rwm: the machine's own stay closed: b 7:* rwm");
  expect(await inside(c, "/dev/autofs")).toBe("opened");
  expect([await inside(c, "/dev/loop-control"), await inside(c, "/dev/loop0")]).toEqual(["EPERM", "EPERM"]);
  expect(nodesIn(c).filter((n) => n.startsWith("loop"))).toEqual([]);
});

test("the disks that this machine has mounted stay closed", async () => {
  const disk = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[2] ?? "")
    .find((dev) => existsSync(`/sys/dev/block/${dev}`))!;
  const numbers = disk.split(":").map(Number);
  const own: Device = { kind: "b", major: numbers[0]!, minor: numbers[1]! };
  const c = await started({ config: { allow_dev: [`b ${own.major}:*`] } });
  expect(devices.accessFor(c.uuid, own)).toBe(0);
  expect(() => devices.allow(c.uuid, ruleOf(own), { by: "control" })).toThrow(
    "names devices that are the machine's own",
  );
});

// --- whose it is -----------------------------------------------------------------------

test("an assigned device is nobody else's, whoever comes first; the holder is named", async () => {
  const web = await started({ config: { name: "web", assign_dev: ["c 10:235"] } });
  expect(await world.failure({ config: { name: "db", allow_dev: ["c 10:* r"] } })).toBe(
    'start db: prepare devices: allow_dev[0]: device rule "c 10:* r": web is assigned "c 10:235 rwm"',
  );
  expect(await world.failure({ config: { name: "db", assign_dev: ["a 10:235"] } })).toContain(
    "assign_dev[0]: device rule",
  );
  const db = await started({ config: { name: "db", allow_dev: ["c 4:1"] } });
  expect(() => devices.allow(db.uuid, rule("c 10:235 r"), { by: "control" })).toThrow("web is assigned");
  expect(() => devices.allow(web.uuid, rule("c 4:1"), { by: "hotplug", assigned: true })).toThrow(
    "db is allowed",
  );
  await web.kill();
  devices.allow(db.uuid, rule("c 10:235 r"), { by: "control" });
  expect(await inside(db, "/dev/autofs")).toBe("opened");
});

test("of two configurations that want the same, the older one starts", async () => {
  const uuids = [crypto.randomUUID(), crypto.randomUUID()];
  const claims = [{ rule: rule("c 4:3"), assigned: true }];
  const claiming = uuids.map((uuid, i) => ({ uuid, name: `c${i}`, created: i, claims }));
  const { host } = world;
  const [older, newer] = uuids.map((uuid) => {
    const c = world.container({ uuid, init: ["/bin/sleep", "1000"], config: { assign_dev: ["c 4:3"] } });
    Object.assign(c.around, { host: { ...host, claims: () => claiming } });
    running.push(c);
    return c;
  });
  expect(await newer!.start({ setup: false }).catch(chain)).toContain('c0 is assigned "c 4:3 rwm"');
  await older!.start({ setup: false });
  expect(() =>
    devices.checkClaims(
      { host: { ...host, claims: () => claiming }, uuid: "" },
      { allow_dev: [], assign_dev: ["c 4:*"] },
    ),
  ).toThrow('assign_dev[0]: device rule "c 4:* rwm": web is assigned');
});

// --- while it runs ---------------------------------------------------------------------

test("granted and taken while it runs: the program and the nodes follow", async () => {
  const c = await started();
  expect(await inside(c, "/dev/autofs")).toBe("EPERM");
  devices.allow(c.uuid, rule("c 10:235 r"), { by: "control" });
  expect([await inside(c, "/dev/autofs"), await inside(c, "/dev/autofs", O_RDWR)]).toEqual([
    "opened",
    "EPERM",
  ]);
  expect(nodesIn(c)).toContain("autofs");
  devices.deny(c.uuid, rule("c 10:235"));
  expect(await inside(c, "/dev/autofs")).toBe("EPERM");
  expect(nodesIn(c)).toEqual(USUAL);
  devices.deny(c.uuid, rule("c 1:8")); // of the default list
  expect(await inside(c, "/dev/random")).toBe("EPERM");
  expect(nodesIn(c)).toEqual(USUAL.filter((n) => n !== "random"));
  devices.allow(c.uuid, rule("c 1:8 r"), { by: "control" });
  expect(nodesIn(c)).toEqual(USUAL);
  expect(() => devices.allow(crypto.randomUUID(), rule("c 1:8"), { by: "control" })).toThrow(
    "it does not run",
  );
});

test("what the hot-plug grants it can take back; what comes and goes has its node and loses it", async () => {
  const c = await started({ config: { allow_dev: ["c 10:* r"] } });
  expect(nodesIn(c)).toContain("autofs");
  expect(devices.vanished(FOREIGN)).toEqual([c.uuid]);
  expect(nodesIn(c)).not.toContain("autofs");
  expect(devices.appeared(FOREIGN)).toEqual([c.uuid]);
  expect(nodesIn(c)).toContain("autofs");
  devices.allow(c.uuid, rule("c 4:2 rw"), { by: "hotplug", assigned: true });
  expect(nodesIn(c)).toContain("tty2");
  expect(devices.appeared({ kind: "c", major: 4, minor: 3 })).toEqual([]);
  devices.withdraw(c.uuid, rule("c 4:2"));
  expect(nodesIn(c)).not.toContain("tty2");
  devices.withdraw(c.uuid, rule("c 10:235")); // the configuration's
  expect(await inside(c, "/dev/autofs")).toBe("opened");
});

test("a reserved device is its owner's alone, whatever the rules say, before and after", async () => {
  const first = await started({ config: { name: "web", allow_dev: ["c 10:* rwm"] } });
  {
    using _token = devices.reserve(rule("c 10:235"), first.uuid);
    const second = await started({ config: { name: "db", allow_dev: ["c 10:* rwm"] } });
    expect([await inside(first, "/dev/autofs"), await inside(second, "/dev/autofs")]).toEqual([
      "opened",
      "EPERM",
    ]);
    expect([nodesIn(first).includes("autofs"), nodesIn(second).includes("autofs")]).toEqual([true, false]);
    using _pad = devices.reserve(rule("c 10:235"));
    expect(await inside(first, "/dev/autofs")).toBe("EPERM");
  }
  for (const c of running) {
    expect(await inside(c, "/dev/autofs")).toBe("opened");
    expect(nodesIn(c)).toContain("autofs");
  }
});

test("the next cmld finds it as it was: what was granted, taken, and the nodes", async () => {
  const uuid = crypto.randomUUID();
  const task: Task = {
    directory: world.directory,
    uuid,
    mounts: ROOT as never,
    init: ["/bin/sleep", "1000"],
    config: { assign_dev: ["c 4:1"] },
  };
  const manager = Bun.spawn([process.execPath, join(import.meta.dir, "manager.ts"), JSON.stringify(task)], {
    stdout: "pipe",
    stderr: "inherit",
  });
  for await (const chunk of manager.stdout) {
    expect(Buffer.from(chunk).toString()).toBe("up\n");
    // What a client was granted is in the file; as if it had been.
    const { pid } = JSON.parse(
      readFileSync(join(world.ledgerDirectory(), uuid), "utf8").trim().split("\n").at(-1)!,
    ).running;
    const list = [
      ...DEFAULT,
      ...["c 4:1 rwm", FOREIGN_RULE].map((text) => statement(true, text)),
      statement(false, "c 1:8"),
    ];
    const assigned = list.map((s, i) => (i === DEFAULT.length ? { ...s, assigned: true } : s));
    const state = {
      list: assigned,
      nodes: [{ kind: "c", major: 1, minor: 8, path: "random", mode: 0o666 }],
      dev: statSync(`/proc/${pid}/root/dev`).dev,
    };
    writeFileSync(join(world.host.run, "devices", uuid), JSON.stringify(state));
    manager.kill("SIGKILL");
  }
  await manager.exited;
  const c = world.container({ uuid, init: task.init }); // configured otherwise since
  running.push(c);
  expect(await world.recover(c)).toBe(true);
  expect([
    await inside(c, "/dev/autofs"),
    await inside(c, "/dev/tty1"),
    await inside(c, "/dev/random"),
  ]).toEqual(["opened", "opened", "EPERM"]);
  expect(nodesIn(c)).toEqual([...USUAL.filter((n) => n !== "random"), "autofs", "tty1"].sort());
  expect(() =>
    devices.checkClaims({ host: world.host, uuid: "" }, { allow_dev: ["c 4:1"], assign_dev: [] }),
  ).toThrow("is assigned");
});

test("nothing was changed since its start: the ledger says all", async () => {
  const uuid = crypto.randomUUID();
  const task = { directory: world.directory, uuid, mounts: ROOT, init: ["/bin/sleep", "1000"] };
  const manager = Bun.spawn(
    [
      process.execPath,
      join(import.meta.dir, "manager.ts"),
      JSON.stringify({ ...task, config: { allow_dev: ["c 4:1"] } }),
    ],
    { stdout: "pipe", stderr: "inherit" },
  );
  for await (const _ of manager.stdout) manager.kill("SIGKILL");
  await manager.exited;
  const c = world.container({ uuid, init: task.init });
  running.push(c);
  expect(await world.recover(c)).toBe(true);
  expect(nodesIn(c)).toEqual([...USUAL, "tty1"].sort());
  devices.deny(c.uuid, rule("c 4:1"));
  expect(nodesIn(c)).toEqual(USUAL);
});

// --- attacks ---------------------------------------------------------------------------

/** Everything of the product's list but the devices. */
const unguarded = (): Module[] => product().filter((m) => m !== devices.devices);
/** A module that puts a node for anybody into the container's /dev, as an attacker would like to. */
const planted = (node: Node): Module => ({
  name: "planted",
  ready(_, p) {
    using root = new Fd(now(openat(AT_FDCWD, `/proc/${p.pid}/root/dev`, O_PATH | O_DIRECTORY)));
    makeNode(root, node, UID_START);
  },
});

test("a node of another device in its own /dev is useless; without the program it would not be", async () => {
  const script = ": < /dev/autofs && echo opened";
  const last = [planted(FOREIGN)];
  expect((await world.sh(script, { modules: [...product(), ...last] })).said).toContain(
    "Operation not permitted",
  );
  expect((await world.sh(script, { modules: [...unguarded(), ...last] })).said).toBe("opened");
});

test("so is a descriptor of the host's node that somebody hands in", async () => {
  using fd = new Fd(now(openat(AT_FDCWD, "/dev/autofs", O_PATH)));
  const given: Module = { name: "given", last: () => [{ call: "dup3", args: [fd.n, 0, 0] }] };
  const script = ": < /proc/self/fd/0 && echo opened";
  expect((await world.sh(script, { modules: [...product(), given] })).said).toContain(
    "Operation not permitted",
  );
  expect((await world.sh(script, { modules: [...unguarded(), given] })).said).toBe("opened");
});

test("no node of what is not allowed can be made inside", async () => {
  const { said } = await world.sh(
    "for p in /dev/x /dev/shm/x /run/x /tmp/x; do mknod $p b 8 0; mknod $p c 4 1; mknod $p c 1 11; done; ls /dev/x /dev/shm /run/x",
    {
      mounts: [...ROOT, { mount_point: "/tmp", image_file: "t", fs_type: "tmpfs" }],
      config: { allow_dev: [FOREIGN_RULE] },
    },
  );
  expect(said.split("\n").filter((l) => l.startsWith("mknod"))).toHaveLength(12);
});

test("what a container has put into its /dev leads nowhere else", async () => {
  using dev = mountAsFd("tmpfs", "dev", "mode=0755,size=1m", 0);
  const victim = join(world.directory, "victim");
  now(mkdirat(AT_FDCWD, victim, 0o777));
  symlinkSync(victim, join(world.directory, "link"));
  const node = (path: string): Node => ({ ...FOREIGN, path });
  for (const [link, path] of [
    [victim, "bus/usb/001"],
    [`../../../../../../..${victim}`, "snd/x"],
    ["/proc/self/root", "input/event0"],
    [victim, "direct"],
  ] as const) {
    const [first = ""] = path.split("/");
    now(symlinkat(link, dev.n, first));
    expect(() => makeNode(dev, node(path), UID_START), path).toThrow(/ELOOP|EXDEV|something else is there/);
    removeNode(dev, node(path));
    expect(lstatSync(`/proc/self/fd/${dev.n}/${first}`).isSymbolicLink()).toBe(true);
  }
  writeFileSync(`/proc/self/fd/${dev.n}/file`, "");
  expect(() => makeNode(dev, node("file/x"), UID_START)).toThrow("ENOTDIR");
  expect(() => makeNode(dev, node("file"), UID_START)).toThrow("something else is there");
  removeNode(dev, node("file"));
  expect(readdirSync(`/proc/self/fd/${dev.n}`)).toContain("file");
  expect(readdirSync(victim)).toEqual([]);

  makeNode(dev, node("deep/er/x"), UID_START);
  const { mode, rdev, uid } = statSync(`/proc/self/fd/${dev.n}/deep/er/x`);
  expect([mode & 0o7777, deviceOf("c", rdev), uid]).toEqual([
    0o666,
    { kind: "c", major: 10, minor: 235 },
    UID_START,
  ]);
  expect(statSync(`/proc/self/fd/${dev.n}/deep`).uid).toBe(UID_START);
  makeNode(dev, node("deep/er/x"), UID_START);
  removeNode(dev, { ...node("deep/er/x"), minor: 1 }); // another device's
  expect(readdirSync(`/proc/self/fd/${dev.n}/deep/er`)).toEqual(["x"]);
  removeNode(dev, node("deep/er/x"));
  expect(readdirSync(`/proc/self/fd/${dev.n}/deep/er`)).toEqual([]);
});

test("nor while somebody swaps folders for links", async () => {
  using dev = mountAsFd("tmpfs", "dev", "mode=0755,size=4m", 0);
  const victim = join(world.directory, "raced");
  now(mkdirat(AT_FDCWD, victim, 0o777));
  const at = `/proc/${process.pid}/fd/${dev.n}`;
  const racer = Bun.spawn(
    [
      "/bin/busybox",
      "sh",
      "-c",
      `cd ${at} && mkdir -p a && ln -s ${victim} l && echo go && while :; do mv -T a b; mv -T l a; mv -T a l; mv -T b a; done`,
    ],
    { stdout: "pipe", stderr: "ignore" },
  );
  for await (const _ of racer.stdout) break;
  const tries = counts.symlinkResolutions / 10;
  let made = 0;
  for (let i = 0; i < tries; i++)
    try {
      makeNode(dev, { ...FOREIGN, path: "a/x" }, UID_START);
      made++;
      removeNode(dev, { ...FOREIGN, path: "a/x" });
    } catch (e) {
      expect(chain(e)).toMatch(/ELOOP|ENOENT|EXDEV|EAGAIN|ENOTDIR|something else is there/);
    }
  racer.kill();
  await racer.exited;
  expect(readdirSync(victim)).toEqual([]);
  expect(made).toBeGreaterThan(0);
  expect(made).toBeLessThan(tries);
});
