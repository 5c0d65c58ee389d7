import { expect, test } from "bun:test";
import { CHANGE, landlock, READ } from "./landlock.ts";
import { show } from "./op.ts";

const places = [
  { path: "/data", folder: true, may: CHANGE },
  { path: "/etc/hosts", folder: false, may: READ },
];
const printed = (abi: number, connects = false): string[] => landlock({ places, connects }, abi).map(show);

test("a fence, as system calls", () => {
  expect(printed(6)).toEqual([
    "landlock_create_ruleset({fs=0xffff, net=0x3, scope=0x3}, 24, 0) -> r0",
    'openat(-100, "/data", 2621440, 0) -> r1',
    "dup3(r1, 0, 0)",
    "close(r1)",
    "landlock_add_rule(r0, 1, {may=0x77be, at=0}, 0)",
    'openat(-100, "/etc/hosts", 2621440, 0) -> r1',
    "dup3(r1, 0, 0)",
    "close(r1)",
    "landlock_add_rule(r0, 1, {may=0x4, at=0}, 0)", // a file has no folder's rights
    "landlock_restrict_self(r0, 0)",
    "close(r0)",
  ]);
});

test("older kernels are asked for what they know", () => {
  const first = (abi: number, connects = false) => printed(abi, connects)[0];
  expect(first(1)).toBe("landlock_create_ruleset({fs=0x1fff, net=0x0, scope=0x0}, 8, 0) -> r0");
  expect(first(2)).toBe("landlock_create_ruleset({fs=0x3fff, net=0x0, scope=0x0}, 8, 0) -> r0");
  expect(first(4)).toBe("landlock_create_ruleset({fs=0x7fff, net=0x3, scope=0x0}, 16, 0) -> r0");
  expect(first(4, true)).toBe("landlock_create_ruleset({fs=0x7fff, net=0x1, scope=0x0}, 16, 0) -> r0");
  expect(first(99)).toBe("landlock_create_ruleset({fs=0xffff, net=0x3, scope=0x3}, 24, 0) -> r0");
  expect(printed(1)[4]).toBe("landlock_add_rule(r0, 1, {may=0x17be, at=0}, 0)");
});
