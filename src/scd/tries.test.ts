import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LockedTillReboot, Tries } from "./tries.ts";

const BOOTS = ["0a4e8c1c-0000-4000-8000-000000000001", "0a4e8c1c-0000-4000-8000-000000000002"] as const;
let dir: string;
let at: { boot: string; seconds: number };
let tries: Tries;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "tries-"));
  at = { boot: BOOTS[0], seconds: 100 };
  tries = new Tries(join(dir, "x.tries"), () => at);
});
afterEach(() => rmSync(dir, { recursive: true }));

test("three wrong ones lock until the next boot, whoever counts", async () => {
  for (let i = 0; i < 3; i++) await tries.begin();
  expect(await tries.left()).toBe("locked until the next boot");
  expect(tries.begin()).rejects.toThrow(LockedTillReboot);
  const another = new Tries(tries.file, () => at);
  expect(another.begin()).rejects.toThrow(LockedTillReboot);
});

test("success forgets them", async () => {
  await tries.begin();
  await tries.begin();
  await tries.succeeded();
  expect(existsSync(tries.file)).toBe(false);
  for (let i = 0; i < 3; i++) await tries.begin();
});

test("a try that told nothing does not count, and forgets none", async () => {
  await tries.begin();
  await tries.undone();
  expect(existsSync(tries.file)).toBe(false);
  await tries.begin();
  await tries.begin();
  await tries.undone();
  expect(await tries.left()).toBe("2 more in this boot");
});

test("after a boot: one at once, then each wait is twice the last, at most an hour", async () => {
  for (let i = 0; i < 3; i++) await tries.begin();
  at = { boot: BOOTS[1], seconds: 5 };
  await tries.begin();
  expect(tries.begin()).rejects.toThrow("4 wrong PINs: the next is taken in 16 s");
  at = { boot: BOOTS[1], seconds: 20 };
  expect(tries.begin()).rejects.toThrow("taken in 1 s");
  at = { boot: BOOTS[1], seconds: 21 };
  await tries.begin();
  expect(tries.begin()).rejects.toThrow("5 wrong PINs: the next is taken in 32 s");
  at = { boot: BOOTS[1], seconds: 60 };
  await tries.begin();
  expect(tries.begin()).rejects.toThrow(LockedTillReboot);
  for (let i = 0; i < 4; i++) {
    at = { boot: BOOTS[i % 2]!, seconds: 60 };
    await tries.begin();
  }
  const { seconds } = at;
  writeFileSync(tries.file, readFileSync(tries.file, "utf8").replace(/all \d+/, "all 40"));
  expect(tries.begin()).rejects.toThrow("taken in 3600 s");
  at = { ...at, seconds: seconds + 3600 };
  await tries.begin();
});

test("a file that is not ours, or is of the future, counts as locked, in this boot and in no other", async () => {
  for (const text of ["nonsense", "", `boot ${BOOTS[0]}\nhere 1\nall 2\nlast 999999999999\n`]) {
    at = { boot: BOOTS[0], seconds: 100 };
    writeFileSync(tries.file, text);
    await expect(tries.begin()).rejects.toThrow(LockedTillReboot);
    at = { boot: BOOTS[1], seconds: 5 };
    await tries.begin();
    await expect(tries.begin()).rejects.toThrow("4 wrong PINs: the next is taken in 16 s");
  }
});
