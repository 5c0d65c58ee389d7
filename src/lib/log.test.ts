import { expect, test } from "bun:test";
import { line, MESSAGE_MAX, timestamp } from "./log.ts";

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
