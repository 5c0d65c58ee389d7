// A clock that is moved, and a server of the time that is not there.
import { expect, test } from "bun:test";
import { Clock } from "./clock.ts";

function world(offset: number | Error, server = "ntp.lan") {
  const said: string[] = [];
  const records: unknown[][] = [];
  let moved = 0;
  let asked = 0;
  const move = (seconds: number): void => {
    moved += seconds;
  };
  const clock = new Clock({
    server,
    async ask() {
      asked++;
      if (offset instanceof Error) throw offset;
      return offset;
    },
    audit: { record: (...args) => void records.push(args) },
    warn: (line) => void said.push(line),
    started: () => 1_000_000 + moved,
  });
  return { clock, said, records, asked: () => asked, move };
}

test("nobody is asked while the clock goes on, or without a server", async () => {
  const w = world(9999);
  await w.clock.look();
  w.move(59);
  await w.clock.look();
  expect(w.asked()).toBe(0);
  const without = world(9999, "");
  without.move(7200);
  await without.clock.look();
  expect(without.asked()).toBe(0);
  w.clock[Symbol.dispose]();
});

test("a clock that was moved is compared once; within an hour is fine", async () => {
  const w = world(-3000);
  w.move(3000);
  await Promise.all([w.clock.look(), w.clock.look()]);
  await w.clock.look();
  expect([w.asked(), w.said, w.records]).toEqual([1, [], []]);
  w.clock[Symbol.dispose]();
});

test("more than an hour off is said and recorded", async () => {
  const w = world(7200);
  w.move(-7200);
  await w.clock.look();
  expect(w.said).toEqual(["the clock is -7200 s ahead of ntp.lan, and was moved by -7200 s"]);
  expect(w.records).toEqual([["FSA", "GENERIC", "time-out-of-trusted-range", undefined, { offset: 7200 }]]);
  w.clock[Symbol.dispose]();
});

test("a server that does not answer is asked again when it is time", async () => {
  const w = world(new Error("no answer"));
  w.move(100);
  await w.clock.look();
  await w.clock.look();
  expect(w.asked()).toBe(1);
  await w.clock.look(true);
  expect([w.asked(), w.said[1]]).toEqual([2, "comparing the time with ntp.lan: no answer"]);
  w.clock[Symbol.dispose]();
});
