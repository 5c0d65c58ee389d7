import { expect, test } from "bun:test";
import { judgeDevice } from "../../../test/extended.ts";
import {
  accessOf,
  amend,
  BadRule,
  claimsOf,
  conflict,
  covers,
  DEFAULT,
  type Device,
  type DeviceRule,
  type Holder,
  intersects,
  MKNOD,
  parseDeviceAccess,
  parseDeviceRule,
  program,
  READ,
  ruleOf,
  STATEMENTS_MAX,
  type Statement,
  showRule,
  WRITE,
  withoutHotplug,
} from "./rules.ts";

const rule = parseDeviceRule;
const allow = (text: string, by: Statement["by"] = "control"): Statement => ({
  allow: true,
  rule: rule(text),
  by,
});
const deny = (text: string): Statement => ({ allow: false, rule: rule(text), by: "control" });
const listOf = (...statements: Statement[]): Statement[] => statements.reduce<Statement[]>(amend, []);
const device = (text: string): Device => rule(text) as Device;
const RW = READ | WRITE;

test("a rule is read and written, or refused with the reason", () => {
  expect(rule("c 4:1 rwm")).toEqual({ kind: "c", major: 4, minor: 1, access: 7 });
  expect(rule("b 8:* r")).toEqual({ kind: "b", major: 8, minor: undefined, access: READ });
  expect(rule("c 4:1")).toEqual({ kind: "c", major: 4, minor: 1, access: 7 });
  expect(rule("a 4:1 wm").access).toBe(WRITE | MKNOD);
  for (const text of ["c 4:1 rwm", "b 8:* r", "a 4:1 m", "c 4095:1048575 w"])
    expect(showRule(rule(text))).toBe(text);
  for (const bad of [
    "",
    "c",
    "c 1",
    "d 1:1",
    "c 1:8 -",
    "c 1:1 rwmr",
    "c 1:1 x",
    " c 1:1",
    "c -1:1",
    "c 1:1 r\n",
  ])
    expect(() => rule(bad)).toThrow("is not like");
  for (const everything of ["a", "a *:* rwm", "c *:* rwm", "b *:0 r", "a *:*"])
    expect(() => rule(everything)).toThrow("names every device there is");
  expect(() => rule("c 4096:1")).toThrow('device rule "c 4096:1" says 4096, more than 4095');
  expect(() => rule("c 1:1048576")).toThrow("more than 1048575");
  expect(() => rule(`c ${"9".repeat(100)}:1`)).toThrow(BadRule);
});

test("dev_access: with letters it allows, without it denies", () => {
  expect(parseDeviceAccess("c 4:1 r")).toEqual({ rule: rule("c 4:1 r"), allow: true });
  expect(parseDeviceAccess("c 4:1")).toEqual({ rule: rule("c 4:1 rwm"), allow: false });
  expect(() => parseDeviceAccess("c 1:8 -")).toThrow("is not like");
});

test("a rule covers another if type, numbers and access include the other's", () => {
  const cases: [string, string, boolean, boolean][] = [
    ["c 4:1 rwm", "c 4:1 r", true, true],
    ["c 4:1 r", "c 4:1 rw", false, true],
    ["c 4:* rwm", "c 4:1 rwm", true, true],
    ["c 4:1 rwm", "c 4:* rwm", false, true],
    ["a 4:1 rwm", "b 4:1 m", true, true],
    ["b 4:1 rwm", "a 4:1 m", false, true],
    ["b 4:1 rwm", "c 4:1 rwm", false, false],
    ["c 4:1 rwm", "c 5:1 rwm", false, false],
    ["c 4:1 rwm", "c 4:2 rwm", false, false],
    ["c 4:1 r", "c 4:1 w", false, true],
  ];
  for (const [a, b, isCovered, isShared] of cases)
    expect([
      a,
      b,
      covers(rule(a), rule(b)),
      intersects(rule(a), rule(b)),
      intersects(rule(b), rule(a)),
    ]).toEqual([a, b, isCovered, isShared, isShared]);
});

test("what was said last counts, for each kind of access", () => {
  const one = device("c 4:1");
  expect(accessOf(listOf(allow("c 4:1 r"), allow("c 4:1 w")), one)).toBe(RW);
  expect(accessOf(listOf(allow("c 4:* rwm"), deny("c 4:1")), one)).toBe(0);
  expect(accessOf(listOf(allow("c 4:* rwm"), deny("c 4:1")), device("c 4:2"))).toBe(7);
  expect(accessOf(listOf(allow("c 4:* rwm"), deny("c 4:1"), allow("c 4:1 r")), one)).toBe(READ);
  expect(accessOf(listOf(allow("c 4:1 rwm"), deny("c 4:*"), allow("c 4:1 r")), one)).toBe(READ);
  expect(accessOf(listOf(allow("a 4:1 rwm")), device("b 4:1"))).toBe(7);
  expect(accessOf(DEFAULT, device("c 5:1"))).toBe(0);
  expect(accessOf(DEFAULT, device("c 136:77"))).toBe(7);
});

test("a list does not grow by what has no say", () => {
  expect(listOf(allow("c 4:1 rwm"), deny("c 4:1"))).toEqual([]);
  expect(listOf(deny("c 4:1"))).toEqual([]);
  expect(listOf(allow("c 4:* rwm"), deny("c 4:1"), allow("c 4:1 rwm"))).toHaveLength(2);
  expect(listOf(allow("c 4:1 r"), allow("c 4:1 rw"))).toEqual([allow("c 4:1 rw")]);
  const many = Array.from({ length: STATEMENTS_MAX }, (_, i) => allow(`c 4:${i} rwm`));
  const full = listOf(...many);
  expect(full).toHaveLength(STATEMENTS_MAX);
  expect(() => amend(full, allow("c 5:1 rwm"))).toThrow("more than 1024");
});

test("what the hot-plug takes back leaves what others have granted", () => {
  const list = listOf(allow("c 189:5 r", "configuration"), allow("c 189:5 rwm", "hotplug"));
  expect(accessOf(list, device("c 189:5"))).toBe(7);
  expect(withoutHotplug(list, ruleOf(device("c 189:5")))).toEqual([allow("c 189:5 r", "configuration")]);
});

test("the program says what the list says", () => {
  let seed = 7; // a fixed linear congruence: the same lists every time
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % n;
  };
  const any = (): DeviceRule => ({
    kind: (["a", "b", "c"] as const)[random(3)]!,
    major: random(3),
    minor: random(3) === 0 ? undefined : random(3),
    access: 1 + random(7),
  });
  for (let round = 0; round < 100; round++) {
    const list = Array.from(
      { length: random(12) },
      (): Statement => ({ allow: random(3) > 0, rule: any(), by: "control" }),
    );
    // Pruned or not, it says the same.
    const pruned = list.reduce<Statement[]>(amend, []);
    const [code, prunedCode] = [program(list), program(pruned)];
    for (const kind of ["b", "c"] as const)
      for (let major = 0; major < 3; major++)
        for (let minor = 0; minor < 3; minor++) {
          const granted = accessOf(list, { kind, major, minor });
          expect(accessOf(pruned, { kind, major, minor })).toBe(granted);
          const said = Array.from({ length: 8 }, (_, access) =>
            [code, prunedCode].map((c) =>
              judgeDevice(c, { type: kind === "b" ? 1 : 2, access, major, minor }),
            ),
          );
          const want = said.map((_, access) => (access !== 0 && (access & ~granted) === 0 ? 1 : 0));
          expect(said).toEqual(want.map((w) => [w, w]));
        }
  }
});

const holder = (name: string, allowed: string[], assigned: string[]): Holder => ({
  uuid: name,
  name,
  created: 0,
  claims: claimsOf({ allow_dev: allowed, assign_dev: assigned }),
});

test("an assigned device is nobody else's, and the holder is named", () => {
  const others = [holder("web", ["c 4:1 rwm"], ["c 189:*"]), holder("db", ["c 4:1 rwm"], [])];
  const claim = (text: string, assigned: boolean) => ({ rule: rule(text), assigned });
  expect(conflict("x", claim("c 4:1 r", false), others)).toBeUndefined(); // allowed to several
  expect(conflict("x", claim("c 4:1 r", true), others)).toBe(
    'device rule "c 4:1 r": web is allowed "c 4:1 rwm"',
  );
  expect(conflict("x", claim("c 189:3 r", false), others)).toBe(
    'device rule "c 189:3 r": web is assigned "c 189:* rwm"',
  );
  expect(conflict("x", claim("a 189:* m", true), others)).toContain("web is assigned");
  expect(conflict("web", claim("c 189:3 r", true), others)).toBeUndefined(); // its own
  expect(conflict("web", claim("c 4:1 r", true), others)).toContain("db is allowed");
  expect(conflict("x", claim("c 1:3 rwm", true), others)).toBeUndefined(); // the default list is nobody's
});
