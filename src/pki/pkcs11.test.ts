// The PKCS #11 binding against SoftHSM: tokens by serial number, PINs, keys that stay inside, RFC 3394 wrapping, signing.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SOFTHSM, softhsm, useSofthsm } from "../../test/softhsm.ts";
import { Secret } from "../sys/secret.ts";
import { Pkcs11Error, Pkcs11Module, TokenGone, type TokenInfo } from "./pkcs11.ts";
import { WrongPassword } from "./pkcs12.ts";

let hsm: ReturnType<typeof softhsm>;
let module: Pkcs11Module;
let token: TokenInfo;
const secret = (text: string) => Secret.take(Buffer.from(text));

beforeAll(() => {
  hsm = softhsm("web", "123456");
  useSofthsm(hsm.config);
  module = Pkcs11Module.open(SOFTHSM);
  token = module.token((t) => t.label === "web", "web");
});
afterAll(() => {
  module[Symbol.dispose]();
  hsm[Symbol.dispose]();
});

test("tokens have serial numbers; one that is not there is said to be gone", () => {
  expect(token.serial).toMatch(/^[0-9a-f]{16}$/);
  expect(module.token((t) => t.serial === token.serial, "x").label).toBe("web");
  expect(() => module.token((t) => t.serial === "none", "none")).toThrow(TokenGone);
  expect(() => Pkcs11Module.open("/no/such.so")).toThrow("PKCS #11 module /no/such.so");
});

test("a PIN is right or wrong, and can be changed", () => {
  using session = module.session(token);
  using wrong = secret("000000");
  using right = secret("123456");
  using fresh = secret("abcdefgh\x01\xff");
  expect(() => session.login(wrong)).toThrow(WrongPassword);
  session.login(right);
  expect(() => session.setPin(wrong, fresh)).toThrow(WrongPassword);
  session.setPin(right, fresh);
  session.logout();
  expect(() => session.login(right)).toThrow(WrongPassword);
  session.login(fresh);
  session.setPin(fresh, right);
  session.logout();
});

test("a key of 96 bytes becomes 104 by RFC 3394, and only its key brings it back", () => {
  using session = module.session(token);
  using pin = secret("123456");
  session.login(pin);
  const kek = session.makeWrappingKey("cml one");
  const other = session.makeWrappingKey("cml two");
  expect(session.find({ class: "secret", label: "cml one" })).toEqual([kek]);
  expect(session.find({ class: "secret", label: "none" })).toEqual([]);
  using key = Secret.random(96);
  const wrapped = session.wrap(kek, key);
  expect(wrapped.length).toBe(104);
  using back = Secret.take(session.unwrap(kek, wrapped));
  expect(back.equals(key)).toBe(true);
  expect(() => session.unwrap(other, wrapped)).toThrow(Pkcs11Error);
  for (const at of [0, 50, 103]) {
    const changed = wrapped.slice();
    changed[at]! ^= 1;
    expect(() => session.unwrap(kek, changed)).toThrow(Pkcs11Error);
  }
  expect(() => session.attribute(kek, 0x11)).toThrow("C_GetAttributeValue"); // it stays inside
  session.destroy(other);
  expect(session.find({ class: "secret" })).toEqual([kek]);
  session.destroy(kek);
  session.logout();
});

test("what it wraps, openssl unwraps: the original's 104 bytes", () => {
  const kek = Buffer.from(randomBytes(16).toString("hex")); // softhsm2-util stumbles over some bytes
  const file = join(hsm.folder, "kek");
  writeFileSync(file, kek);
  const run = (argv: string[], stdin?: Uint8Array) => {
    const env = { ...process.env, SOFTHSM2_CONF: hsm.config };
    const ran = Bun.spawnSync(argv, { env, ...(stdin && { stdin }) });
    if (ran.exitCode !== 0) throw new Error(`${argv[0]}: ${ran.stderr}${ran.stdout}`);
    return ran.stdout;
  };
  run([
    "softhsm2-util",
    "--import",
    file,
    "--aes",
    "--token",
    "web",
    "--label",
    "known",
    "--id",
    "01",
    "--pin",
    "123456",
  ]);
  using session = module.session(token);
  using pin = secret("123456");
  session.login(pin);
  const [known] = session.find({ class: "secret", label: "known" });
  using key = Secret.random(96);
  const wrapped = session.wrap(known!, key);
  const enc = [
    "openssl",
    "enc",
    "-d",
    "-id-aes256-wrap",
    "-iv",
    "A6A6A6A6A6A6A6A6",
    "-K",
    kek.toString("hex"),
  ];
  using theirs = Secret.take(run(enc, wrapped));
  expect(theirs.equals(key)).toBe(true);
  session.destroy(known!);
  session.logout();
});
