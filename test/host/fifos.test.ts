// Named pipes into real containers: on an ordinary host, over a cmld that is killed, and from core0.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { Container } from "../../src/cmld/container.ts";
import { modules } from "../../src/cmld/modules.ts";
import { C0 } from "../../src/lib/uuid.ts";
import type { Task } from "./manager.ts";
import { busyboxRoot, difference, ROOT, UID_START, until, World } from "./world.ts";

const MANAGER = join(import.meta.dir, "manager.ts");
const config = { loopback_only: true, fifos: ["words", "more"] };
const init = ["/bin/sleep", "1000000"];
let world: World;
let before: string[];
const running: Container[] = [];

beforeAll(async () => {
  world = World.open();
  await world.sh("true", { config }); // opens and makes what stays
  before = await world.atRest();
});
afterAll(async () => await world[Symbol.asyncDispose]());
afterEach(async () => {
  for (const c of running.splice(0).reverse()) await c.kill();
  await until(() => difference(before, world.snapshot()));
});

async function up(recipe: object = {}): Promise<Container> {
  const c = world.container({ init, config, ...recipe });
  await c.start({ setup: false });
  running.push(c);
  return c;
}
const inside = (c: Container, path: string): string => `/proc/${c.pid}/root${path}`;
const outside = (name: string): string => join(world.host.run, "fifos", name);
const said = async (script: string): Promise<string> =>
  await Bun.spawn(["sh", "-c", script], { stdout: "pipe", stderr: "inherit" }).stdout.text();

test("what the host writes is what the container reads; nothing comes back, and its end takes all away", async () => {
  const c = await up();
  const mine = inside(c, "/dev/fifos/words");
  expect([statSync(mine).mode, statSync(mine).uid]).toEqual([0o010666, UID_START]);
  expect([statSync(outside("words")).mode, statSync(outside("words")).uid]).toEqual([0o010600, 0]);
  await said(`echo hello > ${outside("words")}`);
  // Any user of the container may read it.
  const asUser = `nsenter -t ${c.pid} -U -m -S 1000 -G 1000 -- /bin/cat /dev/fifos/words`;
  expect(await said(asUser)).toBe("hello\n");
  await said(`exec 3<> ${mine}; echo back >&3; timeout 0.2 head -c 1 ${outside("words")}; exec 3>&-`);
  expect(await said(`timeout 0.2 dd if=${outside("words")} iflag=nonblock bs=99 2>/dev/null`)).toBe("");
  await c.kill();
  expect(readdirSync(join(world.host.run, "fifos"))).toEqual([]);
});

test("a container's own init finds it", async () => {
  const c = await up({ init: ["/bin/sh", "-c", "cat /dev/fifos/words; exit 7"] });
  await said(`echo begin > ${outside("words")}`);
  await c.whenStopped();
  expect(c.exit).toEqual({ status: 7 });
});

test("a name leads to one container; the other says so and runs", async () => {
  await up();
  const other = await up({ config: { ...config, fifos: ["words"] }, uidStart: UID_START + 65536 });
  expect(other.state).toBe("RUNNING");
  expect(world.log.some((l) => /web: fifos: words leads to container [0-9a-f-]{36} already$/.test(l))).toBe(
    true,
  );
  await other.kill();
  expect(existsSync(outside("words"))).toBe(true); // it was not its own to take away
});

test("kill -9 of cmld: the next one opens the pipes again, and what the container has put there leads nowhere", async () => {
  const uuid = crypto.randomUUID();
  const task: Task = { directory: world.directory, uuid, mounts: ROOT as never, init, config };
  const manager = Bun.spawn([process.execPath, MANAGER, JSON.stringify(task)], {
    stdout: "pipe",
    stderr: "inherit",
  });
  for await (const chunk of manager.stdout) {
    expect(Buffer.from(chunk).toString()).toBe("up\n");
    manager.kill("SIGKILL");
  }
  await manager.exited;
  const c = world.container({ uuid, init, config });
  const elsewhere = join(world.directory, "elsewhere");
  mkdirSync(elsewhere);
  running.push(c);
  const pid = readdirSync("/proc").find((p) => /^\d+$/.test(p) && inGroup(p, uuid))!;
  const folder = `/proc/${pid}/root/dev/fifos`;
  await said(`rm ${folder}/more`);
  symlinkSync(join(elsewhere, "more"), `${folder}/more`);
  await said(`rm ${folder}/words`);
  const early = said(`echo early > ${outside("words")}`); // waits for somebody to open the other end
  expect(await world.recover(c)).toBe(true);
  await early;
  expect(await said(`cat ${inside(c, "/dev/fifos/words")}`)).toBe("early\n");
  expect(
    world.log.some((l) => l.includes("fifos: more: fifos/more cannot be made: something else is there")),
  ).toBe(true);
  expect(readdirSync(elsewhere)).toEqual([]);
});

function inGroup(pid: string, uuid: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, "utf8").includes(uuid);
  } catch {
    return false; // it has ended
  }
}

test("from core0, again after it has restarted", async () => {
  const device = { ...world.host, hosted: false };
  // Its network would take this machine's; its memory's score is not everybody's to set.
  const without = modules.filter((m) => m.name !== "network" && m.name !== "limits");
  world.image("core0", (root) => {
    busyboxRoot(root);
    mkdirSync(join(root, "usr/sbin"), { recursive: true });
    for (const name of ["cml", "control"]) writeFileSync(join(root, "usr/sbin", name), "");
  });
  const mounts = [{ mount_point: "/", image_file: "core0" }];
  const of = (uuid: string, uidStart: number, fifos: string[]): Container => {
    const made = world.container({
      uuid,
      uidStart,
      init,
      modules: without,
      mounts,
      config: { ...config, fifos },
    });
    Object.assign(made.around, { host: device });
    running.push(made);
    return made;
  };
  const guest = of(crypto.randomUUID(), UID_START + 65536, ["words"]);
  const core0 = of(C0, UID_START, []);
  for (let turn = 0; turn < 2; turn++) {
    await core0.start({ setup: false });
    if (turn === 0) await guest.start({ setup: false });
    const source = inside(core0, "/dev/fifos/words");
    expect([statSync(source).mode, statSync(source).uid]).toEqual([0o010666, UID_START]);
    await said(`echo ${turn} > ${source}`);
    expect(await said(`cat ${inside(guest, "/dev/fifos/words")}`)).toBe(`${turn}\n`);
    if (turn === 0) await core0.kill();
  }
  await guest.kill();
  expect(readdirSync(inside(core0, "/dev/fifos"))).toEqual([]);
});
