// Eight containers with a token each, started at the same time, some with wrong PINs: who has which key and which count of
// tries, who is answered meanwhile, and what it costs in memory.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ContainerState, type ControllerToDaemon } from "../../proto/gen/proto.js";
import { unwrap as recovered } from "../../src/cmld/keys/recovery.ts";
import { certify } from "../../src/pki/issue.ts";
import { PrivateKey } from "../../src/pki/key.ts";
import { makePkcs12 } from "../../src/pki/pkcs12.ts";
import { macOf, wrap } from "../../src/pki/wrap.ts";
import { Secret } from "../../src/sys/secret.ts";
import { Cmld, Command } from "./daemon.ts";

const MANY = 8;
const uuids = Array.from({ length: MANY }, (_, i) => `f815386c-25b6-4a09-9ee4-4b65b977f1${i}0`);
const pins = uuids.map((_, i) => `number-${i}`);
const keyOf = (i: number): Uint8Array => Buffer.alloc(96, 100 + i);
/** Two with another's PIN, one with none that is anybody's. */
const given = pins.map((pin, i) => ({ 2: pins[3]!, 5: "nobody's", 6: pins[0]! })[i] ?? pin);
const right = uuids.map((_, i) => given[i] === pins[i]);
/** scd: more than the messages about its tokens; what derives keys is there already. cmld: what lists asked without a pause
 * leave for the garbage collector (23 MiB were seen), and some more. */
const [SCD_MIB, CMLD_MIB] = [8, 40];
/** The slowest of the lists, while eight containers start on a machine that is busy with other tests as well. */
const LIST_MS = 2_000;

let cmld: Cmld;
let base: string;
const at = (...parts: string[]) => join(base, ...parts);

beforeAll(async () => {
  cmld = await Cmld.begin(undefined, {
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", "keys", "tokens"]) mkdirSync(at(name), { recursive: true });
      for (const [i, uuid] of uuids.entries()) {
        writeFileSync(
          at(`containers/${uuid}.conf`),
          `name: "sealed${i}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n`,
        );
        mkdirSync(at("containers", uuid));
        writeFileSync(at("containers", uuid, "token_is_paired"), "mac\n");
        using token = PrivateKey.generate("rsa:2048");
        const certificate = certify({ subject: [["CN", uuid]], key: token, days: 1, extensions: [] });
        using pin = Secret.take(Buffer.from(pins[i]!));
        writeFileSync(at(`tokens/${uuid}.p12`), makePkcs12("token", token, certificate, pin));
        using key = Secret.take(keyOf(i));
        const wrapped = wrap(token, key);
        writeFileSync(at(`keys/${uuid}.key`), wrapped);
        writeFileSync(at(`keys/${uuid}.mac`), macOf(token, uuid, wrapped));
      }
    },
  });
}, 120_000);
afterAll(() => cmld[Symbol.asyncDispose]());

const asking = (i: number, pin: string) => ({
  container_uuids: [uuids[i]!],
  container_start_params: { key: Buffer.from(pin) },
});

/** Of cmld and scd, the most that was resident since it was asked last, MiB. */
function peaks(): number[] {
  const children = readFileSync(`/proc/${cmld.pid}/task/${cmld.pid}/children`, "utf8").split(" ");
  const scd = children.find((pid) => {
    const path = `/proc/${pid}/cmdline`;
    return pid !== "" && existsSync(path) && readFileSync(path, "latin1").split("\0").includes("scd");
  });
  return [String(cmld.pid), scd!].map((pid) => {
    const peak = Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
    writeFileSync(`/proc/${pid}/clear_refs`, "5"); // proc_pid_clear_refs(5): the peak begins anew
    return peak;
  });
}

/** All at once, each on a connection of its own; and how long each list took meanwhile, ms. */
async function together(command: ControllerToDaemon.Command, pinOf: (i: number) => string) {
  using open = new DisposableStack();
  const clients = await Promise.all(uuids.map(() => cmld.client()));
  for (const client of clients) open.use(client);
  using lister = await cmld.client();
  let over = false;
  const answers = Promise.all(clients.map((c, i) => c.ask(command, asking(i, pinOf(i))))).finally(() => {
    over = true;
  });
  const lists: number[] = [];
  while (!over) {
    const from = performance.now();
    const { container_status } = await lister.ask(Command.GET_CONTAINER_STATUS);
    lists.push(container_status.length === MANY ? performance.now() - from : Number.POSITIVE_INFINITY);
  }
  return { answers: await answers, lists: lists.sort((a, b) => a - b) };
}

async function allStopped(): Promise<void> {
  using c = await cmld.client();
  using events = await cmld.client();
  await events.say(Command.EVENTS);
  const states = async () => (await c.ask(Command.GET_CONTAINER_STATUS)).container_status;
  while ((await states()).some((s) => s.state !== ContainerState.STOPPED)) await events.next();
}

test("eight at once, right and wrong PINs mixed: each gets its own answer, and others are answered meanwhile", async () => {
  using c = await cmld.client();
  // What is loaded for the first start, in cmld and scd, is not counted.
  for (const command of [Command.CONTAINER_START, Command.CONTAINER_STOP])
    expect((await c.ask(command, asking(0, pins[0]!))).error_text).toBeUndefined();
  await allStopped();
  const before = peaks();
  const { answers, lists } = await together(Command.CONTAINER_START, (i) => given[i]!);
  const [cmldPeak, scdPeak] = peaks();
  for (const [i, answer] of answers.entries())
    expect(`${i}: ${answer.error_text ?? "no error"}`).toMatch(
      right[i] ? `${i}: no error` : new RegExp(`^${i}: .*the PIN is wrong; 2 more in this boot`),
    );
  const states = (await c.ask(Command.GET_CONTAINER_STATUS)).container_status;
  for (const [i, uuid] of uuids.entries()) {
    const state = states.find((s) => s.uuid === uuid)!.state;
    expect(`${i} ${[ContainerState.BOOTING, ContainerState.RUNNING].includes(state)}`).toBe(
      `${i} ${right[i]}`,
    );
  }
  const tries = readdirSync(at("tokens")).filter((name) => name.endsWith(".tries"));
  expect(tries.sort()).toEqual(uuids.filter((_, i) => !right[i]).map((uuid) => `${uuid}.tries`));
  expect(lists.length).toBeGreaterThan(20);
  expect(lists.at(-1)).toBeLessThan(LIST_MS);
  expect(cmldPeak! - before[0]!).toBeLessThan(CMLD_MIB);
  expect(scdPeak! - before[1]!).toBeLessThan(SCD_MIB);
}, 120_000);

test("eight keys at once: each container's is its own, and a right PIN forgets the wrong ones", async () => {
  const { answers } = await together(Command.RECOVERY_KEY, (i) => pins[i]!);
  for (const [i, uuid] of uuids.entries()) {
    using recovery = Secret.take(answers[i]!.export_data!);
    using key = recovered(readFileSync(at(`keys/${uuid}.recovery`)), recovery);
    key.lend((bytes) => expect(Buffer.from(bytes)).toEqual(Buffer.from(keyOf(i))));
  }
  expect(readdirSync(at("tokens")).filter((name) => name.endsWith(".tries"))).toEqual([]);
}, 120_000);

test("eight stops at once, some with another's PIN: those go on", async () => {
  const { answers } = await together(Command.CONTAINER_STOP, (i) => given[i]!);
  for (const [i] of uuids.entries())
    expect(`${i} ${answers[i]!.error_text === undefined}`).toBe(`${i} ${right[i]}`);
  await allStopped();
}, 120_000);
