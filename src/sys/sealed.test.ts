// A key at rest: what opens it, and what does not.
import { expect, test } from "bun:test";
import { isSealed, machineFacts, protects, seal, unseal } from "./sealed.ts";
import { Secret } from "./secret.ts";

const here = ["4c4c4544-0042", "SN-1", undefined, undefined, undefined];
const opens = (bytes: Uint8Array, name: string, facts = here) => {
  using key = unseal(bytes, name, facts);
  return key.lend((b) => Buffer.from(b).toString("hex"));
};

test("a sealed key opens on the same machine, under the same name, and is nowhere in its file", () => {
  using key = Secret.random(96);
  const hex = key.lend((b) => Buffer.from(b).toString("hex"));
  const file = seal(key, "web", here);
  expect([file.length, isSealed(file), opens(file, "web")]).toEqual([54 + 96 + 16, true, hex]);
  expect(Buffer.from(file).toString("hex")).not.toContain(hex.slice(0, 32));
  expect(Buffer.from(seal(key, "web", here)).equals(file)).toBe(false);
  expect(opens(file, "web", [...here.slice(0, 2), "a board that came later", undefined, undefined])).toBe(
    hex,
  );
});

test("not on another machine, not under another name, not changed", () => {
  using key = Secret.random(32);
  const file = seal(key, "web", here);
  expect(() => opens(file, "web", ["4c4c4544-0043", "SN-1"])).toThrow("the key of web does not open");
  expect(() => opens(file, "web", [undefined, "SN-1"])).toThrow(
    "this machine has no /sys/class/dmi/id/product_uuid",
  );
  expect(() => opens(file, "mail")).toThrow("the key of mail does not open");
  for (let at = 0; at < file.length; at++) {
    const bad = Uint8Array.from(file);
    bad[at]! ^= 1;
    expect(() => opens(bad, "web")).toThrow("the key of web");
  }
  for (const length of [0, 8, 53, 69])
    expect(() => opens(file.subarray(0, length), "web")).toThrow("damaged");
});

test("a machine that says nothing of itself protects nothing, and it is known", () => {
  expect(protects([undefined, undefined])).toBe(false);
  expect(protects(here)).toBe(true);
  expect(machineFacts().length).toBe(5);
});
