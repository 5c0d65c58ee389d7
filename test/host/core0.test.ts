// What cmld does on a device, where core0 is the first container and the last, without its network (which would take
// this machine's) and without the machine's end.
import { afterEach, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { signed } from "../../initramfs/pki.ts";
import { checkDevice } from "../../src/cmld/config.ts";
import { control } from "../../src/cmld/control.ts";
import { type End, LOG_NAME, Manager } from "../../src/cmld/daemon.ts";
import { openHost } from "../../src/cmld/host.ts";
import { doorway } from "../../src/cmld/modules/doorway.ts";
import { modules } from "../../src/cmld/modules.ts";
import { serve, TRUSTED } from "../../src/cmld/socket.ts";
import type { State } from "../../src/cmld/state.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { delegate, make, remove } from "../../src/sys/cgroup.ts";
import type { Fd } from "../../src/sys/fd.ts";
import { Journal } from "../../src/sys/journal.ts";
import { noNetwork } from "../network.ts";
import { judge } from "../scd.ts";
import { Client, Command, installBusybox } from "./daemon.ts";
import { hashHere } from "./world.ts";

const WEB = "11111111-2222-4333-8444-555555555555";
const IDLE = "11111111-2222-4333-8444-666666666666";
const INITTAB = "::respawn:/bin/sleep 1000000\n";

const cleanup: (() => void | Promise<void>)[] = [];
afterEach(async () => {
  for (const undo of cleanup.splice(0).reverse()) await undo();
});

async function device(core0 = true, signedConfigs = false) {
  const base = mkdtempSync(join(tmpdir(), "device-"));
  chmodSync(base, 0o755); // the containers' ids pass through it
  cleanup.push(() => rmSync(base, { recursive: true, force: true }));
  installBusybox(join(base, "operatingsystems"), INITTAB);
  const containers = join(base, "containers");
  mkdirSync(containers);
  const configuration = (name: string, more = "") =>
    `name: "${name}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\n${more}`;
  const put = (uuid: string, name: string, more = "guestos_version: 1\n") => {
    writeFileSync(join(containers, `${uuid}.conf`), configuration(name, more));
    signed(join(containers, `${uuid}.conf`));
  };
  if (core0) put(C0, "core0");
  put(WEB, "web", "guestos_version: 1\nallow_autostart: true\n");
  put(IDLE, "idle");
  const config = checkDevice({ hostedmode: false, signed_configs: signedConfigs, c0os: "busybox" } as never);
  const logs = join(base, "logs");
  const log = new Journal({ name: LOG_NAME, directory: logs });
  const run = join(base, "run");
  const machine = openHost({ base, run, logs, device: config, warn: () => {}, hash: hashHere });
  const cgroup = join(machine.cgroup, base.split("/").at(-1)!);
  make(cgroup);
  delegate(cgroup);
  cleanup.push(() => remove(cgroup));
  const { promise: ended, resolve: end } = Promise.withResolvers<End>();
  let manager: Manager;
  const open = (listening: Fd, privileged: boolean) =>
    serve(listening, control(manager, privileged, TRUSTED));
  manager = new Manager({
    host: { ...machine, cgroup },
    device: config,
    modules: [...modules.filter((m) => m.name !== "network"), doorway(open)],
    store: { keep() {}, kept: () => undefined, names: () => [], forget() {}, exitOf: async () => undefined },
    scd: judge(),
    log,
    exec: () => {
      throw new Error("not here");
    },
    network: noNetwork,
    taken: [],
    end,
  });
  await manager.load();
  cleanup.push(() => manager.shutdown());
  const states: string[] = [];
  let changed: () => void = () => {};
  manager.onEvent(({ container }) => {
    const c = manager.container(container)!;
    states.push(`${c.config.name} ${c.state}`);
    changed();
  });
  const becomes = async (uuid: string, state: State) => {
    while (manager.container(uuid)?.state !== state) await new Promise<void>((go) => (changed = go));
  };
  return {
    base,
    manager,
    ended,
    states,
    becomes,
    said: () => readFileSync(join(logs, `${LOG_NAME}.current`), "utf8"),
  };
}

test("core0 comes first, then those that want it; its end is the end of all", async () => {
  const d = await device();
  await d.manager.begin();
  await d.becomes(WEB, "RUNNING");
  expect(d.states.filter((s) => s.endsWith("RUNNING"))).toEqual(["core0 RUNNING", "web RUNNING"]);
  expect(d.manager.container(IDLE)!.state).toBe("STOPPED");
  // It talks to us from inside, and may do everything but end itself so.
  using c = await Client.to(`/proc/${d.manager.container(C0)!.pid}/root/run/socket/cml-control`);
  expect(await c.say(Command.LIST_CONTAINERS)).toBe("CONTAINERS_LIST");
  for (const [command, words] of [
    [Command.CONTAINER_START, "CMD_UNSUPPORTED: core0 cannot be started"],
    [Command.CONTAINER_STOP, "CMD_UNSUPPORTED: core0 cannot be stopped"],
    [Command.REMOVE_CONTAINER, "CMD_FAILED: core0 cannot be removed"],
  ] as const)
    expect(await c.say(command, { container_uuids: [C0] })).toBe(words);
  await expect(d.manager.wipe(d.manager.container(C0)!)).rejects.toThrow("core0 runs");

  await d.manager.container(C0)!.kill();
  expect(await d.ended).toBe("power off");
  expect(d.manager.containers().map((c) => c.state)).toEqual(["STOPPED", "STOPPED", "STOPPED"]);
  await expect(d.manager.start(d.manager.container(IDLE)!, false)).rejects.toThrow(
    "everything is being stopped",
  );
}, 30_000);

test("a reboot is core0's end, said otherwise", async () => {
  const d = await device();
  await d.manager.begin();
  await d.becomes(WEB, "RUNNING");
  await d.manager.reboot();
  expect(await d.ended).toBe("reboot");
  expect(d.states.slice(-2)).toEqual(expect.arrayContaining(["core0 STOPPED"]));
}, 30_000);

test.each([false, true])(
  "core0 without a configuration gets one, with ids of its own (signed_configs: %p)",
  async (signedConfigs) => {
    const d = await device(false, signedConfigs);
    await d.manager.begin().catch(() => {}); // its ram_limit needs a controller that this machine may not have
    const core0 = d.manager.container(C0)!;
    expect(core0.config).toMatchObject({ name: "c0", guest_os: "busybox", userns: true, ram_limit: 1024 });
    expect(new Set(d.manager.containers().map((c) => c.uidStart)).size).toBe(3);
  },
  30_000,
);
