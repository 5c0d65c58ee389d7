// Descriptors that are watched: what is told once is told once.
import { expect, test } from "bun:test";
import { read, writeText } from "./calls.ts";
import { pipe } from "./fd.ts";
import { mem } from "./mem.ts";
import { now } from "./now.ts";
import { EPOLLIN, readable, watch } from "./poll.ts";

test("pausing and resuming while an event is on its way does not tell it twice", async () => {
  const { read: from, write: to } = pipe();
  const other = pipe();
  const told: number[] = [];
  using w = watch(from, EPOLLIN, () => told.push(Number(now(read(from.n, mem(1))))));
  now(writeText(to.n, "x"));
  for (let turn = 0; turn < 3; turn++) {
    Bun.sleepSync(20); // the event loop stands still, and the event waits in front of it
    w.pause();
    w.resume();
  }
  const after = readable(other.read);
  now(writeText(other.write.n, "y"));
  await after; // told behind all that was told before
  now(writeText(to.n, "z")); // a read that had nothing to read would have waited for this
  while (told.length < 2) await Bun.sleep(1); // nothing tells
  expect(told).toEqual([1, 1]);
  for (const end of [from, to, other.read, other.write]) end.close();
});
