// cmld is killed again and again while containers start and stop: those that run go on running and are found again,
// and in the end nothing is left.
import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ContainerState } from "../../proto/gen/proto.js";
import { where } from "../../src/sys/cgroup.ts";
import { counts } from "../counts.ts";
import { type Client, Cmld, Command } from "./daemon.ts";
import { loops, until } from "./world.ts";

const SEED = 20260;
/** The longest life of a cmld: several starts and stops of a busybox fit into it. */
const LIFE_MS = 150;

const { mount, own } = where();
const groupOf = (uuid: string) =>
  join(mount, own === "/" ? "cml" : own.replace(/\/cmld$/, ""), "containers", uuid);
const processesOf = (uuid: string) => readFileSync(join(groupOf(uuid), "child/cgroup.procs"), "utf8").trim();

async function stateOf(c: Client, uuid: string): Promise<string> {
  const answer = await c.ask(Command.GET_CONTAINER_STATUS, { container_uuids: [uuid] });
  return ContainerState[answer.container_status[0]!.state]!;
}

async function reaches(c: Client, uuid: string, ...wanted: string[]): Promise<string> {
  for (;;) {
    const state = await stateOf(c, uuid);
    if (wanted.includes(state)) return state;
  }
}

test("kill -9 of cmld at random moments under load", async () => {
  await using cmld = await Cmld.begin();
  const steady = [await cmld.create("steady1"), await cmld.create("steady2")];
  const busy = [await cmld.create("busy1"), await cmld.create("busy2"), await cmld.create("busy3")];
  const all = [...steady, ...busy];
  const running = new Map<string, string>();
  {
    using c = await cmld.client();
    for (const uuid of steady) {
      expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
      await reaches(c, uuid, "RUNNING");
      running.set(uuid, processesOf(uuid));
    }
  }
  let seed = SEED;
  const random = (below: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31; // the C standard's example
    return Math.floor((seed / 2 ** 31) * below);
  };
  const found: Record<string, number> = {};
  for (let i = 0; i < counts.killsOfManager; i++) {
    const clients = await Promise.all(busy.map(() => cmld.client()));
    let over = false;
    const load = Promise.allSettled(
      clients.map(async (c, n) => {
        for (const at = { container_uuids: [busy[n]!] }; !over; ) {
          const state = await stateOf(c, busy[n]!);
          if (state === "STOPPED") await c.ask(Command.CONTAINER_START, at);
          else if (state === "RUNNING") await c.ask(Command.CONTAINER_STOP, at);
        }
      }),
    );
    await Bun.sleep(random(LIFE_MS)); // the moment is what is tested
    over = true;
    expect(await cmld.end("SIGKILL")).toBe("SIGKILL");
    await load;
    for (const c of clients) c[Symbol.dispose]();
    await cmld.start();
    using c = await cmld.client();
    for (const uuid of steady) {
      expect([i, await stateOf(c, uuid)]).toEqual([i, "RUNNING"]);
      expect(processesOf(uuid)).toContain(running.get(uuid)!.split("\n")[0]!);
    }
    // What was half-way is either back or gone.
    for (const uuid of busy) {
      const state = await reaches(c, uuid, "RUNNING", "STOPPED");
      found[state] = (found[state] ?? 0) + 1;
      if (state === "STOPPED") expect([i, uuid, existsSync(groupOf(uuid))]).toEqual([i, uuid, false]);
    }
  }
  console.log(
    `${counts.killsOfManager} kills; containers that were starting or stopping: ${JSON.stringify(found)}`,
  );

  using c = await cmld.client();
  for (const uuid of all) {
    if ((await stateOf(c, uuid)) === "RUNNING")
      await c.ask(Command.CONTAINER_STOP, { container_uuids: [uuid] });
    await reaches(c, uuid, "STOPPED");
  }
  expect(all.filter((uuid) => existsSync(groupOf(uuid)))).toEqual([]);
  expect(readdirSync(join(cmld.folder, "run/ledger"))).toEqual([]);
  expect(await cmld.end("SIGTERM")).toBe(0);
  await until(() => loops(cmld.folder)); // with cmld goes what it kept for the next start
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(cmld.folder);
}, 600_000);
