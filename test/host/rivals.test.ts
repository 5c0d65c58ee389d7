// What a token protects, with somebody in the way: two clients at once, files of tokens/, keys/ and
// containers/ that were changed while the machine was off.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ContainerState } from "../../proto/gen/proto.js";
import { type Client, Cmld, Command, pairWeb, WEB, WEB_PIN } from "./daemon.ts";

const HELD = "5dd56a85-4647-46ce-a1b9-4e5c78015c11";
const PIN = Buffer.from(WEB_PIN);

let cmld: Cmld;
let base: string;
let c: Client;
const at = (...parts: string[]) => join(base, ...parts);
const web = { container_uuids: [WEB] };
const withPin = (key: Uint8Array = PIN) => ({ ...web, container_start_params: { key } });
const ofWeb = (folder: string) => readdirSync(at(folder)).filter((name) => name.startsWith(WEB));

beforeAll(async () => {
  cmld = await Cmld.begin(undefined, {
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", "keys", "tokens"]) mkdirSync(at(name), { recursive: true });
      writeFileSync(
        at(`containers/${WEB}.conf`),
        'name: "web"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n',
      );
      mkdirSync(at("containers", HELD));
      writeFileSync(
        at(`containers/${HELD}.conf`),
        'name: "held"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\n',
      );
      writeFileSync(at("containers", HELD, "not-stacked"), "");
      pairWeb(base);
    },
  });
  c = await cmld.client();
}, 60_000);
afterAll(async () => {
  c[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
});

test("without its token a container is refused, and no other token is made in its place", async () => {
  rmSync(at(`tokens/${WEB}.p12`));
  expect(await c.say(Command.CONTAINER_START, withPin())).toMatch(
    /^CONTAINER_START_TOKEN_UNINIT: .*\.p12 is gone, and a new token opens nothing: wipe it/,
  );
  expect(ofWeb("tokens")).toEqual([]);
  pairWeb(base);
});

test("who asks and hangs up, again and again, takes no room from others", async () => {
  for (let i = 0; i < 600; i++) {
    const gone = await cmld.client();
    gone.send(Command.CONTAINER_START, withPin());
    await new Promise<void>((sent) => gone.socket.end(sent));
  }
  using other = await cmld.client();
  const said = await other.say(Command.RECOVERY_KEY, withPin());
  expect(said).toMatch(/^EXPORT_DATA$|64 requests with a password are under way/);
  expect(await other.say(Command.RECOVERY_KEY, { container_uuids: [HELD] })).toBe("EXPORT_DATA");
  while ((await other.say(Command.CONTAINER_STOP, withPin())) !== "CONTAINER_STOP_OK");
}, 60_000);

test("a start, a recovery key and a wipe at once: nothing runs with a key that is gone, and none is left", async () => {
  chownSync(at(`tokens/${WEB}.p12`), 1000, 1000); // scd cannot remove what belongs to nobody that it knows
  using second = await cmld.client();
  using third = await cmld.client();
  const said = await Promise.all([
    c.say(Command.CONTAINER_START, withPin()),
    second.say(Command.RECOVERY_KEY, withPin()),
    third.say(Command.CONTAINER_WIPE, web),
  ]);
  expect(said[2]).toBe("CMD_OK");
  expect(ofWeb("keys")).toEqual([]);
  const { state } = (await c.ask(Command.GET_CONTAINER_STATUS, web)).container_status[0]!;
  expect(ContainerState[state]!).toBe("STOPPED");
}, 60_000);

test("a container whose folder is gone can be wiped and removed", async () => {
  rmSync(at("containers", WEB), { recursive: true });
  expect(await c.say(Command.CONTAINER_WIPE, web)).toBe("CMD_OK");
  expect(await c.say(Command.REMOVE_CONTAINER, web)).toBe("CMD_OK");
  for (const folder of ["containers", "keys", "tokens"]) expect(ofWeb(folder)).toEqual([]);
  expect(existsSync(at("restoring"))).toBe(false);
}, 60_000);

test("a token that does not answer holds up no shutdown", async () => {
  pairWeb(base);
  writeFileSync(
    at(`containers/${WEB}.conf`),
    'name: "web"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n',
  );
  expect(await c.say(Command.RELOAD_CONTAINERS)).toBe("CMD_OK");
  const children = readFileSync(`/proc/${cmld.pid}/task/${cmld.pid}/children`, "utf8").split(" ");
  const scd = children.find((pid) =>
    readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0").includes("scd"),
  );
  process.kill(Number(scd), "SIGSTOP");
  c.send(Command.CONTAINER_START, withPin());
  using other = await cmld.client();
  await other.ask(Command.GET_PROVISIONED);
  expect(await cmld.end("SIGTERM")).toBe(0);
}, 20_000);
