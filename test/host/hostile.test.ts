// What a container, a client or a careless user may do on purpose or by mistake, against a real cmld.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { type IServiceToCmldMessage, ServiceToCmldMessage } from "../../proto/gen/proto.js";
import { places } from "../../src/cmld/main.ts";
import { frame } from "../../src/lib/frame.ts";
import { where } from "../../src/sys/cgroup.ts";
import { Client, Cmld, Code, Command } from "./daemon.ts";
import { ROOT, Type, until, World } from "./world.ts";

const REBOOTS = "::sysinit:/bin/busybox reboot -f\n";

let world: World;
let cmld: Cmld;
let client: Client;
beforeAll(async () => {
  world = World.open();
  cmld = await Cmld.begin();
  client = await cmld.client();
});
afterAll(async () => {
  client[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
});

const one = (uuid: string) => ({ container_uuids: [uuid] });

async function started(name: string): Promise<string> {
  const uuid = await cmld.create(name);
  expect(await client.say(Command.CONTAINER_START, one(uuid))).toBe("CONTAINER_START_OK");
  return uuid;
}

/** The socket of the container's helper, reached from outside. */
function service(uuid: string): Promise<Socket> {
  const { mount, own } = where();
  const group = join(mount, own === "/" ? "cml" : own.replace(/\/cmld$/, ""), "containers", uuid, "child");
  const pid = readFileSync(join(group, "cgroup.procs"), "utf8").split("\n")[0];
  return new Promise((resolve, reject) => {
    const socket = connect({ path: `/proc/${pid}/root/run/socket/cml-service` }, () => resolve(socket));
    socket.on("error", reject);
  });
}

const many = (message: IServiceToCmldMessage, n: number): Buffer =>
  Buffer.concat(Array(n).fill(frame(ServiceToCmldMessage.encode(message))));

const log = (): string => readFileSync(join(cmld.folder, "logs/cml-daemon.current"), "utf8");

// --- a container -------------------------------------------------------------------------

test("groups in groups, with the longest names: bounded, and gone with the container", async () => {
  const script = `cd /sys/fs/cgroup; i=0; while mkdir $1 2>/dev/null; do cd -P $1; i=$((i+1)); done; echo $i`;
  const c = { init: ["/bin/sh", "-c", script, "sh", "a".repeat(250)] };
  const before = readdirSync(world.host.cgroup);
  for (let round = 0; round < 2; round++) {
    const container = world.container({ ...c, uuid: "aaaaaaaa-0000-4000-8000-000000000001" });
    await container.start({ setup: false });
    await container.whenStopped();
    expect(readdirSync(world.host.cgroup)).toEqual(before);
  }
  expect(readdirSync(world.ledgerDirectory())).toEqual([]);
  expect(world.log.filter((l) => l.includes("releasing"))).toEqual([]);
});

test("how many groups, and how deep, is bounded", async () => {
  const script = `cd /sys/fs/cgroup; i=0; while mkdir g 2>/dev/null; do cd -P g; i=$((i+1)); done; echo $i`;
  const { said } = await world.sh(script);
  expect(Number(said)).toBeGreaterThan(8);
  expect(Number(said)).toBeLessThan(64);
});

test("messages that mean nothing do not fill cmld's log", async () => {
  const uuid = await started("flood");
  const socket = await service(uuid);
  socket.write(many({ code: 99 as never }, 20_000));
  socket.write(many({ code: ServiceToCmldMessage.Code.CONTAINER_CFG_NAME_REQ }, 1));
  await new Promise((answer) => socket.once("data", answer)); // all were handled
  socket.destroy();
  const lines = log().split("\n");
  expect(lines.filter((l) => l.includes("message 99 is unknown")).length).toBeWithin(1, 100);
  await client.say(Command.REMOVE_CONTAINER, one(uuid));
});

test("a helper that does not read does not hold up the answer to a stop", async () => {
  const uuid = await started("deaf");
  const socket = await service(uuid);
  socket.pause();
  for (let i = 0; i < 40; i++)
    socket.write(many({ code: ServiceToCmldMessage.Code.CONTAINER_CFG_NAME_REQ }, 1000));
  await Bun.sleep(200); // until cmld's side is full; nothing tells
  const begin = performance.now();
  expect(await client.say(Command.CONTAINER_STOP, one(uuid))).toBe("CONTAINER_STOP_OK");
  expect(performance.now() - begin).toBeLessThan(3000);
  expect(await client.say(Command.REMOVE_CONTAINER, one(uuid))).toBe("CMD_OK");
  socket.destroy();
});

test("line ends without end cost a few lines of its log", async () => {
  const uuid = await started("newlines");
  using c = await cmld.client();
  const exec_args = [
    "sh",
    "-c",
    "dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\\0' '\\n' > /proc/1/fd/1",
  ];
  c.send(Command.CONTAINER_EXEC_CMD, { ...one(uuid), exec_command: "sh", exec_args, exec_pty: false });
  while ((await c.next()).code !== Code.EXEC_END);
  const file = join(cmld.folder, `logs/container-${uuid}.current`);
  await until(() => {
    const text = statSync(file, { throwIfNoEntry: false }) ? readFileSync(file, "utf8") : "";
    return text.includes("left out") ? [] : ["nothing was left out"];
  });
  expect(readFileSync(file, "utf8").split("\n").length).toBeLessThan(4000);
  await client.say(Command.REMOVE_CONTAINER, one(uuid));
});

test("a container that reboots without end: not as fast as it can, and it can be stopped", async () => {
  await using loop = await Cmld.begin(REBOOTS);
  using c = await loop.client();
  using events = await loop.client();
  const uuid = await loop.create("loop");
  expect(await events.say(Command.EVENTS)).toBe("CMD_OK");
  expect(await c.say(Command.CONTAINER_START, one(uuid))).toBe("CONTAINER_START_OK");
  await Bun.sleep(1500); // time in which it could reboot a hundred times
  const text = readFileSync(join(loop.folder, "logs/cml-daemon.current"), "utf8");
  expect(text.split("→ REBOOTING").length - 1).toBeWithin(1, 4);
  expect(await c.say(Command.CONTAINER_STOP, one(uuid))).toBe("CONTAINER_STOP_OK");
  const { container_status } = await c.ask(Command.GET_CONTAINER_STATUS);
  expect(container_status[0]!.state).toBe(1); // STOPPED
  expect(await c.say(Command.CONTAINER_START, one(uuid))).toBe("CONTAINER_START_OK");
  expect(await c.say(Command.REMOVE_CONTAINER, one(uuid))).toBe("CMD_OK");
});

// --- the disk ---------------------------------------------------------------------------------

test("a disk that is full: the start says so, and takes nothing", async () => {
  const images = join(world.directory, "small");
  mkdirSync(images);
  expect(spawnSync("mount", ["-t", "tmpfs", "-o", "size=16k", "none", images]).status).toBe(0);
  try {
    const data = { mount_point: "/data", image_file: "data", fs_type: "ext4", mount_type: Type.EMPTY };
    const c = { mounts: [...ROOT, data], init: ["/bin/true"], images };
    expect(await world.failure(c)).toMatch(/volume data on \/data: .*mke2fs.*No space left/);
    expect(readdirSync(images)).toEqual([]);
    expect(spawnSync("mount", ["-o", "remount,size=32m", images]).status).toBe(0);
    const container = world.container(c);
    await container.start({ setup: false });
    await container.whenStopped();
    expect(readdirSync(images)).toEqual(["data.plain.img"]);
  } finally {
    spawnSync("umount", [images]);
  }
});

test("to explain a start is to do nothing", async () => {
  const data = { mount_point: "/data", image_file: "data", fs_type: "ext4", mount_type: Type.EMPTY };
  const images = join(world.directory, "explained");
  const container = world.container({ mounts: [...ROOT, data], images });
  expect((await container.explain()).join("\n")).toContain("execve");
  expect(existsSync(images) ? readdirSync(images) : []).toEqual([]);
});

// --- a client ---------------------------------------------------------------------------------

test("a container that is named a thousand times is answered once", async () => {
  const uuid = await cmld.create("twice");
  const container_uuids = Array(1000).fill(uuid);
  expect((await client.ask(Command.GET_CONTAINER_STATUS, { container_uuids })).container_status.length).toBe(
    1,
  );
  expect((await client.ask(Command.GET_CONTAINER_CONFIG, { container_uuids })).container_configs.length).toBe(
    1,
  );
  expect((await client.ask(Command.STATS, { container_uuids })).stats.length).toBe(1);
  await client.say(Command.REMOVE_CONTAINER, one(uuid));
});

test("two that want different things of a container: each is told what came of it, at once", async () => {
  using other = await cmld.client();
  const freeze = Command.CONTAINER_FREEZE;
  for (const second of [Command.CONTAINER_UNFREEZE, Command.CONTAINER_STOP, Command.REMOVE_CONTAINER]) {
    const uuid = await started("torn");
    const begin = performance.now();
    const said = await Promise.all([client.say(freeze, one(uuid)), other.say(second, one(uuid))]);
    expect(performance.now() - begin).toBeLessThan(4000);
    expect(said[0]).toMatch(/^CMD_OK$|torn is \w+ before it was frozen/);
    expect(said[1]).toMatch(/^CMD_OK$|^CONTAINER_STOP_OK$/);
    await client.say(Command.REMOVE_CONTAINER, one(uuid));
  }
  for (let i = 0; i < 20; i++) {
    const uuid = await cmld.create("torn");
    const start = client.say(Command.CONTAINER_START, one(uuid));
    await Bun.sleep(i * 1.5); // the start is a little further each time
    expect(await other.say(Command.CONTAINER_STOP, one(uuid))).toMatch(/^CONTAINER_STOP_OK$|is STOPPED/);
    expect(await start).toMatch(/^CONTAINER_START_OK$|start torn: it was stopped meanwhile: /);
    await client.say(Command.REMOVE_CONTAINER, one(uuid));
  }
}, 30_000);

// --- a careless user --------------------------------------------------------------------------

/** Another cmld, which must end by itself; what it says. */
async function second(...options: string[]): Promise<string> {
  const argv = [process.execPath, "src/main.ts", "cmld", ...options];
  const p = Bun.spawn(argv, { stdout: "pipe", stderr: "pipe", timeout: 10_000 });
  const said = (await new Response(p.stdout).text()) + (await new Response(p.stderr).text());
  expect(await p.exited).toBe(1);
  return said;
}

test("a second cmld on the same data folder is refused, whatever its other folders are", async () => {
  const other = ["--run", join(cmld.folder, "run2"), "--logs", join(cmld.folder, "logs2")];
  const said = await second(join(cmld.folder, "base"), ...other, "--socket", join(cmld.folder, "socket2"));
  expect(said).toContain(`another cmld uses ${join(cmld.folder, "base")}`);
});

test("a control socket takes the place of nobody's, and of no file", async () => {
  await using other = await Cmld.begin();
  await other.end("SIGTERM");
  const folders = [
    join(other.folder, "base"),
    "--run",
    join(other.folder, "run"),
    "--logs",
    join(other.folder, "logs"),
  ];
  expect(await second(...folders, "--socket", cmld.socket)).toContain("another program listens there");
  using still = await Client.to(cmld.socket);
  expect(await still.say(Command.GET_PROVISIONED)).toBe("DEVICE_PROVISIONED_STATE");
  const file = join(other.folder, "precious");
  writeFileSync(file, "words");
  expect(await second(...folders, "--socket", file)).toContain("not a socket");
  expect(readFileSync(file, "utf8")).toBe("words");
});

test("relative folders are as good as others", () => {
  const at = places({ base: "b", run: "r", logs: "l", socket: "s" });
  expect([at.base, at.run, at.logs, at.socket]).toEqual(
    ["b", "r", "l", "s"].map((p) => join(process.cwd(), p)),
  );
});
