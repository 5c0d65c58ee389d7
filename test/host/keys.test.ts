// Where secrets are while a container with a token starts, runs and stops, and when its PIN is changed: the writable memory of
// cmld and scd and every file are searched for its key, its PINs and the token's private key. docs/keys.md says the same in words.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ContainerState, ControllerToDaemon } from "../../proto/gen/proto.js";
import { frame } from "../../src/lib/frame.ts";
import { openPkcs12 } from "../../src/pki/pkcs12.ts";
import { unwrap } from "../../src/pki/wrap.ts";
import { Secret } from "../../src/sys/secret.ts";
import { found } from "../memory.ts";
import { tokenBehind } from "../token.ts";
import { type Client, Cmld, Command, pairWeb, WEB, WEB_PIN } from "./daemon.ts";

/** The first is not WEB_PIN: test/token.ts. */
const PINS = ["Rm4+first.of-them", "kq7-Zw2.unmistakable", "Vt9_another-one!"] as const;
const at = { container_uuids: [WEB] };
const PATIENCE_MS = 5_000;

let cmld: Cmld;
let c: Client;
let base: string;
const needles = new Map<string, Uint8Array>();

/** RSA-4096's numbers, as libcrypto holds them (words, the lowest first) and as files have them. */
function privateNumbers(): [string, Uint8Array][] {
  const args = [
    "openssl",
    "pkcs12",
    "-in",
    `test/data/tokens/${WEB}.p12`,
    "-passin",
    `pass:${WEB_PIN}`,
    "-nodes",
    "-nocerts",
  ];
  const pem = Bun.spawnSync(args).stdout;
  const text = Bun.spawnSync(["openssl", "pkey", "-noout", "-text"], { stdin: pem }).stdout.toString();
  return ["privateExponent", "prime1", "prime2", "exponent1", "exponent2", "coefficient"].flatMap((name) => {
    const digits = new RegExp(`${name}:\\n((?: +[0-9a-f:]+\\n)+)`).exec(text)![1]!.replace(/[^0-9a-f]/g, "");
    const big = Buffer.from(digits, "hex").subarray(-64);
    return [
      [`${name}, as in files`, big],
      [`${name}, as libcrypto has it`, Buffer.from(big).reverse()],
    ] as [string, Uint8Array][];
  });
}

beforeAll(async () => {
  for (const [name, bytes] of privateNumbers()) needles.set(name, bytes);
  using pin = Secret.take(Buffer.from(WEB_PIN));
  const { key: opened } = openPkcs12("token", readFileSync(`test/data/tokens/${WEB}.p12`), pin);
  using _ = opened;
  using key = unwrap(opened, readFileSync(`test/data/tokens/${WEB}.key`));
  key.lend((bytes) => {
    for (const [name, from, to] of [
      ["key", 0, 32],
      ["key, second quarter", 32, 64],
      ["key, HMAC", 64, 96],
    ] as const) {
      needles.set(name, Buffer.from(bytes.subarray(from, to)));
      needles.set(`${name}, hexadecimal`, Buffer.from(Buffer.from(bytes.subarray(from, to)).toString("hex")));
    }
  });
  for (const text of PINS) {
    needles.set(`PIN ${text}`, Buffer.from(text));
    needles.set(`PIN ${text}, UTF-16`, Buffer.from(text, "utf16le"));
    needles.set(`PIN ${text}, BMPString`, Buffer.from(text, "utf16le").swap16());
  }
  cmld = await Cmld.begin(undefined, {
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", `containers/${WEB}`, "keys", "tokens"])
        mkdirSync(join(base, name), { recursive: true });
      writeFileSync(
        join(base, `containers/${WEB}.conf`),
        'name: "web"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n',
      );
      pairWeb(base);
      tokenBehind(PINS[0], WEB, join(base, `tokens/${WEB}.p12`));
    },
  });
  c = await cmld.client();
}, 60_000);

afterAll(async () => {
  c[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
});

/** cmld, and scd, which is its child. */
function family(): [name: string, pid: number][] {
  const children = readFileSync(`/proc/${cmld.pid}/task/${cmld.pid}/children`, "utf8")
    .split(" ")
    .filter(Boolean);
  const scd = children.find((pid) => {
    const path = `/proc/${pid}/cmdline`;
    return existsSync(path) && readFileSync(path, "latin1").split("\0").includes("scd");
  });
  return [
    ["cmld", cmld.pid],
    ["scd", Number(scd)],
  ];
}

const inMemory = (): string[] =>
  family().flatMap(([name, pid]) => found(pid, needles).map((place) => `${name}: ${place}`));

function inFiles(): string[] {
  const places: string[] = [];
  for (const entry of readdirSync(cmld.folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const bytes = readFileSync(path);
    for (const [name, needle] of needles) if (bytes.includes(needle)) places.push(`${path}: ${name}`);
  }
  return places;
}

const key = (pin: string) => ({ ...at, container_start_params: { key: Buffer.from(pin) } });

async function stopped(pin: string): Promise<void> {
  using events = await cmld.client();
  await events.say(Command.EVENTS, at);
  expect(await c.say(Command.CONTAINER_STOP, key(pin))).toBe("CONTAINER_STOP_OK");
  const state = async () => (await c.ask(Command.GET_CONTAINER_STATUS, at)).container_status[0]!.state;
  while ((await state()) !== ContainerState.STOPPED) await events.next();
}

test("the search finds what is there", () => {
  const here = Buffer.from(needles.get("key")!);
  expect(found(process.pid, new Map([["x", here]])).length).toBeGreaterThan(0);
});

test("nothing is anywhere before it comes", () => {
  expect(inMemory()).toEqual([]);
  expect(inFiles()).toEqual([]);
});

test("while it runs and after the stop nothing is anywhere", async () => {
  expect(await c.say(Command.CONTAINER_START, key(PINS[0]))).toBe("CONTAINER_START_OK");
  const running = inMemory();
  expect(inFiles()).toEqual([]);
  await stopped(PINS[0]);
  expect(inFiles()).toEqual([]);
  expect(inMemory()).toEqual([]);
  expect(running).toEqual([]);
}, 60_000);

test("a request in pieces, behind others, that is no request, or whose sender is gone: its PIN is nowhere", async () => {
  const bytes = (command: ControllerToDaemon.Command, fields = {}) =>
    frame(ControllerToDaemon.encode({ command, ...fields }));
  const asking = bytes(Command.RECOVERY_KEY, key(PINS[0]));
  using other = await cmld.client();
  /** What was sent before has been read. */
  const read = () => other.ask(Command.GET_PROVISIONED);
  const behind = Buffer.concat([
    bytes(Command.PUSH_GUESTOS_CONFIG, { guestos_config_file: new Uint8Array(150_000) }),
    asking,
  ]);
  const malformed = Buffer.from(asking);
  malformed[malformed.length - 1] = 0xff; // the end of the PIN is not the end of the message
  const broken = Buffer.concat([malformed, Buffer.from([0xff])]);
  broken.writeUInt32BE(broken.length - 4);
  const ways: Record<string, Uint8Array[]> = {
    "byte by byte": Array.from(asking, (_, i) => asking.subarray(i, i + 1)),
    "in halves": [asking.subarray(0, asking.length - 1), asking.subarray(asking.length - 1)],
    "several at once": [Buffer.concat([asking, asking, asking])],
    "behind a large one": [behind],
    "behind a large one, without its end": [behind.subarray(0, -1), behind.subarray(-1)],
    "no request": [broken],
    "too long behind it": [
      Buffer.concat([asking.subarray(0, -1), asking.subarray(-1), Buffer.alloc(4, 0xff)]),
    ],
  };
  const left: string[] = [];
  for (const [how, pieces] of Object.entries(ways))
    for (const hangUp of [false, true]) {
      using sender = await cmld.client();
      for (const piece of pieces) {
        sender.socket.write(piece);
        await read();
      }
      if (!hangUp) await sender.next();
      if (hangUp || how.startsWith("behind")) sender.socket.destroy();
      else sender.socket.end();
      await sender.whenClosed();
      // One dialogue with the token after the other: this is behind it.
      expect(await other.say(Command.RECOVERY_KEY, key(PINS[0]))).toBe("EXPORT_DATA");
      let places = inMemory();
      // Nobody is told when the request of somebody who is gone is over.
      const end = performance.now() + PATIENCE_MS;
      while (hangUp && places.length > 0 && performance.now() < end) places = inMemory();
      left.push(...places.map((place) => `${how}${hangUp ? ", gone" : ""}: ${place}`));
    }
  expect(left).toEqual([]);
}, 60_000);

test("control, while it waits for the answer, has no PIN any more", async () => {
  const scd = family()[1]![1];
  for (const [said, ...args] of [
    [PINS[0], "start", "web"],
    [PINS[0], "recovery_key", "web"],
    [`${PINS[0]}\n${PINS[1]}\n${PINS[1]}`, "change_pin", "web"],
  ] as const) {
    process.kill(scd, "SIGSTOP");
    const argv = [process.execPath, "src/main.ts", "control", "--socket", cmld.socket, ...args];
    const control = Bun.spawn(argv, { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
    control.stdin.write(`${said}\n`);
    control.stdin.flush();
    const until = async (what: () => boolean) => {
      for (const end = performance.now() + PATIENCE_MS; !what() && performance.now() < end; )
        await Bun.sleep(5); // nobody tells
      expect(what()).toBe(true);
    };
    await until(() => found(cmld.pid, needles).length > 0); // it has been sent
    await until(() => found(control.pid, needles).length === 0);
    process.kill(scd, "SIGCONT");
    expect(await control.stderr.text()).toBe("");
    expect(await control.exited).toBe(0);
    if (args[0] === "start") await stopped(PINS[0]);
  }
  const back = { ...at, device_pin: Buffer.from(PINS[1]), device_newpin: Buffer.from(PINS[0]) };
  expect(await c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, back)).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
}, 60_000);

test("after a change of the PIN neither is anywhere", async () => {
  for (let i = 0; i < 2; i++)
    expect(
      await c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, {
        ...at,
        device_pin: Buffer.from(PINS[i]!),
        device_newpin: Buffer.from(PINS[i + 1]!),
      }),
    ).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
  expect(await c.say(Command.CONTAINER_START, key("wrong"))).toStartWith("CONTAINER_START_PASSWD_WRONG");
  expect(inMemory()).toEqual([]);
  expect(inFiles()).toEqual([]);
}, 60_000);

test("after a recovery key, an export and an import neither the key nor the recovery key is anywhere", async () => {
  const pin = key(PINS[2]);
  const { export_data: recovery } = await c.ask(Command.RECOVERY_KEY, pin);
  needles.set("recovery key", Buffer.from(recovery!));
  expect(inMemory()).toEqual([]);
  const backup: Uint8Array[] = [];
  for (const by of [pin, { ...at, import_data: recovery! }]) {
    backup.length = 0;
    c.send(Command.EXPORT, by);
    for (let a = await c.next(); a.export_data; a = await c.next()) backup.push(a.export_data);
    expect(inMemory()).toEqual([]);
  }
  const container_start_params = { key: recovery! };
  c.send(Command.IMPORT, { import_data: Buffer.concat(backup), container_start_params });
  const end = { import_data: new Uint8Array(0) };
  expect(await c.say(Command.IMPORT, end)).toBe("CMD_OK");
  expect(inMemory()).toEqual([]);
  expect(inFiles()).toEqual([]);
}, 60_000);

test("neither leaves a core file or is swapped where secrets are, and scd's own user cannot look into it", () => {
  for (const [name, pid] of family()) {
    const limits = readFileSync(`/proc/${pid}/limits`, "utf8");
    expect(`${name}: ${/Max core file size +(\d+)/.exec(limits)?.[1]}`).toBe(`${name}: 0`);
    expect(statSync(`/proc/${pid}/environ`).uid).toBe(0); // proc(5): of what is not dumpable
    const locked = /^VmLck:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    expect(Number(locked), name).toBeGreaterThanOrEqual(256); // the Secrets; in scd libcrypto's heap as well
  }
});
