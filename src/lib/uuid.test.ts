import { expect, test } from "bun:test";
import { isUuid, newUuid, parseUuid } from "./uuid.ts";

test("parseUuid() takes the original's forms and gives the canonical one", () => {
  const u = "3bcdeac9-fd88-4d04-b241-f84b85fe1161";
  expect(parseUuid(u)).toBe(u);
  expect(parseUuid(u.toUpperCase())).toBe(u);
  expect(parseUuid(u.replaceAll("-", ""))).toBe(u);
  expect(parseUuid(`${u.replaceAll("-", "")} and more`)).toBe(u);
  expect(parseUuid(`${u}x`)).toBeUndefined();
  expect(parseUuid(u.slice(1))).toBeUndefined();
  expect(parseUuid("web")).toBeUndefined();
  expect(isUuid(u.toUpperCase())).toBeFalse();
  expect(isUuid(newUuid())).toBeTrue();
});
