// Links that come and go while containers run: they find the container that claims them, nobody else, and come home.
// The tests run in a network namespace of their own (this file runs itself again there); the kernel's own events about
// links are heard there.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as proto from "../../proto/gen/proto.js";
import type { ContainerConfig } from "../../src/cmld/config.ts";
import { hotplug as room } from "../../src/cmld/devices/hotplug.ts";
import { Ledger } from "../../src/cmld/ledger.ts";
import * as router from "../../src/cmld/network/router.ts";
import { type Child, launch, reap } from "../../src/run/launch.ts";
import { CLONE_NEWNET, CLONE_NEWUSER, signal, wait } from "../../src/sys/calls.ts";
import { ENODEV } from "../../src/sys/error.ts";
import { pipe } from "../../src/sys/fd.ts";
import { addVeth, deleteLink, links, raiseLoopback } from "../../src/sys/link.ts";
import { NETLINK_ROUTE, Netlink } from "../../src/sys/netlink.ts";
import { now } from "../../src/sys/now.ts";
import { Reg } from "../../src/sys/op.ts";
import { ended } from "../../src/sys/poll.ts";
import { counts } from "../counts.ts";
import { loopbackUp } from "./frames.ts";
import { until } from "./world.ts";

const INSIDE = "CML_TEST_HOTPLUG";

if (!process.env[INSIDE]) {
  test(
    "hot-plug of links, in a namespace of its own",
    () => {
      const run = Bun.spawnSync(
        ["unshare", "--net", process.execPath, "test", "--timeout", "240000", import.meta.path],
        { env: { ...process.env, [INSIDE]: "1" }, stdio: ["ignore", "pipe", "pipe"] },
      );
      if (run.exitCode !== 0) throw new Error(`${run.stdout}${run.stderr}`);
      process.stdout.write(run.stderr.toString().replace(/^/gm, "    "));
    },
    60_000 + counts.hotplug * 2_000,
  );
} else inside();

function inside(): void {
  const gate = pipe();
  const ready = pipe();
  const run = mkdtempSync(join(tmpdir(), "cml-hotplug-"));
  loopbackUp();
  const route = Netlink.open(NETLINK_ROUTE);
  const said: string[] = [];
  room.begin(
    () => [],
    (line) => void said.push(line),
  );
  const children = new Set<Child>();
  const end = async (child: Child): Promise<void> => {
    const over = child.started().catch(() => {}); // closes what it would have told us through
    process.kill(child.pid, "SIGKILL");
    await ended(child.pidfd);
    await over;
    reap(child.pidfd);
    child.pidfd.close();
    children.delete(child);
  };
  afterAll(async () => {
    for (const child of children) await end(child);
    room.end();
    rmSync(run, { recursive: true });
  });

  let count = 0;
  const newcomer = (net_ifaces: string[]) => {
    const uuid = `00000000-0000-0000-0000-${String(++count).padStart(12, "0")}`;
    const ledger = Ledger.open(join(run, "ledger"), { uuid, guestos: "", guestosVersion: 0, uidStart: 0 });
    const lines: string[] = [];
    const config = {
      ...proto.ContainerConfig.create(),
      netns: true,
      loopback_only: true,
      vnet_configs: [],
      net_ifaces: net_ifaces.map((netif) => ({ netif, mac_filter: [] })),
    } as unknown as ContainerConfig;
    return {
      ...{ uuid, name: `guest${count}`, isC0: false, config, host: { hosted: true, run } },
      ...{ owned: ledger, key: undefined, ledger, lines, log: (line: string) => void lines.push(line) },
    };
  };
  type Up = { guest: ReturnType<typeof newcomer>; child: Child };
  /** What container.ts does: prepare, clone, attach. */
  const up = async (...claims: string[]): Promise<Up> => {
    const guest = newcomer(claims);
    const veths = router.plan(guest);
    const ops = [...raiseLoopback(new Reg(0)), signal(ready.write.n), wait(gate.read.n)];
    const child = launch(ops, CLONE_NEWNET | CLONE_NEWUSER);
    children.add(child);
    now(wait(ready.read.n));
    try {
      await router.connectNew(guest, child.pid, veths);
    } catch (e) {
      await down({ guest, child });
      throw e;
    }
    return { guest, child };
  };
  const down = async ({ guest, child }: Up): Promise<void> => {
    await end(child);
    await guest.ledger.release();
  };

  const MAC = "02:00:00:00:00:0a";
  const plug = (name: string, mac: string): void =>
    void route.do([addVeth({ name, mac }, { name: `${name}-far` })]);
  /** Its other end goes, and with it the link, wherever it is. */
  const unplug = (name: string): void => void route.do([deleteLink(`${name}-far`)], ENODEV);
  const here = (): string[] => links(route).map((l) => l.name);
  const has = ({ guest }: Up): string[] =>
    router.interfaces(guest.uuid).table.map((t) => t.name.replace(/^lo$/, ""));
  const gets = (c: Up, name: string): Promise<void> =>
    until(() => (has(c).includes(name) ? [] : [`${name} is not with ${c.guest.name}: ${has(c)}`, ...said]));

  test("a link that appears goes to the container that claims its name or address, and home when that ends", async () => {
    const [byName, byAddress, other] = [await up("nic1"), await up(MAC.toUpperCase()), await up()];
    expect(byName.guest.lines).toEqual(["network interface nic1 is not there"]);
    plug("nic0", "02:00:00:00:00:0b"); // nobody's
    plug("nic1", "02:00:00:00:00:0c");
    plug("nic2", MAC);
    await gets(byName, "nic1");
    await gets(byAddress, "nic2");
    await room.idle();
    expect([has(byName), has(byAddress), has(other)]).toEqual([["", "nic1"], ["", "nic2"], [""]]);
    expect(byAddress.guest.lines).toContain(`network interface nic2 (${MAC}) has come`);
    expect(here()).toContain("nic0");

    await down(byName);
    await down(byAddress);
    await room.idle();
    expect(here().sort()).toEqual(["lo", "nic0", "nic0-far", "nic1", "nic1-far", "nic2", "nic2-far"]);
    await down(other);
    for (const n of ["nic0", "nic1", "nic2"]) unplug(n);
  });

  test("one that is free again goes to the next that claims it; one taken away on purpose stays away", async () => {
    const first = await up("nic1");
    plug("nic1", MAC);
    await gets(first, "nic1");
    await expect(up(MAC)).rejects.toThrow("network interface");
    const second = await up();
    await router.unassign(first.guest.uuid, MAC);
    await room.idle();
    expect([has(first), has(second)]).toEqual([[""], [""]]);
    expect(here()).toContain("nic1");
    const third = await up("nic1");
    expect(has(third)).toContain("nic1");
    await down(second);
    await down(third);
    await down(first);
    await room.idle();
    expect(here()).toContain("nic1");
    unplug("nic1");
  });

  test(`links plugged and unplugged ${counts.hotplug} times while containers start and stop: never a wrong owner, no leak`, async () => {
    const stays = await up(MAC);
    const descriptors = () => readdirSync("/proc/self/fd").length;
    const cycle = async (i: number): Promise<void> => {
      plug("nic1", MAC);
      plug("nic2", "02:00:00:00:00:0d");
      const comes = up("nic2");
      if (i % 3 === 0)
        unplug("nic1"); // before anybody had the time
      else await gets(stays, "nic1");
      const visitor = await comes;
      await gets(visitor, "nic2");
      expect(has(stays)).not.toContain("nic2");
      expect(has(visitor)).not.toContain("nic1");
      unplug("nic1");
      if (i % 2 === 0) unplug("nic2");
      await down(visitor);
      await room.idle();
      expect(here()).not.toContain("nic1");
      unplug("nic2");
      expect(here()).toEqual(["lo"]);
    };
    await cycle(1);
    const before = descriptors();
    for (let i = 0; i < counts.hotplug; i++) await cycle(i);
    expect(descriptors()).toBeLessThanOrEqual(before);
    const ledger = readFileSync(join(run, "ledger", stays.guest.uuid), "utf8");
    expect(ledger.split("\n").length).toBeLessThan(200);
    await down(stays);
    expect(here()).toEqual(["lo"]);
    expect(said).toEqual([]);
  });
}
