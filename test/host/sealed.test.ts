// Containers with a token, through the real cmld and the real scd in its room, by the tokens that the original made: every
// reply of spec/core.md 2.3 that a soft token can cause. (Their volumes are encrypted in test/machine, where there is a
// device-mapper; here they have none.)
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { ContainerState } from "../../proto/gen/proto.js";
import { guest } from "../machine/sealed.ts";
import { type Client, Cmld, Code, Command } from "./daemon.ts";

/** Its PIN is newpin1, its key was wrapped by the original; nobody has changed the PIN of the other. */
const PAIRED = "f815386c-25b6-4a09-9ee4-4b65b977f167";
const FRESH = "bd8f2102-ab15-4e6c-8fce-8fa4451d3730";

let cmld: Cmld;
let base: string;
let c: Client;
const at = (...parts: string[]) => join(base, ...parts);
const linkOf = (path: string): string => {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // closed meanwhile
  }
};
const golden = (name: string) => readFileSync(`test/data/tokens/${name}`);

beforeAll(async () => {
  cmld = await Cmld.begin(undefined, {
    device: "signed_configs: false\naudit_size: 1048576\n",
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", "keys", "tokens"]) mkdirSync(at(name), { recursive: true });
      for (const [uuid, name] of [
        [PAIRED, "paired"],
        [FRESH, "fresh"],
      ])
        writeFileSync(
          at(`containers/${uuid}.conf`),
          `name: "${name}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n`,
        );
      for (const uuid of [PAIRED, FRESH])
        copyFileSync(`test/data/tokens/${uuid}.p12`, at(`tokens/${uuid}.p12`));
      mkdirSync(at("containers", PAIRED), { recursive: true });
      writeFileSync(at("containers", PAIRED, "token_is_paired"), "");
      writeFileSync(at(`keys/${PAIRED}.key`), golden(`${PAIRED}.key`));
      writeFileSync(at("keys/device_pairing_secret"), Buffer.alloc(8, 3));
      guest(base, "vault", "data", "EMPTY");
    },
  });
  c = await cmld.client();
}, 60_000);

afterAll(async () => {
  c[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
});

const utf8 = (text: string) => Buffer.from(text);
const on = (uuid: string, pin?: string) => ({
  container_uuids: [uuid],
  ...(pin !== undefined && { container_start_params: { key: utf8(pin) } }),
});
const start = (uuid: string, pin?: string) => c.say(Command.CONTAINER_START, on(uuid, pin));
const stop = (uuid: string, pin?: string) => c.say(Command.CONTAINER_STOP, on(uuid, pin));
const change = (uuid: string, pin: string, fresh: string) =>
  c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, {
    container_uuids: [uuid],
    device_pin: utf8(pin),
    device_newpin: utf8(fresh),
  });
const stateOf = async (uuid: string) =>
  (await c.ask(Command.GET_CONTAINER_STATUS, { container_uuids: [uuid] })).container_status[0]!.state;

async function stopped(uuid: string): Promise<void> {
  using events = await cmld.client();
  await events.say(Command.EVENTS, { container_uuids: [uuid] });
  while ((await stateOf(uuid)) !== ContainerState.STOPPED) await events.next();
}

test("the original's token and wrapped key: the right PIN starts and stops, a wrong one does neither", async () => {
  expect(await start(PAIRED, "bad")).toBe(
    "CONTAINER_START_PASSWD_WRONG: the PIN is wrong; 2 more in this boot",
  );
  expect(await start(PAIRED, "newpin1")).toBe("CONTAINER_START_OK");
  expect(statSync(at(`keys/${PAIRED}.mac`)).size).toBe(32);
  expect(existsSync(at(`tokens/${PAIRED}.tries`))).toBe(false);
  expect(await start(PAIRED, "bad")).toContain("CONTAINER_START_EEXIST"); // no PIN is looked at
  expect(await stop(PAIRED, "bad")).toBe(
    "CONTAINER_STOP_PASSWD_WRONG: the PIN is wrong; 2 more in this boot",
  );
  expect(await stateOf(PAIRED)).toBe(ContainerState.RUNNING);
  expect(await stop(PAIRED, "newpin1")).toBe("CONTAINER_STOP_OK");
  await stopped(PAIRED);
  expect(await stop(PAIRED, "newpin1")).toContain("CONTAINER_STOP_FAILED_NOT_RUNNING");
}, 60_000);

test("an absent PIN costs no try; a container without a volume starts without one", async () => {
  const absent = { container_uuids: [PAIRED], container_start_params: {} };
  expect(await c.say(Command.CONTAINER_START, absent)).toBe(
    "CONTAINER_START_PASSWD_WRONG: paired: its token needs a PIN",
  );
  expect(await start(PAIRED)).toBe("CONTAINER_START_OK");
  expect(await c.say(Command.CONTAINER_STOP, absent)).toBe(
    "CONTAINER_STOP_PASSWD_WRONG: paired: its token needs a PIN",
  );
  expect(await stop(PAIRED)).toBe("CONTAINER_STOP_OK");
  await stopped(PAIRED);
  expect(existsSync(at(`tokens/${PAIRED}.tries`))).toBe(false);
});

test("a fresh token: nothing before its PIN was changed, and then a key of its own", async () => {
  expect(await start(FRESH, "trustme")).toStartWith("CONTAINER_START_TOKEN_UNPAIRED: ");
  expect(await change(FRESH, "nope", "mine")).toStartWith("CONTAINER_CHANGE_PIN_FAILED: the PIN is wrong");
  expect(await change(FRESH, "trustme", "mine")).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
  expect(existsSync(at("containers", FRESH, "token_is_paired"))).toBe(true);
  expect(await start(FRESH, "trustme")).toStartWith("CONTAINER_START_PASSWD_WRONG: ");
  expect(existsSync(at(`keys/${FRESH}.key`))).toBe(false);
  expect(await start(FRESH, "mine")).toBe("CONTAINER_START_OK");
  expect(statSync(at(`keys/${FRESH}.key`)).size).toBe(648);
  const key = readFileSync(at(`keys/${FRESH}.key`));
  expect(await stop(FRESH, "mine")).toBe("CONTAINER_STOP_OK");
  await stopped(FRESH);
  expect(await change(FRESH, "mine", "")).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
  expect(await start(FRESH, "")).toBe("CONTAINER_START_OK");
  expect(readFileSync(at(`keys/${FRESH}.key`))).toEqual(key);
  expect(await stop(FRESH, "")).toBe("CONTAINER_STOP_OK");
  await stopped(FRESH);
}, 60_000);

test("setup mode: a root of its own, the container's tree below /setup, no descriptor of ours", async () => {
  const params = { container_start_params: { key: utf8("newpin1"), setup: true } };
  expect(await c.say(Command.CONTAINER_START, { container_uuids: [PAIRED], ...params })).toBe(
    "CONTAINER_START_OK",
  );
  expect(await stateOf(PAIRED)).toBe(ContainerState.SETUP);
  const run = async (...command: string[]): Promise<string> => {
    using session = await cmld.client();
    session.send(Command.CONTAINER_EXEC_CMD, {
      container_uuids: [PAIRED],
      exec_command: "/setup/bin/busybox",
      exec_args: ["/setup/bin/busybox", ...command],
      exec_pty: false,
    });
    let output = "";
    for (;;) {
      const a = await session.next();
      if (a.code === Code.EXEC_END) return `${output}${a.error_text ?? ""}`;
      output += Buffer.from(a.exec_output!).toString();
    }
  };
  expect(await run("cat", "/setup/etc/inittab")).toContain("respawn");
  expect(await run("awk", '$2 == "/" { print $3 }', "/proc/mounts")).toBe("tmpfs\n");
  expect(await run("ls", "/etc")).toContain("No such file");
  const ours = new Set(readdirSync(`/proc/${cmld.pid}/fd`).map((n) => linkOf(`/proc/${cmld.pid}/fd/${n}`)));
  const theirs = [...(await run("ls", "-l", "/proc/1/fd")).matchAll(/ (\d+) -> (.*)$/gm)];
  expect(theirs.length).toBeGreaterThan(2);
  for (const [, n, what] of theirs) {
    if (Number(n) <= 2) continue; // its console
    expect(what).not.toContain(cmld.folder);
    if (!what!.startsWith("anon_inode")) expect(ours.has(what!)).toBe(false);
  }
  expect(await c.say(Command.CONTAINER_FREEZE, on(PAIRED))).toBe("CMD_OK");
  expect(await c.say(Command.CONTAINER_UNFREEZE, on(PAIRED))).toBe("CMD_OK");
  expect(await stateOf(PAIRED)).toBe(ContainerState.SETUP);
  expect(await stop(PAIRED, "newpin1")).toBe("CONTAINER_STOP_OK");
  await stopped(PAIRED);
  expect(await start(PAIRED, "newpin1")).toBe("CONTAINER_START_OK"); // the next one is an ordinary one
  expect(await stateOf(PAIRED)).not.toBe(ContainerState.SETUP);
  expect(await stop(PAIRED, "newpin1")).toBe("CONTAINER_STOP_OK");
  await stopped(PAIRED);
}, 120_000);

test("scd is killed while a PIN changes: the old one or the new one is right, and the client is told that", async () => {
  let pin = "newpin1";
  const children = () =>
    readFileSync(`/proc/${cmld.pid}/task/${cmld.pid}/children`, "utf8").split(" ").filter(Boolean);
  const isScd = (pid: string) => readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0").includes("scd");
  let unknown = 0;
  for (const ms of [0, 100, 300, 700]) {
    const fresh = `pin-${ms}`;
    expect((await c.ask(Command.PULL_DEVICE_CSR)).error_text).toBeDefined(); // there is an scd
    const asked = change(PAIRED, pin, fresh);
    await Bun.sleep(ms); // somewhere between the question and its answer
    for (const pid of children().filter(isScd)) process.kill(Number(pid), "SIGKILL");
    const said = await asked;
    if (said !== "CONTAINER_CHANGE_PIN_SUCCESSFUL") {
      expect(said).toStartWith(
        "CONTAINER_CHANGE_PIN_FAILED: nobody knows whether the old PIN is right now or the new one",
      );
      unknown++;
    }
    const right = (await change(PAIRED, fresh, fresh)) === "CONTAINER_CHANGE_PIN_SUCCESSFUL";
    if (!right) expect(await change(PAIRED, pin, pin)).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
    if (right) pin = fresh;
  }
  expect(unknown).toBeGreaterThan(0);
  expect(await change(PAIRED, pin, "newpin1")).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
}, 240_000);

test("a wrapped key that somebody exchanged makes a ZOMBIE, and a wipe is the way out", async () => {
  const wrapped = golden(`${PAIRED}.key`);
  const changed = Buffer.from(wrapped);
  changed[100]! ^= 1;
  writeFileSync(at(`keys/${PAIRED}.key`), changed);
  expect(await start(PAIRED, "newpin1")).toStartWith(
    "CONTAINER_START_EINTERNAL: the wrapped key is not the one",
  );
  expect(await stateOf(PAIRED)).toBe(ContainerState.ZOMBIE);
  for (const command of [Command.CONTAINER_START, Command.CONTAINER_STOP])
    expect(await c.say(command, on(PAIRED, "newpin1"))).toStartWith("CONTAINER_CTRL_EINTERNAL: ");
  expect(await c.say(Command.CONTAINER_WIPE, on(PAIRED))).toBe("CMD_OK");
  expect(await stateOf(PAIRED)).toBe(ContainerState.STOPPED);
  for (const gone of [`keys/${PAIRED}.key`, `keys/${PAIRED}.mac`, `containers/${PAIRED}/token_is_paired`])
    expect(existsSync(at(gone))).toBe(false);
  // Another token, with the PIN that everybody knows.
  expect(await start(PAIRED, "newpin1")).toStartWith("CONTAINER_START_TOKEN_UNPAIRED: ");
  expect(await change(PAIRED, "trustme", "again")).toBe("CONTAINER_CHANGE_PIN_SUCCESSFUL");
  expect(readFileSync(at(`tokens/${PAIRED}.p12`))).not.toEqual(golden(`${PAIRED}.p12`));
  expect(await start(PAIRED, "again")).toBe("CONTAINER_START_OK");
  expect(await stop(PAIRED, "again")).toBe("CONTAINER_STOP_OK");
  await stopped(PAIRED);
}, 180_000);

test("a key that is gone while its volumes are there is not replaced by another", async () => {
  const key = readFileSync(at(`keys/${FRESH}.key`));
  rmSync(at(`keys/${FRESH}.key`));
  writeFileSync(at("containers", FRESH, "data.img"), "");
  expect(await start(FRESH, "")).toStartWith("CONTAINER_START_EINTERNAL: the key of data.img is gone");
  rmSync(at("containers", FRESH, "data.img"));
  writeFileSync(at(`keys/${FRESH}.key`), key);
});

test("where nothing can be encrypted, what a token protects is not started, and nothing is made in clear", async () => {
  const text = (os: string) =>
    readFileSync(at(`containers/${FRESH}.conf`), "utf8").replace(/guest_os: ".*"/, `guest_os: "${os}"`);
  const use = (os: string) =>
    c.ask(Command.CONTAINER_UPDATE_CONFIG, {
      container_uuids: [FRESH],
      container_config_file: utf8(text(os)),
    });
  expect((await use("vault")).error_text ?? "").toBe("");
  expect(await start(FRESH)).toBe("CONTAINER_START_PASSWD_WRONG: fresh: its token needs a PIN");
  expect(await start(FRESH, "")).toMatch(/^CONTAINER_START_EINTERNAL: .*device-mapper/);
  expect(readdirSync(at("containers", FRESH)).filter((n) => n.endsWith(".img"))).toEqual([]);
  expect((await use("busybox")).error_text ?? "").toBe("");
});

test("token_type stays as it is while there is data behind it", async () => {
  const text = readFileSync(at(`containers/${FRESH}.conf`), "utf8").replace("SOFT", "NONE");
  const update = { container_uuids: [FRESH], container_config_file: utf8(text) };
  expect((await c.ask(Command.CONTAINER_UPDATE_CONFIG, update)).error_text).toContain(
    "token_type cannot change",
  );
});

test("a token that cannot be used, and a pairing secret that is damaged", async () => {
  const pairing = readFileSync(at("keys/device_pairing_secret"));
  writeFileSync(at("keys/device_pairing_secret"), "short");
  expect(await start(FRESH, "")).toContain("CONTAINER_START_EINTERNAL: ");
  expect(await stop(FRESH, "")).toContain("CONTAINER_START_EINTERNAL: ");
  writeFileSync(at("keys/device_pairing_secret"), pairing);
  const token = readFileSync(at(`tokens/${FRESH}.p12`));
  writeFileSync(at(`tokens/${FRESH}.p12`), token.subarray(0, 1000));
  expect(await start(FRESH, "")).toStartWith("CONTAINER_START_UNLOCK_FAILED: ");
  expect(await stop(FRESH, "")).toStartWith("CONTAINER_STOP_UNLOCK_FAILED: ");
  writeFileSync(at(`tokens/${FRESH}.p12`), token);
});

test("three wrong PINs lock the token, whatever they were for, also for a new scd", async () => {
  expect(await start(FRESH, "1")).toStartWith("CONTAINER_START_PASSWD_WRONG: ");
  expect(await stop(FRESH, "2")).toStartWith("CONTAINER_STOP_PASSWD_WRONG: ");
  expect(await change(FRESH, "3", "x")).toStartWith("CONTAINER_CHANGE_PIN_FAILED: ");
  for (let i = 0; i < 2; i++) {
    expect(await start(FRESH, "")).toStartWith("CONTAINER_LOCKED_TILL_REBOOT: ");
    expect(await stop(FRESH, "")).toStartWith("CONTAINER_LOCKED_TILL_REBOOT: ");
    expect(await change(FRESH, "", "x")).toStartWith("CONTAINER_CHANGE_PIN_FAILED: 3 wrong PINs");
    if (i > 0) continue;
    await cmld.end("SIGHUP");
    await cmld.start();
    c = await cmld.client();
  }
}, 60_000);

test("NONE ignores a PIN, and has none to change; what is removed leaves no key", async () => {
  const none = await cmld.create("none");
  expect(await start(none, "whatever")).toBe("CONTAINER_START_OK");
  expect(await change(none, "a", "b")).toBe(
    "CONTAINER_CHANGE_PIN_FAILED: none has no token: token_type is NONE",
  );
  expect(await stop(none, "whatever")).toBe("CONTAINER_STOP_OK");
  await stopped(none);
  expect(await c.say(Command.REMOVE_CONTAINER, on(FRESH))).toBe("CMD_OK");
  for (const extension of ["key", "mac"]) expect(existsSync(at(`keys/${FRESH}.${extension}`))).toBe(false);
  for (const extension of ["p12", "tries"])
    expect(existsSync(at(`tokens/${FRESH}.${extension}`))).toBe(false);
});
