import { expect, test } from "bun:test";
import { openProcess, startTime } from "./process.ts";

test("openProcess() opens exactly the process that started then", () => {
  const began = startTime(process.pid)!;
  using self = openProcess(process.pid, began)!;
  expect(self.n).toBeGreaterThan(2);
  expect(openProcess(process.pid, began + 1)).toBeUndefined();
});

test("a process that is not there has no start time", () => {
  const PID_MAX = 4_194_304; // linux/threads.h: pids are below it
  expect([startTime(PID_MAX), openProcess(PID_MAX, 1)]).toEqual([undefined, undefined]);
});
