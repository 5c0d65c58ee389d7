// The original's tokens open here, ours open with the openssl command line, and the reverse.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Secret } from "../sys/secret.ts";
import { certify } from "./issue.ts";
import { PrivateKey } from "./key.ts";
import { ITERATIONS, makePkcs12, openPkcs12, PKCS12_MAX, WrongPassword } from "./pkcs12.ts";

const dir = mkdtempSync(join(tmpdir(), "pkcs12-"));
afterAll(() => rmSync(dir, { recursive: true }));
const at = (name: string) => join(dir, name);
const secret = (text: string) => Secret.take(Buffer.from(text));
const golden = (uuid: string) => readFileSync(`test/data/tokens/${uuid}.p12`);

function openssl(...args: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(["openssl", ...args]);
  if (exitCode !== 0) throw new Error(`openssl ${args[0]}: ${stderr}`);
  return stdout.toString() + stderr.toString();
}

const [SOFT, EMPTY, FRESH] = [
  "f815386c-25b6-4a09-9ee4-4b65b977f167",
  "5dd56a85-4647-46ce-a1b9-4e5c78015c11",
  "bd8f2102-ab15-4e6c-8fce-8fa4451d3730",
] as const;

test("the original's tokens open with their PINs, empty ones among them, and with no other", () => {
  for (const [uuid, pin] of [
    [SOFT, "newpin1"],
    [EMPTY, ""],
    [FRESH, "trustme"],
  ] as const) {
    using right = secret(pin);
    const { key, certificate, iterations } = openPkcs12(uuid, golden(uuid), right);
    using _ = key;
    expect(iterations).toBe(2048);
    expect(Buffer.from(certificate).toString()).toStartWith("-----BEGIN CERTIFICATE-----");
    for (const wrong of [`${pin}x`, "Newpin1", "x".repeat(256)]) {
      using pass = secret(wrong);
      expect(() => openPkcs12(uuid, golden(uuid), pass)).toThrow(WrongPassword);
    }
  }
});

test("ours has the promised form, opens with openssl, and here only with its PIN", () => {
  using key = PrivateKey.generate("rsa:2048");
  const certificate = certify({ subject: [["CN", "x"]], key, days: 1, extensions: [] });
  using pin = secret("gr\u00fc\u00dfe");
  const made = makePkcs12("gyroidos test user", key, certificate, pin);
  writeFileSync(at("ours.p12"), made);
  const pass = ["-passin", "pass:gr\u00fc\u00dfe"];
  const info = openssl("pkcs12", "-in", at("ours.p12"), ...pass, "-info", "-noout");
  expect(info).toContain(`MAC: sha256, Iteration ${ITERATIONS}`);
  expect(info).toContain(`PBES2, PBKDF2, AES-256-CBC, Iteration ${ITERATIONS}, PRF hmacWithSHA256`);
  const all = openssl("pkcs12", "-in", at("ours.p12"), ...pass, "-nodes");
  expect(all).toContain("gyroidos test user");
  expect(all).toContain(Buffer.from(key.pem()).toString());
  const back = openPkcs12("ours", made, pin);
  using _ = back.key;
  expect(back.iterations).toBe(ITERATIONS);
  expect(Buffer.from(back.certificate)).toEqual(Buffer.from(certificate));
  using wrong = secret("grusse");
  expect(() => openPkcs12("ours", made, wrong)).toThrow(WrongPassword);
}, 60_000);

test("what openssl writes opens here", () => {
  openssl(
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    at("k"),
    "-out",
    at("c"),
    "-subj",
    "/CN=x",
  );
  const from = ["pkcs12", "-export", "-inkey", at("k"), "-in", at("c"), "-passout", "pass:abc", "-out"];
  openssl(...from, at("theirs.p12"), "-iter", "3000");
  openssl(...from, at("many.p12"), "-macalg", "sha256", "-iter", "1");
  using pin = secret("abc");
  const opened = openPkcs12("theirs", readFileSync(at("theirs.p12")), pin);
  using key = opened.key;
  expect(opened.iterations).toBe(3000);
  expect(Buffer.from(key.pem()).toString()).toBe(readFileSync(at("k"), "utf8"));
  const one = openPkcs12("one", readFileSync(at("many.p12")), pin);
  one.key[Symbol.dispose]();
  expect(one.iterations).toBe(1);
}, 60_000);

test("what is no token is refused with a reason, quickly", () => {
  using pin = secret("trustme");
  const file = golden(FRESH);
  for (const [bytes, why] of [
    [new Uint8Array(), "not PKCS #12"],
    [file.subarray(0, 1000), "not PKCS #12"],
    [new Uint8Array(PKCS12_MAX + 1), "at most"],
  ] as const)
    expect(() => openPkcs12("x", bytes, pin)).toThrow(
      expect.objectContaining({ cause: expect.objectContaining({ message: expect.stringContaining(why) }) }),
    );
  using nul = secret("a\0b");
  expect(() => openPkcs12("x", file, nul)).toThrow("x");
});
