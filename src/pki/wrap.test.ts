// Wrapped keys: the original's open here and give what the openssl command line gives; ours open with it.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Secret } from "../sys/secret.ts";
import { openPkcs12 } from "./pkcs12.ts";
import { Corrupt, macOf, unwrap, wrap } from "./wrap.ts";

const SOFT = "f815386c-25b6-4a09-9ee4-4b65b977f167";
const EMPTY = "5dd56a85-4647-46ce-a1b9-4e5c78015c11";
const dir = mkdtempSync(join(tmpdir(), "wrap-"));
afterAll(() => rmSync(dir, { recursive: true }));
const at = (name: string) => join(dir, name);

function openssl(...args: string[]): Buffer {
  const { exitCode, stdout, stderr } = Bun.spawnSync(["openssl", ...args]);
  if (exitCode !== 0) throw new Error(`openssl ${args[0]}: ${stderr}`);
  return stdout;
}

/** By the openssl command line alone. */
function theirs(uuid: string, pin: string, wrapped: Uint8Array): string {
  const key = at(`${uuid}.pem`);
  openssl(
    "pkcs12",
    "-in",
    `test/data/tokens/${uuid}.p12`,
    "-passin",
    `pass:${pin}`,
    "-nodes",
    "-nocerts",
    "-out",
    key,
  );
  writeFileSync(at("session"), wrapped.subarray(24, 24 + 512));
  writeFileSync(at("data"), wrapped.subarray(24 + 512));
  const session = openssl("pkeyutl", "-decrypt", "-inkey", key, "-in", at("session"));
  const iv = Buffer.from(wrapped.subarray(8, 24)).toString("hex");
  return openssl(
    "enc",
    "-d",
    "-aes-256-cbc",
    "-K",
    session.toString("hex"),
    "-iv",
    iv,
    "-in",
    at("data"),
  ).toString("hex");
}

const hex = (secret: Secret) => secret.lend((bytes) => Buffer.from(bytes).toString("hex"));

function tokenOf(uuid: string, pin: string) {
  using secret = Secret.take(Buffer.from(pin));
  return openPkcs12(uuid, readFileSync(`test/data/tokens/${uuid}.p12`), secret).key;
}

for (const [uuid, pin] of [
  [SOFT, "newpin1"],
  [EMPTY, ""],
] as const)
  test(`a key that the original wrapped, PIN "${pin}": as openssl has it`, () => {
    using token = tokenOf(uuid, pin);
    const wrapped = readFileSync(`test/data/tokens/${uuid}.key`);
    using key = unwrap(token, wrapped);
    expect(key.length).toBe(96);
    expect(hex(key)).toBe(theirs(uuid, pin, wrapped));
  });

test("ours is the original's 648 bytes, and opens here and with openssl", () => {
  using token = tokenOf(SOFT, "newpin1");
  using key = Secret.random(96);
  const wrapped = wrap(token, key);
  expect(wrapped.length).toBe(648);
  expect(Buffer.from(wrapped.subarray(0, 8)).toString("hex")).toBe("0002000070000000");
  expect(theirs(SOFT, "newpin1", wrapped)).toBe(hex(key));
  using back = unwrap(token, wrapped);
  expect(back.equals(key)).toBe(true);
  using other = tokenOf(EMPTY, "");
  expect(() => unwrap(other, wrapped)).toThrow(Corrupt);
});

test("every length that lies, and every changed byte, is refused or noticed by its MAC", () => {
  using token = tokenOf(SOFT, "newpin1");
  using key = Secret.random(96);
  const wrapped = wrap(token, key);
  const mac = macOf(token, SOFT, wrapped);
  expect(mac.length).toBe(32);
  expect(macOf(token, SOFT, wrapped)).toEqual(mac);
  expect(macOf(token, EMPTY, wrapped)).not.toEqual(mac);
  for (const length of [0, 7, 8, 24, 536, 647])
    expect(() => unwrap(token, wrapped.subarray(0, length))).toThrow(Corrupt);
  expect(() => unwrap(token, new Uint8Array(5000))).toThrow(Corrupt);
  for (let i = 0; i < wrapped.length; i += 37) {
    const changed = wrapped.slice();
    changed[i]! ^= 1;
    expect(macOf(token, SOFT, changed)).not.toEqual(mac);
    try {
      using other = unwrap(token, changed);
      expect(other.equals(key)).toBe(false);
    } catch (e) {
      expect(e).toBeInstanceOf(Corrupt);
    }
  }
}, 60_000);
