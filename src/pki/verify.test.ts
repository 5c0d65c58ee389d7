// What the original's tools signed verifies, and nothing that differs from it by a byte.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { Refused, type Trust, verify } from "./verify.ts";

const data = (name: string) => readFileSync(`test/data/signing/${name}`);
const ROOT = { name: "ssig_rootca.cert", pem: data("ssig_rootca.cert") };
const trust: Trust = { software: [ROOT], local: [], revocation: [] };
const now = { ignoreTime: false };
const SIGNER = "CN=GyroidOS CML Signing Certificate,OU=Development,O=OSS Release,C=DE";

/** The line of a refusal, "certificate: …" or "signature: …". */
function refusal(of: () => unknown): string {
  try {
    of();
  } catch (e) {
    if (e instanceof Refused) return `${e.part}: ${e.message}`;
    throw e;
  }
  return "accepted";
}

for (const name of ["plainos-1", "dmos-1"])
  test(`the original's ${name} verifies`, () => {
    const [conf, sig, cert] = [data(`${name}.conf`), data(`${name}.sig`), data(`${name}.cert`)];
    const root = "CN=GyroidOS Software Signing Root CA,OU=Development,O=OSS Release,C=DE";
    expect(verify(conf, sig, cert, trust, now)).toEqual({ level: "SIGNED", signer: SIGNER, root });
    const local: Trust = { software: [], local: [ROOT], revocation: [] };
    expect(verify(conf, sig, cert, local, now).level).toBe("LOCALLY_SIGNED");
  });

test("every byte counts", () => {
  const [conf, sig, cert] = [data("dmos-1.conf"), data("dmos-1.sig"), data("dmos-1.cert")];
  const flipped = (bytes: Uint8Array, at: number) => {
    const copy = Uint8Array.from(bytes);
    copy[at]! ^= 1;
    return copy;
  };
  const mismatch = `signature: signature by ${SIGNER}: it does not match the data`;
  for (let at = 0; at < conf.length; at += 97)
    expect(refusal(() => verify(flipped(conf, at), sig, cert, trust, now))).toBe(mismatch);
  for (let at = 0; at < sig.length; at += 61)
    expect(refusal(() => verify(conf, flipped(sig, at), cert, trust, now))).toBe(mismatch);
  expect(refusal(() => verify(conf, sig.subarray(0, 511), cert, trust, now))).toBe(mismatch);
});

test("a refusal names the certificate and the check", () => {
  const [conf, sig, cert] = [data("dmos-1.conf"), data("dmos-1.sig"), data("dmos-1.cert")];
  const end = "-----END CERTIFICATE-----\n";
  const [leaf, sub] = cert.toString().split(end) as [string, string];
  const pem = (...parts: string[]) => Buffer.from(parts.map((p) => p + end).join(""));
  expect(refusal(() => verify(conf, sig, pem(leaf), trust, now))).toBe(
    `certificate: certificate 1 of the chain (${SIGNER}): unable to get local issuer certificate`,
  );
  expect(refusal(() => verify(conf, sig, pem(sub, leaf), trust, now))).toBe(
    "certificate: signer CN=GyroidOS CML Signing Sub CA,OU=Development,O=OSS Release,C=DE: its key usage does not include digitalSignature",
  );
  expect(refusal(() => verify(conf, sig, Buffer.from(""), trust, now))).toBe(
    "certificate: signer's certificates: no certificate in it",
  );
  expect(refusal(() => verify(conf, sig, cert.subarray(0, 3000), trust, now))).toStartWith(
    "certificate: signer's certificates: certificate 2 cannot be read: ",
  );
  expect(refusal(() => verify(conf, sig, cert, { ...trust, software: [] }, now))).toBe(
    "certificate: this device has no root certificate to compare with",
  );
});
