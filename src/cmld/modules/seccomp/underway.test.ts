import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NOTIFICATION } from "../../../sys/notify.ts";
import { now } from "../../../sys/now.ts";
import { UnderWay } from "./underway.ts";

const folder = mkdtempSync(join(tmpdir(), "underway-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("what was received and not answered is found by the next one, and whether it is done", () => {
  const path = join(folder, "calls/one");
  const call = (n: number): Uint8Array => new Uint8Array(NOTIFICATION).fill(n);
  using first = new UnderWay(path, 3);
  expect(first.left()).toEqual([]);
  expect([1, 2, 3].map((n) => first.received(n, call(n)))).toEqual([0, 1, 2]);
  first.answered(1);
  now(first.done(2));

  using second = new UnderWay(path, 3);
  expect(second.left()).toEqual([
    { place: 0, listener: 1, bytes: call(1), done: false },
    { place: 2, listener: 3, bytes: call(3), done: true },
  ]);
  expect(second.received(4, call(4))).toBe(1); // the only place that is free
  second.answered(0);
  expect(second.left().map((f) => f.place)).toEqual([1, 2]);
});
