import { afterAll, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { signed } from "../../initramfs/pki.ts";
import * as proto from "../../proto/gen/proto.js";
import { noNetwork } from "../../test/network.ts";
import { recorded } from "../../test/replay.ts";
import { judge } from "../../test/scd.ts";
import { print } from "../lib/text.ts";
import { Journal } from "../sys/journal.ts";
import { checkDevice } from "./config.ts";
import { control, gate } from "./control.ts";
import { LOG_NAME, Manager } from "./daemon.ts";
import type { Client, Exec, Request, Session } from "./exec.ts";
import type { Host } from "./module.ts";
import { GUEST, type Peer, TRUSTED } from "./socket.ts";

// The real front (control.ts) and the real stores in a temporary folder; nothing is started.

const { Command } = proto.ControllerToDaemon;
const { Code, Response } = proto.DaemonToController;
const golden = new URL("../../test/data/golden/", import.meta.url).pathname;
const folders: string[] = [];
afterAll(() => {
  for (const f of folders) rmSync(f, { recursive: true, force: true });
});

/** The original's guest operating systems, with images of the right size that hold nothing. */
function installed(base: string): void {
  const to = join(base, "operatingsystems");
  cpSync(join(golden, "state/operatingsystems"), to, { recursive: true });
  for (const file of readdirSync(to).filter((f) => f.endsWith(".conf"))) {
    signed(join(to, file));
    const text = readFileSync(join(to, file), "utf8");
    const images = join(to, file.slice(0, -".conf".length));
    mkdirSync(images, { recursive: true });
    for (const mount of text.split("mounts {").slice(1)) {
      const name = /image_file: *"(.*?)"/.exec(mount)?.[1];
      const size = /image_size: *(\d+)/.exec(mount)?.[1];
      if (name && size) {
        writeFileSync(join(images, `${name}.img`), "");
        truncateSync(join(images, `${name}.img`), Number(size));
      }
      if (mount.includes("image_verity_sha256")) writeFileSync(join(images, `${name}.hash.img`), "x");
    }
  }
}

const noExec: Exec = () => {
  throw new Error("nothing runs here");
};

async function daemon({ os = true, hosted = true, exec = noExec, scd = judge() } = {}) {
  const base = mkdtempSync(join(tmpdir(), "front-"));
  folders.push(base);
  if (os) installed(base);
  const logs = join(base, "logs");
  const device = checkDevice(
    proto.DeviceConfig.create({ hostedmode: hosted, signed_configs: false, tpm_enabled: false }),
  );
  const host: Host = {
    hosted,
    device,
    base,
    logs,
    run: join(base, "run"),
    cgroup: "/nonexistent",
    controllers: new Set(),
    claims: () => [],
    warnOnce: () => {},
    hash: async () => "",
  };
  const manager = new Manager({
    host,
    device,
    modules: [],
    store: {
      keep: () => {},
      kept: () => undefined,
      names: () => [],
      forget: () => {},
      exitOf: async () => undefined,
    },
    scd,
    log: new Journal({ name: LOG_NAME, directory: logs }),
    exec,
    network: noNetwork,
    taken: [],
    end: () => {},
  });
  await manager.load();
  return { base, manager, client: (privileged = true) => new Conversation(manager, privileged) };
}

/** One connection without a socket. */
class Conversation {
  readonly answers: proto.DaemonToController[] = [];
  readonly working: Promise<void>[] = [];
  closed = false;
  queued = 0;
  readonly #gone = new AbortController();
  readonly #peer: Peer;
  readonly #protocol;
  constructor(manager: Manager, privileged: boolean) {
    const self = this;
    this.#protocol = control(manager, privileged, privileged ? TRUSTED : GUEST);
    this.#peer = {
      id: 1,
      uid: 0,
      pid: 1,
      gone: this.#gone.signal,
      get queued() {
        return self.queued;
      },
      send: async (message) => void this.answers.push(proto.DaemonToController.decode(message)),
      during: (work) => void this.working.push(work),
      close: () => {
        this.closed = true;
      },
    };
  }
  async bytes(message: Uint8Array): Promise<proto.DaemonToController[]> {
    this.answers.length = 0;
    await this.#protocol.handle(message.slice(), this.#peer);
    return [...this.answers];
  }
  ask(command: proto.ControllerToDaemon.Command, fields: Partial<proto.IControllerToDaemon> = {}) {
    return this.bytes(proto.ControllerToDaemon.encode({ command, ...fields }));
  }
  leave(): void {
    this.#gone.abort();
  }
}

const text = (m: proto.DaemonToController): string => print(proto.DaemonToController, m);

// --- as the original --------------------------------------------------------------

/** What differs for a reason: names that are drawn, clocks, signatures and encryption that are not there yet. */
const comparable = (m: proto.DaemonToController): string => {
  m.container_status.sort((a, b) => (a.name < b.name ? -1 : 1));
  return text(m)
    .replace(/^error_text: .*\n/gm, "")
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, "UUID")
    .replace(/if_mac: ".*"/g, "MAC")
    .replace(/if_rootns_name: .*\n\s*/g, "")
    .replace(/(created|uptime): \d+/g, "$1")
    .replace(/trust_level: .*/g, "TRUST")
    .replace(/cryptfs_mode: .*/g, "MODE");
};

const REPLAYED = [
  ...[
    "12-create-soft1",
    "13-create-svc1",
    "14-create-none1",
    "16-create-vnet1",
    "17-create-ram1",
    "18-create-dm1",
  ],
  ...["20-create-unknown-os", "21-create-garbage", "84-update_config-file"],
  ...["76-deny_audio", "92-stop-soft1-notrunning", "93-run-notrunning", "100-reload", "102-pull_csr"],
  ...["204-get_provisioned", "116-wipe-soft1-again", "117-remove-dm1", "136-set_provisioned"],
  ...["137-get_provisioned", "205-set_provisioned", "142-wipe_device"],
];

test("the original's requests get the original's answers", async () => {
  const { client } = await daemon();
  const c = client();
  const ours = new Map<string, string>(); // by the original's uuid
  let compared = 0;
  for (const name of REPLAYED) {
    const r = recorded.find((one) => one.call === name)!;
    if (name === "92-stop-soft1-notrunning")
      // Between the two its PIN was changed.
      await c.ask(Command.CONTAINER_CHANGE_TOKEN_PIN, {
        container_uuids: [...ours.values()].slice(0, 1),
        device_pin: Buffer.from("trustme"),
        device_newpin: Buffer.from("newpin1"),
      });
    const answers: proto.DaemonToController[] = [];
    for (const bytes of r.requests) {
      const m = proto.ControllerToDaemon.decode(bytes);
      m.container_uuids = m.container_uuids.map((u) => ours.get(u) ?? u);
      answers.push(...(await c.bytes(proto.ControllerToDaemon.encode(m))));
    }
    const theirs = r.answers.map((a) => proto.DaemonToController.decode(a));
    for (const [i, a] of theirs.entries()) {
      if (a.code === Code.CONTAINER_CONFIG && a.container_uuids[0] && answers[i]?.container_uuids[0])
        ours.set(a.container_uuids[0], answers[i].container_uuids[0]);
      // Which containers there are, and what they do, depends on what was run before.
      if (a.code === Code.CONTAINER_STATUS) continue;
      expect(`${name}\n${answers[i] && comparable(answers[i])}`).toBe(`${name}\n${comparable(a)}`);
      compared++;
    }
    expect(answers.length).toBe(theirs.length);
  }
  expect(ours.size).toBe(6);
  expect(compared).toBe(22);
});

test("the original's data folder shows what the original showed", async () => {
  const base = mkdtempSync(join(tmpdir(), "front-"));
  folders.push(base);
  const d = await daemon();
  cpSync(join(golden, "state/containers"), join(d.base, "containers"), { recursive: true });
  await d.manager.reload();
  const c = d.client();
  const r = recorded.find((one) => one.call === "22-list")!;
  const theirs = proto.DaemonToController.decode(r.answers[0]!);
  const known = new Set(theirs.container_status.map((s) => s.uuid));
  const [answer] = await c.bytes(r.requests[0]!);
  answer!.container_status = answer!.container_status.filter((s) => known.has(s.uuid));
  theirs.container_status = theirs.container_status.filter((s) => d.manager.container(s.uuid));
  expect(theirs.container_status.length).toBeGreaterThan(5);
  expect(comparable(answer!)).toBe(comparable(theirs));
});

// --- every command ----------------------------------------------------------------

const ALL = Object.values(Command).filter((n): n is number => typeof n === "number");
const LATER: number[] = [Command.EVENTS];

test("every command answers an empty request exactly once, with a sentence where it fails", async () => {
  const { client } = await daemon();
  for (const command of ALL) {
    const c = client();
    const answers = await c.ask(command);
    const what = `${Command[command]}: ${answers.map(text).join("")}`;
    if (command === Command.CONTAINER_EXEC_INPUT) expect(answers).toEqual([]);
    else if (command === Command.GET_LAST_LOG || command === Command.LOGS)
      expect(answers.length).toBeGreaterThan(1);
    else expect(`${answers.length} ${what}`).toBe(`1 ${what}`);
    const [a] = answers.slice(-1);
    const failed =
      a?.code === Code.EXEC_END ||
      (a?.code === Code.RESPONSE && a.response !== Response.CMD_OK) ||
      (a?.code === Code.CONTAINER_CONFIG && command !== Command.GET_CONTAINER_CONFIG);
    if (failed) expect(`${what} ${a?.error_text ? "said" : "not said"} why`).toEndWith(" said why");
    if (LATER.includes(command)) c.leave();
    await Promise.all(c.working);
  }
});

test("answers for a container that is not there", async () => {
  const { client } = await daemon();
  const c = client();
  const at = { container_uuids: ["f815386c-25b6-4a09-9ee4-4b65b977f167"] };
  const answer = async (command: proto.ControllerToDaemon.Command) => {
    const [a, ...more] = await c.ask(command, at);
    expect(more).toEqual([]);
    return a!.code === Code.RESPONSE ? Response[a!.response!] : Code[a!.code];
  };
  expect(await answer(Command.CONTAINER_START)).toBe("CONTAINER_START_EEXIST");
  expect(await answer(Command.CONTAINER_STOP)).toBe("CONTAINER_STOP_FAILED_NOT_RUNNING");
  expect(await answer(Command.CONTAINER_CHANGE_TOKEN_PIN)).toBe("CONTAINER_CHANGE_PIN_FAILED");
  expect(await answer(Command.CONTAINER_EXEC_CMD)).toBe("EXEC_END");
  expect(await answer(Command.CONTAINER_UPDATE_CONFIG)).toBe("CONTAINER_CONFIG");
  expect(await answer(Command.GET_CONTAINER_STATUS)).toBe("CONTAINER_STATUS");
  for (const command of [
    ...[
      Command.REMOVE_CONTAINER,
      Command.CONTAINER_FREEZE,
      Command.CONTAINER_WIPE,
      Command.CONTAINER_SNAPSHOT,
    ],
    ...[Command.CONTAINER_LIST_IFACES, Command.CONTAINER_CMLD_HANDLES_PIN, Command.EXPLAIN],
  ])
    expect(await answer(command)).toBe("CMD_FAILED");
});

test("assign_iface --persistent changes the configuration, also of a container that does not run", async () => {
  const { client, base } = await daemon();
  const c = client();
  const [made] = await c.ask(Command.CREATE_CONTAINER, {
    container_config_file: Buffer.from('name: "web" guest_os: "tinyos" color: 0 token_type: NONE'),
  });
  const uuid = made!.container_uuids[0]!;
  const change = async (command: proto.ControllerToDaemon.Command): Promise<string> => {
    const params = { iface_name: "cmleth1", persistent: true };
    const [a] = await c.ask(command, { container_uuids: [uuid], assign_iface_params: params });
    expect(a).toMatchObject({ response: Response.CMD_OK });
    return readFileSync(join(base, "containers", `${uuid}.conf`), "utf8");
  };
  expect(await change(Command.CONTAINER_ASSIGNIFACE)).toContain('netif: "cmleth1"');
  expect((await change(Command.CONTAINER_ASSIGNIFACE)).match(/netif/g)?.length).toBe(1);
  expect(await change(Command.CONTAINER_UNASSIGNIFACE)).not.toContain("netif");
});

test("a token asks for a PIN, NONE ignores it", async () => {
  const { client } = await daemon();
  const c = client();
  const config = (type: string) =>
    Buffer.from(`name: "x"\nguest_os: "plainos"\ncolor: 0\ntoken_type: ${type}\n`);
  const [made] = await c.ask(Command.CREATE_CONTAINER, { container_config_file: config("SOFT") });
  const [uuid] = made!.container_uuids;
  const [absent] = await c.ask(Command.CONTAINER_START, {
    container_uuids: [uuid!],
    container_start_params: {},
  });
  expect(absent).toMatchObject({
    response: Response.CONTAINER_START_PASSWD_WRONG,
    error_text: "x: its token needs a PIN",
  });
  const [a] = await c.ask(Command.CONTAINER_START, {
    container_uuids: [uuid!],
    container_start_params: { key: Buffer.from("x") },
  });
  expect(a).toMatchObject({ response: Response.CONTAINER_START_TOKEN_UNPAIRED });
  // With NONE it is tried, although the original's client always sends a key.
  const [none] = await c.ask(Command.CREATE_CONTAINER, { container_config_file: config("NONE") });
  const [b] = await c.ask(Command.CONTAINER_START, {
    container_uuids: [none!.container_uuids[0]!],
    container_start_params: { key: new Uint8Array() },
  });
  expect(b).toMatchObject({ response: Response.CONTAINER_START_EINTERNAL });
});

test("each refusal of a token has its reply, at a start and at a stop (spec/core.md 2.3)", async () => {
  const [Ask, Say] = [proto.DaemonToToken.Code, proto.TokenToDaemon.Code];
  let [refuses, code] = [Ask.UNLOCK, Say.UNLOCK_FAILED];
  const granted = judge();
  const { base, client } = await daemon({
    scd: {
      ...granted,
      token: async (r) => {
        if (r.code === refuses) return proto.TokenToDaemon.create({ code });
        if (r.code !== Ask.WRAP_KEY) return await granted.token(r);
        return proto.TokenToDaemon.create({ code: Say.WRAPPED_KEY, wrapped_key: new Uint8Array(648) });
      },
    },
  });
  const c = client();
  const config = 'name: "x"\nguest_os: "plainos"\ncolor: 0\ntoken_type: SOFT\n';
  const [made] = await c.ask(Command.CREATE_CONTAINER, { container_config_file: Buffer.from(config) });
  const [uuid] = made!.container_uuids;
  const said = async (command: proto.ControllerToDaemon.Command) => {
    const key = Buffer.from("x");
    const [answer] = await c.ask(command, { container_uuids: [uuid!], container_start_params: { key } });
    return Response[answer!.response!];
  };
  const both = async () => [await said(Command.CONTAINER_START), await said(Command.CONTAINER_STOP)];
  for (const folder of ["tokens", `containers/${uuid}`]) mkdirSync(join(base, folder), { recursive: true });
  writeFileSync(join(base, "containers", uuid!, "token_is_paired"), "");
  writeFileSync(join(base, "tokens", `${uuid}.p12`), "");
  for (const [asked, answer, start, stop] of [
    [Ask.TOKEN_ADD, Say.TOKEN_ADD_FAILED, "CONTAINER_START_TOKEN_UNINIT", "CONTAINER_START_TOKEN_UNINIT"],
    [Ask.UNLOCK, Say.UNLOCK_FAILED, "CONTAINER_START_UNLOCK_FAILED", "CONTAINER_STOP_UNLOCK_FAILED"],
    [Ask.UNLOCK, Say.PASSWD_WRONG, "CONTAINER_START_PASSWD_WRONG", "CONTAINER_STOP_PASSWD_WRONG"],
    [Ask.UNLOCK, Say.LOCKED_TILL_REBOOT, "CONTAINER_LOCKED_TILL_REBOOT", "CONTAINER_LOCKED_TILL_REBOOT"],
    [Ask.UNLOCK, Say.CMD_UNKNOWN, "CONTAINER_START_EINTERNAL", "CONTAINER_START_EINTERNAL"],
    [Ask.LOCK, Say.LOCK_FAILED, "CONTAINER_START_LOCK_FAILED", "CONTAINER_STOP_LOCK_FAILED"],
  ] as const) {
    [refuses, code] = [asked, answer];
    expect(await both()).toEqual([start, stop]);
  }
  rmSync(join(base, "containers", uuid!, "token_is_paired"));
  expect(await both()).toEqual(["CONTAINER_START_TOKEN_UNPAIRED", "CONTAINER_START_TOKEN_UNPAIRED"]);
});

// --- the gate ------------------------------------------------------------------------

test("gate(): what is allowed where", () => {
  const at = (hosted: boolean, provisioned: boolean, privileged: boolean) =>
    ALL.filter((n) => gate({ hosted, provisioned }, n, privileged) === undefined).map((n) => Command[n]!);
  expect(at(false, false, true).length).toBe(ALL.length);
  expect(at(true, true, true).length).toBe(ALL.length);
  expect(at(true, false, false)).toEqual(["LIST_GUESTOS_CONFIGS", "PUSH_GUESTOS_CONFIG", "REGISTER_LOCALCA"]);
  // core.md 2.2, column P
  const numbers = [1, 2, 3, 4, 5, 6, 20, 22, 31, 33, 34, 101, 102, 112, 115, 116, 117];
  const ours = [Command.EVENTS, Command.STATS, Command.LOGS, Command.AUDIT, Command.EXPLAIN];
  expect(at(false, true, true)).toEqual([...numbers, ...ours].map((n) => Command[n]!));
  expect(gate({ hosted: true, provisioned: false }, 999, true)).toBe("command 999 is not known");
});

test("a provisioned device refuses, an unknown number is unsupported, a broken message ends the connection", async () => {
  const { client, manager } = await daemon({ hosted: false });
  await manager.setProvisioned();
  const c = client();
  const [wipe] = await c.ask(Command.WIPE_DEVICE);
  expect(wipe).toMatchObject({
    response: Response.CMD_UNSUPPORTED,
    error_text: "WIPE_DEVICE is not allowed on a provisioned device",
  });
  const [unknown] = await c.ask(999 as proto.ControllerToDaemon.Command);
  expect(unknown).toMatchObject({
    response: Response.CMD_UNSUPPORTED,
    error_text: "command 999 is not known",
  });
  expect(c.closed).toBeFalse();
  const [broken] = await c.bytes(new Uint8Array([0x08, 0x03, 0x52, 0x02, 0xc3, 0x28]));
  expect(broken).toMatchObject({
    response: Response.CMD_FAILED,
    error_text: "ControllerToDaemon.container_uuids: not UTF-8",
  });
  expect(c.closed).toBeTrue();
  const guest = client(false);
  expect((await guest.ask(Command.CONTAINER_START))[0]).toMatchObject({ response: Response.CMD_UNSUPPORTED });
});

// --- streams ----------------------------------------------------------------------------

test("EVENTS tells what appears and goes; LOGS goes on", async () => {
  const { client, manager } = await daemon();
  const watcher = client();
  expect(await watcher.ask(Command.EVENTS)).toMatchObject([{ response: Response.CMD_OK }]);
  const c = client();
  const [made] = await c.ask(Command.CREATE_CONTAINER, {
    container_config_file: Buffer.from('name: "web"\nguest_os: "plainos"\ntoken_type: NONE\n'),
  });
  const container_uuids = [made!.container_uuids[0]!];
  await c.ask(Command.REMOVE_CONTAINER, { container_uuids });
  expect(watcher.answers.slice(1).map((a) => [a.event?.name, a.event?.state])).toEqual([
    ["web", proto.ContainerState.STOPPED],
    ["web", undefined],
  ]);
  watcher.leave();
  await Promise.all(watcher.working);

  const reader = client();
  await reader.ask(Command.LOGS, { log_follow: true, log_lines: 1 });
  const said = () => reader.answers.map((a) => Buffer.from(a.log_message?.msg ?? []).toString()).join("");
  while (!said().includes("removed")) await new Promise<void>((next) => setImmediate(next));
  manager.info("and on");
  while (!said().includes("and on")) await new Promise<void>((next) => setImmediate(next));
  reader.leave();
  await Promise.all(reader.working);
});

test("GET_LAST_LOG sends every file and removes those that are old, if asked", async () => {
  const { base, client } = await daemon();
  writeFileSync(join(base, "logs", "cml-scd.2014"), "old words\n");
  const answers = await client().ask(Command.GET_LAST_LOG, { remove_logs: true });
  expect(answers.at(-1)).toMatchObject({ code: Code.RESPONSE, response: Response.CMD_OK });
  const finals = answers.filter((a) => a.code === Code.LOG_MESSAGE_FINAL);
  expect(finals.map((a) => a.log_message!.name.replace(/\d{4}-.*/, "TIME")).sort()).toEqual([
    "cml-daemon.TIME",
    "cml-scd.2014",
  ]);
  expect(existsSync(join(base, "logs", "cml-scd.2014"))).toBeFalse();
  expect(readdirSync(join(base, "logs")).length).toBe(2);
});

test("EXEC_CMD: output, input, the end with its status; a second command, a container that stands still", async () => {
  const calls: string[] = [];
  let running: Client | undefined;
  const exec: Exec = (target, request: Request, client): Session => {
    calls.push(`${target.name}: ${request.argv.join(" ")} ${request.pty}`);
    running = client;
    return {
      input: (bytes) => calls.push(`input ${Buffer.from(bytes).toString()}`) > 0 && bytes.length < 10,
      endInput: () => void calls.push("end of input"),
      resize: (rows, cols) => void calls.push(`resize ${rows} ${cols}`),
      resume: () => void calls.push("resume"),
      hangup: () => void calls.push("hangup"),
    };
  };
  const d = await daemon({ exec });
  const c = d.client();
  const [made] = await c.ask(Command.CREATE_CONTAINER, {
    container_config_file: Buffer.from('name: "web"\nguest_os: "plainos"\ntoken_type: NONE\n'),
  });
  const at = { container_uuids: [made!.container_uuids[0]!] };
  const run = { ...at, exec_command: "sh", exec_args: ["sh", "-c", "x"], exec_pty: true };
  expect(await c.ask(Command.CONTAINER_EXEC_CMD, run)).toMatchObject([
    { code: Code.EXEC_END, error_text: "web is STOPPED: not running" },
  ]);

  const web = d.manager.container(at.container_uuids[0]!)!;
  Object.defineProperty(web, "state", { value: "RUNNING" });
  Object.defineProperty(web, "process", { value: { pid: 1, pidfd: undefined } });
  expect(await c.ask(Command.CONTAINER_EXEC_CMD, run)).toEqual([]);
  expect(await c.ask(Command.CONTAINER_EXEC_CMD, run)).toMatchObject([
    { code: Code.EXEC_END, error_text: "a command of this connection runs already" },
  ]);
  await c.ask(Command.CONTAINER_EXEC_INPUT, { ...at, exec_input: Buffer.from("a\0b") });
  await c.ask(Command.CONTAINER_EXEC_INPUT, { exec_input: Buffer.from("for nobody") });
  expect(await c.ask(Command.EXEC_RESIZE, { exec_rows: 3, exec_cols: 4 })).toMatchObject([
    { response: Response.CMD_OK },
  ]);
  expect(running!.output(Buffer.from("out"))).toBeTrue();
  c.queued = 5;
  expect(running!.output(Buffer.from("more"))).toBeFalse();
  await Promise.resolve();

  // The command does not read: the connection's next message waits until it does.
  let taken = false;
  const slow = c.ask(Command.CONTAINER_EXEC_INPUT, { ...at, exec_input_bytes: Buffer.from("0123456789") });
  void slow.then(() => (taken = true));
  await Promise.resolve();
  expect(taken).toBeFalse();
  running!.writable();
  await slow;
  await c.ask(Command.CONTAINER_EXEC_INPUT, { ...at, exec_input_bytes: new Uint8Array(0) });
  c.answers.length = 0;
  running!.ended({ status: 7 });
  expect(c.answers).toMatchObject([{ code: Code.EXEC_END, exit_status: 7 }]);
  await Promise.all(c.working);
  expect(calls).toEqual([
    "web: sh -c x true",
    "input a\0b",
    "resize 3 4",
    "resume",
    "input 0123456789",
    "end of input",
  ]);

  await c.ask(Command.CONTAINER_EXEC_CMD, run);
  c.leave();
  await Promise.all(c.working);
  expect(calls.at(-1)).toBe("hangup");
});
