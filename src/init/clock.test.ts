import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mendClock, newest, renewSeed } from "./clock.ts";

const folder = mkdtempSync(join(tmpdir(), "clock-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("newest() looks below, too", () => {
  mkdirSync(join(folder, "a/b"), { recursive: true });
  writeFileSync(join(folder, "a/b/file"), "");
  utimesSync(join(folder, "a/b/file"), 4_000_000_000, 4_000_000_000);
  expect(newest(folder)).toBe(4_000_000_000_000);
});

test("mendClock() leaves a possible time alone", () => {
  expect(mendClock(folder, Date.parse("2031-05-05"))).toBeUndefined();
});

test("renewSeed() writes 512 private bytes, others each time", () => {
  expect(renewSeed(folder)).toBe(true);
  const first = readFileSync(join(folder, "random-seed"));
  expect(first.length).toBe(512);
  expect(statSync(join(folder, "random-seed")).mode & 0o777).toBe(0o600);
  renewSeed(folder);
  expect(readFileSync(join(folder, "random-seed")).equals(first)).toBe(false);
});
