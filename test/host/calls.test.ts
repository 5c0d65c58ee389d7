// Calls that a container's filter leaves to cmld, in real containers: what is done, for whom, and what is not; who
// makes them without end slows itself alone; and a cmld that ends leaves no caller waiting for ever.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Container } from "../../src/cmld/container.ts";
import { exec } from "../../src/cmld/exec.ts";
import type { Module } from "../../src/cmld/module.ts";
import { namespaceOf } from "../../src/cmld/modules/seccomp/caller.ts";
import { Channel, Supervisor } from "../../src/cmld/modules/seccomp/supervisor.ts";
import { filterOps } from "../../src/cmld/modules/seccomp.ts";
import { Store } from "../../src/init/store.ts";
import { AF_UNIX, bindUnix, listen, SOCK_NONBLOCK, SOCK_SEQPACKET, socket } from "../../src/sys/calls.ts";
import { Fd } from "../../src/sys/fd.ts";
import { accepting } from "../../src/sys/listen.ts";
import { now } from "../../src/sys/now.ts";
import { NR } from "../../src/sys/numbers.ts";
import { counts } from "../counts.ts";
import { Cmld, Command } from "./daemon.ts";
import { busyboxRoot, product, UID_START, World } from "./world.ts";

/** Programs of test/escape; the Makefile makes them. */
const PROGRAMS = ["attack", "storm"];

function programs(root: string): void {
  for (const name of PROGRAMS) {
    copyFileSync(resolve("out", name), join(root, "bin", name));
    chmodSync(join(root, "bin", name), 0o755);
  }
}

let world: World;
let web: Container;

beforeAll(async () => {
  world = World.open();
  world.image("programs", (root) => {
    busyboxRoot(root);
    programs(root);
  });
  web = world.container({
    init: ["/bin/sleep", "100000"],
    mounts: [{ mount_point: "/", image_file: "programs" }],
  });
  await web.start({ setup: false });
});
afterAll(async () => {
  await web.kill();
  await world[Symbol.asyncDispose]();
});

/** A command in the container, as `control run` starts it; what it says, line by line. */
async function run(script: string, user?: string): Promise<string[]> {
  let text = "";
  await new Promise((ended) =>
    exec(
      {
        name: "web",
        ...web.process!,
        cgroup: join(web.group, "child"),
        uidStart: UID_START,
        grant: { time: false, modules: false },
        supervisor: Supervisor.of(web.uuid)!,
      },
      { argv: ["/bin/sh", "-c", script], pty: false, env: ["PATH=/bin"], ...(user && { user }) },
      {
        output: (piece) => {
          text += Buffer.from(piece).toString();
          return true;
        },
        writable: () => {},
        ended,
      },
    ),
  );
  return text.trim().split("\n");
}

const init = async (script: string): Promise<string[]> =>
  (await world.sh(script, { mounts: [{ mount_point: "/", image_file: "programs" }] })).said.split("\n");

const call = (name: keyof typeof NR, args: string): string => `attack call ${NR[name][0]} ${args}`;

test("mknod: devices of the rules, where devices are shown; for the init and for control run", async () => {
  const script = `cd /dev
    mknod a c 1 3 && echo x > /dev/a && stat -c '%t:%T %u:%g %a' a
    umask 077; mknod /dev/b c 1 5; dd if=b bs=1 count=1 2>/dev/null | busybox od -An -tx1; stat -c %a b
    mknod c c 1 1; mknod d b 7 0; mknod a c 1 3
    mknod none/a c 1 3; mknod /srv/a c 1 3; mknod /dev/shm/a c 1 3; ls /dev/shm
    mknod f p && stat -c %F f; busybox rm a b f`;
  const said = [
    "1:3 0:0 644",
    " 00",
    "600",
    "mknod: c: Operation not permitted",
    "mknod: d: Operation not permitted",
    "mknod: a: File exists",
    "mknod: none/a: No such file or directory",
    "mknod: /srv/a: Read-only file system",
    "mknod: /dev/shm/a: Operation not permitted",
    "fifo",
  ];
  expect(await init(script)).toEqual(said);
  expect(await run(script)).toEqual(said);
});

test("mknod: through descriptors, a root and a working directory of the caller's own; not where it may not write", async () => {
  const made = `stat -c %t:%T`;
  expect(
    await run(`
      mkdir -p /dev/jail/bin /dev/jail/dir; busybox cp /bin/busybox /bin/attack /dev/jail/bin 2>/dev/null; cd /dev/jail
      exec 5< /dev/jail/dir; ${call("mknodat", "5 =in 0020644 0x103")}; ${made} dir/in
      ${call("mknodat", "-100 =/proc/self/fd/5/too 0020644 0x103")}; ${made} dir/too
      ${call("mknodat", "-100 =../jail/dir/there 0020644 0x105")}; ${made} dir/there
      ${call("mknodat", "5 =in/x 0020644 0x103")}; ${call("mknodat", "99 =x 0020644 0x103")}
      ${call("mknodat", "-100 0 0020644 0x103")}; ${call("mknodat", "-100 =/dev/jail/ 0020644 0x103")}
      busybox ln -s /dev/jail/dir away; ${call("mknodat", "-100 =away/linked 0020644 0x103")}; ls dir
      busybox ln -s dir/other dangling; ${call("mknodat", "-100 =dangling 0020644 0x103")}`),
  ).toEqual([
    "ok",
    "1:3",
    "ok",
    "1:3",
    "ok",
    "1:5",
    "ENOTDIR",
    "EBADF",
    "EFAULT",
    "EEXIST",
    "ok",
    "in",
    "linked",
    "there",
    "too",
    "EEXIST",
  ]);
  // A chroot sees its own root; a user without capabilities gets nothing, not even in a folder of its own.
  expect(
    await run(`busybox mount -t tmpfs none /mnt && mkdir -p /mnt/bin /mnt/d && busybox cp /bin/busybox /mnt/bin &&
      busybox chroot /mnt /bin/busybox mknod /d/null c 1 3; ls /mnt/d; busybox umount -l /mnt`),
  ).toEqual(["null"]);
  await run("mkdir -m 777 /dev/open");
  expect(await run("mknod /dev/open/n c 1 3; mknod /dev/n c 1 3; ls /dev/open", "1000")).toEqual([
    "mknod: /dev/open/n: Operation not permitted",
    "mknod: /dev/n: Permission denied",
  ]);
});

test("mount: a tmpfs and a ramfs that show devices, where the caller says; the rest is the kernel's", async () => {
  expect(
    await run(`
      busybox mount -t tmpfs -o size=1m,uid=5,mode=700 mine /mnt && stat -c '%u %a' /mnt
      mknod /mnt/null c 1 3 && echo x > /mnt/null && echo works
      busybox grep ' /mnt ' /proc/self/mountinfo | busybox cut -d' ' -f6-; busybox umount /mnt
      cd /run; mkdir t; busybox mount -t ramfs none t; mknod t/null c 1 3; echo y > t/null && echo too; busybox umount t
      busybox mount -t tmpfs -o nodev none /srv; mknod /srv/null c 1 3; busybox umount /srv
      busybox mount -t tmpfs -o size=1m,huge=within_size none /srv; mknod /srv/null c 1 3; busybox umount /srv
      busybox mount -t proc proc /tmp && echo proc; busybox umount /tmp
      exec 7< /run/t; ${call("mount", "=none =/proc/self/fd/7 =tmpfs 0 0")}; mknod /run/t/null c 1 3 && echo through; busybox umount t`),
  ).toEqual([
    "5 700",
    "works",
    `rw,relatime - tmpfs mine rw,size=1024k,mode=700,uid=${UID_START + 5},gid=${UID_START}`,
    "too",
    "mknod: /srv/null: Operation not permitted",
    "mknod: /srv/null: Operation not permitted",
    "proc",
    "ok",
    "through",
  ]);
  // It never shows more than the rules allow, and who mounts it stays in its own tree.
  expect(
    await run(`
      busybox mount -t tmpfs none /mnt; mknod /mnt/mem c 1 1; mknod /mnt/loop b 7 0; ls /mnt; busybox umount /mnt
      mkdir /run/up; busybox mount -t tmpfs none /run/up/../../../../../mnt && busybox umount /mnt && echo inside`),
  ).toEqual([
    "mknod: /mnt/mem: Operation not permitted",
    "mknod: /mnt/loop: Operation not permitted",
    "inside",
  ]);
});

test("strings that are NULL, end nowhere or are no text: EFAULT for the caller, and cmld lives (R3)", async () => {
  expect(
    await run(`
      ${call("mount", "=none 0 =tmpfs 0 0")}; ${call("mount", "=none =/mnt 0 0 0")}; ${call("mount", "1 =/mnt =tmpfs 0 0")}
      ${call("mount", "=none 1 =tmpfs 0 0")}; ${call("mount", "=none =/mnt =tmpfs 0 1")}
      ${call("mount", "=none =/mnt =nosuch 0 0")}; ${call("mknod", "1 0020644 0x103")}`),
  ).toEqual(["EFAULT", "EINVAL", "EFAULT", "EFAULT", "EFAULT", "ENODEV", "EFAULT"]);
});

test("a nested user namespace gains nothing (R1), nor does who joins the mounts of another", async () => {
  const inside = (script: string): string => `busybox unshare -U -r -m sh -c '${script}'`;
  expect(await run(inside("mknod /dev/n c 1 3; mknod /dev/m b 7 0; ls /dev/n 2>/dev/null"))).toEqual([
    "mknod: /dev/n: Operation not permitted",
    "mknod: /dev/m: Operation not permitted",
  ]);
  expect(
    await run(
      inside(
        "busybox mount -t tmpfs none /mnt && echo mounted; mknod /mnt/n c 1 3; echo > /mnt/n && ls -l /mnt",
      ),
    ),
  ).toEqual(expect.arrayContaining(["mounted", "mknod: /mnt/n: Operation not permitted"]));
  for (const [name, args] of [
    ["clock_settime", "0 @"],
    ["settimeofday", "@ 0"],
    ["finit_module", "0 =x 0"],
  ] as const)
    expect([name, await run(inside(call(name, args)))]).toEqual([name, ["EPERM"]]);
});

test("what only some configurations get: the memory that a limit leaves, the clock's adjustment", async () => {
  const group = mkdtempSync(join(tmpdir(), "group-")); // this host may have no such controllers
  const limit = { "memory.max": 64 << 20, "memory.current": 16 << 20, "pids.current": 7 };
  for (const [file, value] of Object.entries(limit)) writeFileSync(join(group, file), `${value}\n`);
  const supervision = { time: true, modules: false, memory: true };
  const channel = new Channel();
  let supervisor: Supervisor;
  const more: Module = {
    name: "seccomp",
    last: () => filterOps(supervision, channel.ends),
    ready(s, { pid }) {
      const contained = {
        name: s.name,
        uidStart: s.uidStart,
        namespace: namespaceOf(pid),
        group,
        modules: [],
        access: () => 0,
        log: s.log,
      };
      supervisor = s.owned.use(new Supervisor(s.uuid, supervision, contained, s, join(group, "calls")));
      supervisor.keep(channel);
    },
    started: () => void supervisor.take(channel),
  };
  const { said } = await world.sh(
    `busybox free -k | busybox awk '/^Mem/ { print substr($2, 1, 5) }'; busybox uptime | busybox cut -c10-22
     busybox adjtimex -t 10000 | busybox grep -c tick
     busybox unshare -U -r busybox adjtimex -t 10000 2>&1
     ${call("clock_settime", "0 1")}; ${call("clock_settime", "1 @")}; ${call("settimeofday", "1 0")}`,
    {
      mounts: [{ mount_point: "/", image_file: "programs" }],
      modules: product().map((m) => (m.name === "seccomp" ? more : m)),
      config: { allow_system_time: true },
    },
  );
  // The tick is the one that every kernel begins with: nothing changes on the host.
  expect(said.split("\n")).toEqual([
    String(64 << 10),
    " up 0 min,  0",
    "1",
    "adjtimex: (null): Operation not permitted",
    "EFAULT",
    "EINVAL",
    "EFAULT",
  ]);
  rmSync(group, { recursive: true });
});

test("fuzz: notifications with arguments by chance", async () => {
  const calls = Math.ceil(counts.fuzzInputs / 20); // each costs a process or two
  const apart = "busybox unshare -m"; // what it mounts would be in the way
  const [MOST, ROUNDS] = [2 * 2 ** 20, 10];
  let seed = 20_261_121;
  const round = async (): Promise<number> => {
    expect(await run(`${apart} storm fuzz ${seed++} ${calls}`)).toEqual(["done"]);
    Bun.gc(true);
    return process.memoryUsage.rss();
  };
  // The runtime compiles what it uses, and its heap finds its size, in steps of some megabytes. What is never given back
  // grows in every round.
  const held = [await round()];
  const grown = () => held.at(-1)! - held.at(-2)!;
  do held.push(await round());
  while (grown() >= MOST && held.length <= ROUNDS);
  expect(grown()).toBeLessThan(MOST);
  const until = performance.now() + counts.fuzzSeconds * 1000;
  let last = held.at(-1)!;
  while (performance.now() < until) last = await round();
  expect(last - held.at(-1)!).toBeLessThan(MOST);
  expect(await run("mknod /dev/after c 1 3 && rm /dev/after && echo fine")).toEqual(["fine"]);
}, 600_000);

// --- a daemon ---------------------------------------------------------------------------

const REQUESTS = 100;
/** On a machine that does nothing else; and how much slower it may be on one that is busy already. */
const [LIST_MS, BUSY] = [20, 4];

test("10 000 mounts in a loop slow the container that makes them, and nobody else", async () => {
  await using cmld = await Cmld.begin("::respawn:/bin/storm mounts 10000\n", { fill: programs });
  const [one, two] = [await cmld.create("one"), await cmld.create("two")];
  using c = await cmld.client();
  const list = async (): Promise<number> => {
    const times: number[] = [];
    for (let i = 0; i < REQUESTS; i++) {
      const began = performance.now();
      await c.ask(Command.GET_CONTAINER_STATUS, {});
      times.push(performance.now() - began);
    }
    return times.sort((a, b) => a - b)[Math.floor(times.length * 0.99)]!;
  };
  const quiet = await list();
  for (const uuid of [one, two])
    expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
  const loud = Math.min(await list(), await list(), await list());
  console.log(
    `list, p99 of ${REQUESTS}: ${quiet.toFixed(1)} ms alone, ${loud.toFixed(1)} ms while two containers mount`,
  );
  expect(loud).toBeLessThan(Math.max(LIST_MS, BUSY * quiet));
}, 600_000);

test("kill -9 of cmld amid calls: those that wait and those that come are answered by the next one", async () => {
  const folder = mkdtempSync(join(tmpdir(), "store-"));
  const path = join(folder, "store");
  using listening = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
  now(bindUnix(listening.n, path));
  now(listen(listening.n, 8));
  const kept = new Map<string, Fd>();
  const store = new Store({ kept, save: () => {}, exitOf: () => undefined, log: console.error });
  accepting(listening, (connection) => store.serve(connection));
  const loop = (name: string): string =>
    `while :; do if mknod /dev/${name} c 1 3 && rm /dev/${name}; then echo ok; else echo bad; fi >> /run/${name}; done`;
  await using cmld = await Cmld.begin("::respawn:/bin/sh /etc/loop\n", {
    env: { CML_STORE: path },
    fill: (root) => writeFileSync(join(root, "etc/loop"), `(${loop("a")}) & (${loop("b")}) & ${loop("c")}\n`),
  });
  const uuid = await cmld.create("caller");
  {
    using c = await cmld.client();
    expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
    // What a command leaves behind is answered as well.
    await c.ask(Command.CONTAINER_EXEC_CMD, {
      container_uuids: [uuid],
      exec_command: "sh",
      exec_args: ["sh", "-c", `(${loop("d")}) > /dev/null 2>&1 < /dev/null &`],
    });
  }
  const pid = /"pid":(\d+)/.exec(readFileSync(join(cmld.folder, "run/ledger", uuid), "utf8"))![1];
  const done = (name: string): string[] => {
    try {
      return readFileSync(`/proc/${pid}/root/run/${name}`, "utf8").trim().split("\n");
    } catch {
      return [];
    }
  };
  const all = ["a", "b", "c", "d"];
  const advance = async (): Promise<void> => {
    const before = all.map((name) => done(name).length);
    // The test's timeout is the limit: how long three processes take for each call is the machine's business.
    while (all.some((name, i) => done(name).length < before[i]! + 2)) await Bun.sleep(5); // nothing tells
  };
  for (let i = 0; i < counts.killsOfManager; i++) {
    await advance();
    await cmld.end("SIGKILL");
    await cmld.start();
  }
  await advance();
  const wrong = all.map((name) => done(name).filter((line) => line !== "ok").length);
  console.log(`${counts.killsOfManager} kills, ${all.map((n) => done(n).length)} calls, refused: ${wrong}`);
  expect(wrong.reduce((a, b) => a + b)).toBeLessThanOrEqual(counts.killsOfManager / 10);
  rmSync(folder, { recursive: true });
}, 600_000);
