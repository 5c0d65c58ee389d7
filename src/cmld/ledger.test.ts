import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chain } from "../sys/error.ts";
import { LEDGER_VERSION, Ledger } from "./ledger.ts";

const head = {
  uuid: "11111111-1111-4111-8111-111111111111",
  guestos: "os",
  guestosVersion: 3,
  uidStart: 100000,
};
let directory: string;
let path: string;
let said: string[];
const log = (line: string) => void said.push(line);

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cml-ledger-"));
  path = join(directory, "ledgers", head.uuid);
  said = [];
});
afterEach(() => rmSync(directory, { recursive: true }));

const open = () => Ledger.open(join(directory, "ledgers"), head);
const load = () => Ledger.load(join(directory, "ledgers"), log);
const file = (name: string) => ({ kind: "file", path: join(directory, name) }) as const;

test("a resource is written down before it is acquired, and released by whoever loads the ledger", async () => {
  const mine = open();
  mine.acquire(file("a"), () => {
    expect(readFileSync(path, "utf8")).toContain(JSON.stringify({ own: file("a") }));
    writeFileSync(file("a").path, "");
  });
  const [found] = await load();
  expect([found?.ledger.head, found?.running]).toEqual([{ version: LEDGER_VERSION, ...head }, undefined]);
  await found?.ledger.release();
  expect([existsSync(file("a").path), existsSync(path), said]).toEqual([false, false, []]);
});

test("it says who runs, and the last word counts", async () => {
  const ledger = open();
  ledger.running({ pid: 7, startTime: 8, since: 9, state: "BOOTING" });
  ledger.running({ pid: 7, startTime: 8, since: 9, state: "RUNNING" });
  expect((await load())[0]?.running).toEqual({ pid: 7, startTime: 8, since: 9, state: "RUNNING" });
});

test("release() goes backwards; a failure stops nobody, is reported, and is tried again", async () => {
  const ledger = open();
  const order: string[] = [];
  ledger.use({ [Symbol.dispose]: () => void order.push("first") });
  writeFileSync(file("f").path, "");
  ledger.acquire(file("f"), () => {});
  mkdirSync(file("stuck").path); // not a file: cannot be removed as one
  ledger.acquire(file("stuck"), () => {});
  ledger.use({
    [Symbol.dispose]: () => {
      order.push("second");
      throw new Error("no");
    },
  });
  const error = await ledger.release().then(() => "", chain);
  expect(order).toEqual(["second", "first"]);
  expect(error).toMatch(/^closing: no; releasing \{"kind":"file","path":".*stuck"\}: /);
  expect([existsSync(file("f").path), existsSync(path)]).toEqual([false, true]);

  expect(() => open()).toThrow("EEXIST");
  rmSync(file("stuck").path, { recursive: true });
  await Ledger.finish(join(directory, "ledgers"), head.uuid, log);
  expect(existsSync(path)).toBe(false);
  await open().release();
});

test("a line cut by a crash is no line; one that was never one is skipped and said", async () => {
  open().acquire(file("a"), () => {});
  appendFileSync(path, 'not json\n{"own":{"kind":"fi');
  const [found] = await load();
  expect(found?.ledger.all("file")).toEqual([file("a")]);
  expect(said).toEqual([`ledger ${head.uuid}: not readable: not json`]);
});

test("a ledger without a head owns nothing and goes", async () => {
  open();
  writeFileSync(path, '{"head":');
  expect(await load()).toEqual([]);
  expect(existsSync(path)).toBe(false);
});

test("a newer ledger is refused with a sentence", async () => {
  open();
  writeFileSync(path, JSON.stringify({ head: { ...head, version: LEDGER_VERSION + 1 } }) + "\n");
  await expect(load()).rejects.toThrow(
    `ledger ${head.uuid} has version ${LEDGER_VERSION + 1}, this cmld knows ${LEDGER_VERSION}: use the newer cmld`,
  );
});

test("no folder, no ledgers", async () => {
  expect(await load()).toEqual([]);
});

test("what a reboot keeps is the next start's, and until then in a file for whoever comes", async () => {
  const ledger = open();
  for (const name of ["a", "b"]) ledger.acquire(file(name), () => writeFileSync(file(name).path, ""));
  ledger.running({ pid: 7, startTime: 8, since: 9, state: "RUNNING" });
  expect(await ledger.release((r) => r.kind === "file" && r.path === file("b").path)).toBe(true);
  expect([existsSync(file("a").path), existsSync(file("b").path)]).toEqual([false, true]);
  const [left] = await load();
  expect([left?.running, left?.ledger.all("file")]).toEqual([undefined, [file("b")]]);
  ledger.renew({ ...head, guestosVersion: 4 });
  ledger.acquire(file("c"), () => writeFileSync(file("c").path, ""));
  const [next] = await load();
  expect([next?.ledger.head.guestosVersion, next?.ledger.all("file")]).toEqual([4, [file("b"), file("c")]]);
  expect(await ledger.release()).toBe(false);
  expect([existsSync(file("b").path), existsSync(file("c").path), existsSync(path)]).toEqual([
    false,
    false,
    false,
  ]);
});
