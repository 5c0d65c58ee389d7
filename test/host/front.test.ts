// cmld as a whole, in hosted mode: lives of containers through the control socket, clients that misbehave, and what
// survives its own end.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CmldToServiceMessage, ContainerState, ServiceToCmldMessage } from "../../proto/gen/proto.js";
import { Store } from "../../src/init/store.ts";
import { FRAME_MAX, frame, Unframer } from "../../src/lib/frame.ts";
import { AF_UNIX, bindUnix, listen, SOCK_NONBLOCK, SOCK_SEQPACKET, socket } from "../../src/sys/calls.ts";
import { Fd } from "../../src/sys/fd.ts";
import { accepting, bindAt } from "../../src/sys/listen.ts";
import { now } from "../../src/sys/now.ts";
import { counts } from "../counts.ts";
import { Client, Cmld, Code, Command } from "./daemon.ts";

let cmld: Cmld;
beforeAll(async () => {
  cmld = await Cmld.begin();
});
afterAll(async () => await cmld[Symbol.asyncDispose]());

const status = async (c: Client, uuid: string) => {
  const a = await c.ask(Command.GET_CONTAINER_STATUS, { container_uuids: [uuid] });
  return ContainerState[a.container_status[0]!.state];
};

/** The states that the events of a container tell, until one of them. */
async function states(events: Client, until: keyof typeof ContainerState): Promise<string[]> {
  const seen: string[] = [];
  while (seen.at(-1) !== until) seen.push(ContainerState[(await events.next()).event!.state!]);
  return seen;
}

test("a container's life", async () => {
  const uuid = await cmld.create("life");
  const at = { container_uuids: [uuid] };
  using c = await cmld.client();
  using events = await cmld.client();
  expect(await events.say(Command.EVENTS, at)).toBe("CMD_OK");
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe(
    "CONTAINER_STOP_FAILED_NOT_RUNNING: life is STOPPED: not running",
  );
  expect((await c.ask(Command.EXPLAIN, at)).program!.ops.at(-2)).toStartWith('execve("/sbin/init"');
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  expect(await states(events, "RUNNING")).toEqual(["STARTING", "BOOTING", "RUNNING"]);
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_EEXIST: life is RUNNING already");
  expect((await c.ask(Command.STATS, at)).stats[0]).toMatchObject({ uuid, name: "life" });
  expect(await c.say(Command.CONTAINER_FREEZE, at)).toBe("CMD_OK");
  expect(await status(c, uuid)).toBe("FROZEN");
  expect(await c.say(Command.CONTAINER_UNFREEZE, at)).toBe("CMD_OK");
  expect(await states(events, "RUNNING")).toEqual(["FREEZING", "FROZEN", "RUNNING"]);
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
  expect(await states(events, "STOPPED")).toEqual(["SHUTDOWN", "STOPPED"]);
  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
  expect((await events.next()).event).toMatchObject({ name: "life" });
  expect(readdirSync(join(cmld.folder, "base/containers"))).toEqual([]);
  expect(readdirSync(join(cmld.folder, "run/ledger"))).toEqual([]);
}, 20_000);

test("a new configuration is taken at once, or when the container has stopped", async () => {
  const uuid = await cmld.create("before");
  const at = { container_uuids: [uuid] };
  using c = await cmld.client();
  const update = async (name: string) => {
    const text = `name: "${name}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\nloopback_only: true\n`;
    const a = await c.ask(Command.CONTAINER_UPDATE_CONFIG, {
      ...at,
      container_config_file: Buffer.from(text),
    });
    expect(a.container_configs[0]?.name).toBe(name);
  };
  const nameNow = async () => (await c.ask(Command.GET_CONTAINER_STATUS, at)).container_status[0]!.name;
  await update("stopped");
  expect(await nameNow()).toBe("stopped");
  await c.say(Command.CONTAINER_START, at);
  await update("running");
  expect(await nameNow()).toBe("stopped");
  using events = await cmld.client();
  await events.say(Command.EVENTS, at);
  await c.say(Command.CONTAINER_STOP, at);
  await states(events, "STOPPED");
  expect(await nameNow()).toBe("running");
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  expect(await c.say(Command.CONTAINER_WIPE, at)).toBe("CMD_OK");
  expect(await status(c, uuid)).toBe("STOPPED");
  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
}, 20_000);

// --- clients that misbehave -----------------------------------------------------------

test("a thousand connections, each with half a message, keep nobody waiting", async () => {
  const idle: Socket[] = [];
  for (let i = 0; i < 1000; i++) {
    const s = connect({ path: cmld.socket });
    s.on("error", () => {});
    await new Promise<void>((resolve) => s.on("connect", resolve));
    s.write(frame(new Uint8Array(100)).subarray(0, 1 + (i % 100)));
    idle.push(s);
  }
  using c = await cmld.client();
  const before = performance.now();
  for (let i = 0; i < 100; i++)
    expect((await c.ask(Command.LIST_CONTAINERS)).code).toBe(Code.CONTAINERS_LIST);
  expect(performance.now() - before).toBeLessThan(1000);
  for (const s of idle) s.destroy();
});

test("a client that never reads keeps nobody waiting", async () => {
  const lazy = connect({ path: cmld.socket });
  await new Promise<void>((resolve) => lazy.on("connect", resolve));
  lazy.pause();
  const request = frame(new Uint8Array([0x08, Command.LIST_GUESTOS_CONFIGS]));
  for (let i = 0; i < 20_000; i++) lazy.write(request);
  using c = await cmld.client();
  for (let i = 0; i < 100; i++) await c.ask(Command.LIST_CONTAINERS);
  lazy.destroy();
});

test("fuzz: whatever arrives, the daemon answers the next client", async () => {
  let seed = 20_261_121;
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0; // as C's rand() of old
    return Math.floor((seed / 2 ** 32) * n);
  };
  const noise = (n: number) => Uint8Array.from({ length: n }, () => random(256));
  const header = (n: number) => Buffer.from([n >>> 24, n >>> 16, n >>> 8, n].map((b) => b & 255));
  const inputs: (() => Uint8Array)[] = [
    () => noise(random(64)),
    () => Buffer.concat([header(0xffff_ffff), noise(10)]),
    () => Buffer.concat([header(FRAME_MAX + 1), noise(10)]),
    () => Buffer.concat([header(20), noise(random(20))]), // cut
    () => frame(noise(random(40))),
    () => frame(new Uint8Array(0)),
    () => frame(Uint8Array.from([0x08, 0xe7, 0x07])), // command 999
    () => frame(Buffer.concat([Uint8Array.from([0x08, random(120)]), noise(random(30))])),
    () => frame(Uint8Array.from([0x08, 0x03, 0x52, 0x02, 0xc3, 0x28])), // not UTF-8
  ];
  using healthy = await cmld.client();
  for (let i = 0; i < Math.min(counts.fuzzInputs / 50, 600); i++) {
    const s = connect({ path: cmld.socket });
    s.on("error", () => {});
    s.on("data", () => {});
    s.end(inputs[i % inputs.length]!());
    await new Promise<void>((resolve) => s.on("close", () => resolve()));
    expect((await healthy.ask(Command.GET_PROVISIONED)).code).toBe(Code.DEVICE_PROVISIONED_STATE);
  }
}, 60_000);

test("what cannot be understood is answered before the connection ends", async () => {
  for (const [bytes, words] of [
    [[0xff, 0xff, 0xff, 0xff], `frame of 4294967295 bytes, at most ${FRAME_MAX}`],
    [[0, 0, 0, 6, 0x08, 0x03, 0x52, 0x02, 0xc3, 0x28], "ControllerToDaemon.container_uuids: not UTF-8"],
    [[0, 0, 0, 0], "ControllerToDaemon.command: required, but missing"],
  ] as const) {
    using c = await cmld.client();
    c.socket.write(Uint8Array.from(bytes));
    expect((await c.next()).error_text).toBe(words);
    await c.whenClosed();
  }
  using c = await cmld.client();
  expect(await c.say(999 as 1)).toBe("CMD_UNSUPPORTED: command 999 is not known");
  expect(await c.say(Command.GET_PROVISIONED)).toBe("DEVICE_PROVISIONED_STATE");
});

test("20 000 requests one after the other: nothing is lost, nothing grows", async () => {
  using c = await cmld.client();
  const anonymous = () =>
    Number(/^Pss_Anon: +(\d+) kB/m.exec(readFileSync(`/proc/${cmld.pid}/smaps_rollup`, "utf8"))![1]);
  const many = async (n: number) => {
    for (let i = 0; i < n; i++) await c.ask(Command.GET_CONTAINER_STATUS);
  };
  await many(5_000);
  const before = anonymous();
  const start = performance.now();
  await many(20_000);
  const each = (performance.now() - start) / 20_000;
  const growth = anonymous() - before;
  console.log(`list: ${each.toFixed(3)} ms each; anonymous memory ${before} kB, grown by ${growth} kB`);
  expect(each).toBeLessThan(0.3);
}, 60_000);

test("a client that does not read stops the command that writes; its end ends the command", async () => {
  const uuid = await cmld.create("writer");
  const at = { container_uuids: [uuid] };
  using c = await cmld.client();
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  const lazy = await cmld.client();
  const script = "while :; do echo 0123456789012345678901234567890123456789; done";
  lazy.send(Command.CONTAINER_EXEC_CMD, { ...at, exec_command: "sh", exec_args: ["sh", "-c", script] });
  await lazy.next();
  lazy.socket.pause();
  const ledger = readFileSync(join(cmld.folder, "run/ledger", uuid), "utf8");
  const group = `${/"path":"([^"]*cgroup[^"]*)"/.exec(ledger)![1]}/child/cmld-injected/cgroup.procs`;
  const runs = () => existsSync(group) && readFileSync(group, "utf8") !== "";
  const memory = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${cmld.pid}/status`, "utf8"))![1]);
  // Somebody who reads gets answers meanwhile; what is written meanwhile goes nowhere.
  for (let i = 0; i < 200; i++) await c.ask(Command.LIST_CONTAINERS);
  const before = memory();
  for (let i = 0; i < 2000; i++) await c.ask(Command.LIST_CONTAINERS);
  expect(memory() - before).toBeLessThan(20_000);
  expect(runs()).toBeTrue();
  lazy.socket.destroy();
  while (runs()) await new Promise<void>((next) => setImmediate(next));
  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
}, 30_000);

test("the service socket: many clients, half a message, words out of turn", async () => {
  const uuid = await cmld.create("service");
  const at = { container_uuids: [uuid] };
  using c = await cmld.client();
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  const pid = /"pid":(\d+)/.exec(readFileSync(join(cmld.folder, "run/ledger", uuid), "utf8"))![1];
  const path = `/proc/${pid}/root/run/socket/cml-service`;
  const dial = async () => {
    const s = connect({ path }).resume();
    s.on("error", () => {});
    const gone = new Promise<void>((resolve) => s.on("close", () => resolve()));
    await Promise.race([gone, new Promise<void>((resolve) => s.on("connect", resolve))]);
    return Object.assign(s, { gone });
  };
  const { Code: Ask } = ServiceToCmldMessage;
  const say = (s: Socket, code: number) => s.write(frame(ServiceToCmldMessage.encode({ code })));
  /** Undefined: it hung up. */
  const name = (s: Socket): Promise<string | undefined> =>
    new Promise((resolve) => {
      const unframer = new Unframer();
      s.on("data", (chunk: Buffer) => {
        for (const m of unframer.push(chunk)) resolve(CmldToServiceMessage.decode(m).container_cfg_name);
      });
      s.on("close", () => resolve(undefined));
      if (s.destroyed) resolve(undefined);
      else say(s, Ask.CONTAINER_CFG_NAME_REQ);
    });
  const clients: Socket[] = [];
  for (let i = 0; i < 31; i++) {
    const s = await dial();
    s.write(Uint8Array.from([0])); // and no more
    clients.push(s);
  }
  const last = await dial();
  expect(await name(last)).toBe("service");
  const refused = await dial(); // one too many
  await refused.gone;
  for (const s of clients) s.destroy();
  last.destroy();
  // Booted is said once; to a container that is frozen or stops it means nothing.
  await c.say(Command.CONTAINER_FREEZE, at);
  const loud = await dial();
  say(loud, Ask.BOOT_COMPLETED);
  expect(await name(loud)).toBe("service");
  expect(await status(c, uuid)).toBe("FROZEN");
  const large = await dial();
  large.write(Uint8Array.from([0, 0x20, 0, 0]));
  await large.gone;
  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
}, 30_000);

// --- its own end ------------------------------------------------------------------------

test("the control socket inside a container outlives cmld, and allows what a guest may", async () => {
  const folder = mkdtempSync(join(tmpdir(), "store-"));
  const path = join(folder, "store");
  using listening = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
  now(bindUnix(listening.n, path));
  now(listen(listening.n, 8));
  const kept = new Map<string, Fd>();
  const store = new Store({ kept, save: () => {}, exitOf: () => 7 << 8, log: console.error });
  accepting(listening, (connection) => store.serve(connection));
  const mine = await Cmld.begin(undefined, {
    guestos: "feature_install_guest: true\n",
    env: { CML_STORE: path },
  });
  const uuid = await mine.create("installer");
  const at = { container_uuids: [uuid] };
  {
    using c = await mine.client();
    expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  }
  const pid = /"pid":(\d+)/.exec(readFileSync(join(mine.folder, "run/ledger", uuid), "utf8"))![1];
  const guest = async () => {
    using c = await Client.to(`/proc/${pid}/root/run/socket/cml-control`);
    expect(await c.say(Command.LIST_GUESTOS_CONFIGS)).toBe("GUESTOS_CONFIGS_LIST");
    expect(await c.say(Command.LIST_CONTAINERS)).toBe(
      "CMD_UNSUPPORTED: LIST_CONTAINERS is not allowed on this socket",
    );
  };
  await guest();
  while (kept.size < 4) await new Promise<void>((next) => setImmediate(next)); // it is our own loop that stores them
  expect([...kept.keys()].sort()).toEqual(
    ["calls.0", "control", "notify", "service"].map((n) => `${uuid}/${n}`),
  );
  for (let i = 0; i < 2; i++) {
    await mine.end("SIGKILL");
    await mine.start();
    await guest();
  }
  using c = await mine.client();
  using events = await mine.client();
  await events.say(Command.EVENTS, at);
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
  let last = await events.next();
  while (last.event!.state !== ContainerState.STOPPED) last = await events.next();
  expect(last.event).toMatchObject({ exit_status: 7 }); // as the store says
  while (kept.size > 0) await new Promise<void>((next) => setImmediate(next));
  await mine[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
}, 60_000);

for (const signal of ["SIGKILL", "SIGHUP"] as const)
  test(`${signal}: containers run on, and the next cmld has them`, async () => {
    const uuid = await cmld.create(`kept-${signal.toLowerCase()}`);
    const at = { container_uuids: [uuid] };
    {
      using c = await cmld.client();
      expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
    }
    expect(await cmld.end(signal)).toBe(signal === "SIGKILL" ? "SIGKILL" : 0);
    await cmld.start();
    using c = await cmld.client();
    expect(await status(c, uuid)).toBe("RUNNING");
    using events = await cmld.client();
    await events.say(Command.EVENTS, at);
    expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
    expect(await states(events, "STOPPED")).toEqual(["SHUTDOWN", "STOPPED"]);
    expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
    expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
  }, 30_000);

test("there is one cmld per folder", async () => {
  const second = Bun.spawn([...cmld.argv], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const said = (await new Response(second.stdout).text()) + (await new Response(second.stderr).text());
  expect(await second.exited).not.toBe(0);
  expect(said).toContain(`another cmld uses ${join(cmld.folder, "run")}`);
});

test("SIGTERM stops every container, then cmld", async () => {
  const mine = await Cmld.begin();
  const uuid = await mine.create("last");
  {
    using c = await mine.client();
    await c.say(Command.CONTAINER_START, { container_uuids: [uuid] });
  }
  expect(await mine.end("SIGTERM")).toBe(0);
  expect(readdirSync(join(mine.folder, "run/ledger"))).toEqual([]);
  expect(readFileSync(join(mine.folder, "out"), "utf8")).toContain("last: SHUTDOWN → STOPPED");
  expect(existsSync(join(mine.folder, "logs/cml-daemon.current"))).toBeTrue();
  await mine[Symbol.asyncDispose]();
}, 30_000);

test("the control socket may come from whoever starts cmld", async () => {
  const mine = await Cmld.begin();
  await mine.end("SIGTERM");
  using listening = bindAt(mine.socket, 0o700, 16);
  const shell = Bun.spawn(
    ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=cml-control exec "$@"', "sh", ...mine.argv],
    { stdio: ["ignore", "ignore", "ignore", listening.n] },
  );
  using c = await mine.client(); // waits in the queue until it listens
  expect((await c.ask(Command.LIST_CONTAINERS)).code).toBe(Code.CONTAINERS_LIST);
  shell.kill("SIGTERM");
  expect(await shell.exited).toBe(0);
  await mine[Symbol.asyncDispose]();
}, 30_000);
