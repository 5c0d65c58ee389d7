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
  /** As the kernel writes it. */
  const from = (n: number) => (into: Uint8Array) => into.fill(n).length > 0;
  using first = new UnderWay(path, 3);
  expect(first.left()).toEqual([]);
  expect(first.received(9, () => false)).toBeUndefined(); // its caller is gone
  expect([1, 2, 3].map((n) => first.received(n, from(n))?.place)).toEqual([0, 1, 2]);
  first.answered(1);
  now(first.done(2));

  using second = new UnderWay(path, 3);
  expect(second.left()).toEqual([
    { place: 0, listener: 1, bytes: call(1), done: false },
    { place: 2, listener: 3, bytes: call(3), done: true },
  ]);
  // The only place that is free; and there it is noted before anybody has heard of it.
  const third = second.received(4, (into) => {
    into.set(call(4));
    using later = new UnderWay(path, 3);
    expect(later.left()[1]).toEqual({ place: 1, listener: 4, bytes: call(4), done: false });
    return true;
  });
  expect(third).toEqual({ place: 1, bytes: call(4) });
  second.answered(0);
  expect(second.left().map((f) => f.place)).toEqual([1, 2]);
});
