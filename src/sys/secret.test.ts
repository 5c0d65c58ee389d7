import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { inspect } from "node:util";
import { SECRET_MAX, Secret } from "./secret.ts";

test("a secret takes over, lends, compares, and is zero at its end", () => {
  const source = new Uint8Array([1, 2, 3]);
  let seen: Uint8Array;
  {
    using secret = Secret.take(source);
    using same = secret.copy();
    using other = Secret.random(3);
    expect(source).toEqual(new Uint8Array(3));
    seen = secret.lend((bytes) => bytes);
    expect(seen).toEqual(new Uint8Array([1, 2, 3]));
    expect(secret.equals(same)).toBe(true);
    expect(secret.equals(Secret.empty(2))).toBe(false);
    expect(other.length).toBe(3);
    expect(JSON.stringify({ secret })).toBe('{"secret":"[secret]"}');
    expect(inspect(secret)).not.toContain("1, 2");
  }
  expect(seen).toEqual(new Uint8Array(3));
});

test("after its end a secret is not lent; one that is too long wipes its source all the same", () => {
  const ended = Secret.random(8);
  ended[Symbol.dispose]();
  ended[Symbol.dispose]();
  expect(() => ended.lend(() => 0)).toThrow("a secret was used after its end");
  const long = new Uint8Array(SECRET_MAX + 1).fill(7);
  expect(() => Secret.take(long)).toThrow("at most 512");
  expect(long.every((b) => b === 0)).toBe(true);
});

test("a slot is used again, and there is an end of them", () => {
  using all = new DisposableStack();
  expect(() => {
    for (let i = 0; i < 1000; i++) all.use(Secret.empty(1));
  }).toThrow("secrets at a time");
  all.dispose();
  using again = Secret.empty(1);
  expect(again.length).toBe(1);
});

test("its memory is locked", () => {
  using _ = Secret.random(1);
  const locked = /^VmLck:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
  expect(Number(locked)).toBeGreaterThanOrEqual(256);
});
