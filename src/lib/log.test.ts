import { expect, test } from "bun:test";
import { line, MESSAGE_MAX, Ration, timestamp } from "./log.ts";

const time = new Date(Date.UTC(2014, 4, 23, 19, 29, 11, 150));

test("a line looks as the original's", () => {
  expect(line(time, 42, "INFO", "web: RUNNING", 120)).toBe(
    "2014-05-23T21:29:11.150000+0200 [42] <INFO>  web: RUNNING",
  );
  expect(line(time, 42, "ERROR", "x", 0)).toBe("2014-05-23T19:29:11.150000+0000 [42] <ERROR> x");
  expect(timestamp(time, -210)).toBe("2014-05-23T15:59:11.150000-0330");
});

test("a message stays on its line and has an end", () => {
  expect(line(time, 1, "WARN", "a\nb\x1b[2J\u2028", 0)).toEndWith("<WARN>  a\\nb\\x1b[2J\\x2028");
  expect(line(time, 1, "WARN", "ä".repeat(2 * MESSAGE_MAX), 0).length).toBe(
    "2014-05-23T19:29:11.150000+0000 [1] <WARN>  ".length + MESSAGE_MAX,
  );
});

test("lines that others cause are rationed, and what is left out is counted", () => {
  let now = 0;
  const ration = new Ration(2, 1000, () => now);
  expect(["a", "b", "c", "d"].map((l) => ration.take(l))).toEqual(["a", "b", undefined, undefined]);
  now = 1500;
  expect(ration.take("e")).toBe("(2 lines before this one were left out) e");
  expect(ration.take("f")).toBeUndefined();
  now = 60_000;
  expect(["g", "h", "i"].map((l) => ration.take(l))).toEqual([
    "(1 lines before this one were left out) g",
    "h",
    undefined,
  ]);
});
