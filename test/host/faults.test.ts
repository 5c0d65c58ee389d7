// A start that fails, or whose cmld dies, at each of its steps leaves nothing behind.

import { heapStats } from "bun:jsc";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { close } from "../../src/sys/calls.ts";
import { chain } from "../../src/sys/error.ts";
import { counts } from "../counts.ts";
import { counted, hooksFail, opsReplaced, points } from "./faults.ts";
import type { Task } from "./manager.ts";
import { difference, FULL, product, UID_START, until, World } from "./world.ts";

let world: World;
let before: string[];
let calls: string[];

const UUID = "5f0c2d0a-0000-4000-8000-000000000001";
const recipe = { uuid: UUID, mounts: FULL };

beforeAll(async () => {
  world = World.open();
  // Makes the volumes and the shared file, and opens what stays open.
  expect(await world.sh("true", recipe)).toEqual({ said: "", status: 0 });
  const { list, calls: seen } = counted(product());
  await world.container({ ...recipe, modules: list }).explain();
  calls = seen().map((op) => op.call);
  before = await world.atRest();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const nothingLeft = () => until(() => difference(before, world.snapshot()));

test("every call of the program", async () => {
  expect(calls.length).toBeGreaterThan(100);
  for (const [i, call] of calls.entries()) {
    const modules = opsReplaced(product(), i, () => [close(-1)]);
    const error = await world.failure({ ...recipe, modules, config: { loopback_only: true } }); // quicker
    expect(error, `call ${i}: ${call}`).toBe("start web: child: close(-1): EBADF");
    await nothingLeft();
  }
});

test("every hook of every module", async () => {
  for (const at of points(product())) {
    const modules = hooksFail(product(), at, () => {
      throw new Error("on purpose");
    });
    // It must not end by itself: after its end a failing hook is no failure of the start.
    const error = await world.failure({ ...recipe, modules, init: ["/bin/sleep", "1000"] });
    expect(error, JSON.stringify(at)).toMatch(/^start web: ([a-z]+ [a-z]+: )?on purpose$/);
    await nothingLeft();
  }
  expect((await world.sh("cat /data/x", recipe)).status).toBe(1); // and it still starts
});

test("a resource that cannot be written down is not acquired", async () => {
  const c = world.container({ ...recipe, osDir: "/nowhere" });
  expect(await c.start({ setup: false }).catch(chain)).toMatch(
    /^start web: prepare volumes: volume root on \/: .*ENOENT/,
  );
  await nothingLeft();
});

// --- kill -9 ----------------------------------------------------------------------------------------------------

const MANAGER = join(import.meta.dir, "manager.ts");

/** A manager, until it is dead; what it said last. */
async function manager(task: Omit<Task, "directory" | "uuid" | "mounts">): Promise<string> {
  const full: Task = { directory: world.directory, uuid: UUID, mounts: FULL as never, ...task };
  const child = Bun.spawn([process.execPath, MANAGER, JSON.stringify(full)], {
    stdout: "pipe",
    stderr: "inherit",
    stdin: "ignore",
  });
  const said = new Response(child.stdout).text();
  await child.exited;
  return child.signalCode === "SIGKILL" ? "killed" : await said;
}

/** What the next cmld does; then nothing may be left. */
async function recovered(): Promise<void> {
  const c = world.container(recipe);
  if (await world.recover(c)) await c.kill();
  expect(c.state).toBe("STOPPED");
  await nothingLeft();
}

test("kill -9 at calls of the program", async () => {
  const every = Math.max(1, Math.floor(calls.length / counts.killsOfManager));
  for (let op = 0; op < calls.length; op += every) {
    expect(await manager({ init: ["/bin/sleep", "1000"], op }), `call ${op}: ${calls[op]}`).toBe("killed");
    expect(difference(before, world.snapshot())).not.toEqual([]); // there is something to do
    await recovered();
  }
});

test("kill -9 at every hook", async () => {
  for (const hook of points(product())) {
    expect(await manager({ init: ["/bin/sleep", "1000"], hook }), JSON.stringify(hook)).toBe("killed");
    await recovered();
  }
});

// --- adoption ---------------------------------------------------------------------------------------------------

const WAITS = "trap 'echo stopped > /data/how; exit 0' USR2 TERM; while :; do sleep 0.05; done";

/** A container whose manager was killed after it had come up. */
async function orphan(
  then: (c: ReturnType<World["container"]>) => Promise<void>,
  meanwhile: (group: string) => void = () => {},
): Promise<void> {
  const task: Task = {
    directory: world.directory,
    uuid: UUID,
    mounts: FULL as never,
    init: ["/bin/sh", "-c", WAITS],
  };
  const child = Bun.spawn([process.execPath, MANAGER, JSON.stringify(task)], {
    stdout: "pipe",
    stderr: "inherit",
  });
  for await (const chunk of child.stdout) {
    expect(Buffer.from(chunk).toString()).toBe("up\n");
    child.kill("SIGKILL");
  }
  await child.exited;
  const c = world.container(recipe);
  meanwhile(c.group);
  expect(await world.recover(c)).toBe(true);
  expect(c.uidStart).toBe(UID_START);
  await then(c);
  await nothingLeft();
}

test("a container survives its cmld; the next one stops it as if it were its own", async () => {
  await orphan(async (c) => {
    expect(c.state).toBe("RUNNING");
    expect(c.uptime).toBeLessThan(60);
    await c.stop();
    await c.whenStopped();
  });
  expect((await world.sh("cat /data/how", recipe)).said).toBe("stopped");
  await nothingLeft();
});

test("a frozen one is found frozen", async () => {
  await orphan(
    async (c) => {
      expect(c.state).toBe("FROZEN");
      await c.unfreeze();
      expect(c.state).toBe("RUNNING");
      await c.kill();
    },
    (group) => writeFileSync(join(group, "cgroup.freeze"), "1"),
  );
});

test("one whose init died meanwhile is released", async () => {
  await orphan(async (c) => {
    process.kill(c.pid!, "SIGKILL");
    await c.whenStopped();
    expect(c.exit).toBeUndefined(); // nobody knows: it was not our child
  });
});

// --- cycles -----------------------------------------------------------------------------------------------------

test("starts and stops leave nothing, in the machine or in memory", async () => {
  const c = world.container(recipe);
  const cycle = async () => {
    await c.start({ setup: false });
    await c.whenStopped();
    expect(c.exit).toEqual({ status: 0 });
  };
  const used = () => {
    Bun.gc(true);
    return { objects: heapStats().objectCount, mb: process.memoryUsage().rss / 1024 / 1024 };
  };
  const warm = Math.ceil(counts.cyclesHosted / 4);
  for (let i = 0; i < warm; i++) await cycle();
  const early = used();
  for (let i = warm; i < counts.cyclesHosted; i++) await cycle();
  const late = used();
  const [objects, mb] = [late.objects - early.objects, late.mb - early.mb];
  console.log(
    `${counts.cyclesHosted} cycles: from ${early.mb.toFixed(1)} MB ${mb.toFixed(1)} MB more, ${objects} objects more`,
  );
  // The runtime's allocator keeps and returns up to 10 MB as it likes; what is held for ever shows in the objects.
  expect(mb).toBeLessThan(16);
  expect(objects).toBeLessThan(2000 + counts.cyclesHosted);
  await nothingLeft();
});
