// Signatures and certificates as nobody would make them: every answer is yes or a refusal in one line, quickly, and
// libcrypto keeps nothing of it. The seed is fixed (test/chance.ts).
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Authority, CA } from "../../test/ca.ts";
import { broken, Chance, SEED, spent } from "../../test/chance.ts";
import { counts } from "../../test/counts.ts";
import { PrivateKey } from "./key.ts";
import { Refused, type Trust, verify } from "./verify.ts";

const ca = new Authority();
beforeAll(() => {
  ca.issue("root", { extensions: CA });
  ca.issue("sub", { by: "root", extensions: CA });
  ca.issue("signer", { by: "sub" });
  ca.crl("sub", []);
}, 60_000);
afterAll(() => ca[Symbol.dispose]());

/** A verification takes a millisecond: a tenth of what parsers are given. */
const INPUTS = counts.fuzzInputs / 10;
const INPUT_MS = 1000;
const HELD_MAX = 16 * 2 ** 20;
const WARM = 300;

function resident(): number {
  Bun.gc(true);
  return process.memoryUsage().rss;
}

const der = (pem: Buffer): Buffer => Buffer.from(pem.toString().replace(/-----[^-]+-----|\s/g, ""), "base64");
const pem = (bytes: Uint8Array, what = "CERTIFICATE"): Buffer =>
  Buffer.from(
    `-----BEGIN ${what}-----\n${Buffer.from(bytes).toString("base64").replace(/.{64}/g, "$&\n")}\n-----END ${what}-----\n`,
  );

test(
  "fuzz: certificates, signatures, revocations",
  () => {
    const data = Buffer.from("data");
    using key = PrivateKey.read("signer", ca.read("signer.key"));
    const signature = Buffer.from(key.sign(data));
    const certificates = ["signer", "sub", "root"].map((name) => der(ca.read(`${name}.pem`)));
    const [signer, sub] = certificates as [Buffer, Buffer];
    const crl = der(ca.read("crl.pem"));
    const response = ca.ocsp("sub", "signer");
    // Lengths that lie, indefinite ones, types that are not expected, a critical flag.
    const words = [
      "3082ffff",
      "3080",
      "0284ffffffff",
      "a003020102",
      "0101ff",
      "06032a0304",
      "0500",
      "308400000000",
    ].map((h) => Buffer.from(h, "hex"));
    const chance = new Chance(SEED);
    const wound = (...of: Buffer[]) => broken(chance, of, words);
    const good: Trust = { software: [{ name: "root", pem: ca.read("root.pem") }], local: [], revocation: [] };
    const whole = Buffer.concat([pem(signer), pem(sub)]);
    const revoked = (kind: "crl" | "ocsp", bytes: Buffer): Trust => ({
      ...good,
      revocation: [{ name: "r", kind, bytes }],
    });
    const inputs: (() => unknown)[] = [
      () =>
        verify(data, signature, Buffer.concat([pem(wound(signer)), pem(sub)]), good, { ignoreTime: true }),
      () =>
        verify(data, signature, Buffer.concat([pem(signer), pem(wound(sub))]), good, { ignoreTime: true }),
      () => verify(data, signature, wound(whole), good, { ignoreTime: false }),
      () => verify(data, wound(signature), whole, good, { ignoreTime: false }),
      () => verify(data, signature, whole, revoked("crl", wound(crl)), { ignoreTime: false }),
      () =>
        verify(data, signature, whole, revoked("crl", pem(wound(crl), "X509 CRL")), { ignoreTime: false }),
      () => verify(data, signature, whole, revoked("ocsp", wound(response)), { ignoreTime: false }),
    ];
    let held = 0;
    const until = performance.now() + counts.fuzzSeconds * 1000;
    let [accepted, tried] = [0, 0];
    for (; tried < INPUTS || performance.now() < until; tried++) {
      if (tried === WARM) held = resident(); // what is loaded once is not counted
      const began = process.cpuUsage();
      try {
        chance.of(inputs)();
        accepted++;
      } catch (e) {
        if (!(e instanceof Refused) || /[\x00-\x1f\x7f]/.test(e.message) || e.message.length > 2000)
          throw new Error(`input ${tried}`, { cause: e });
      }
      expect(spent(began)).toBeLessThan(INPUT_MS);
    }
    expect(resident() - held).toBeLessThan(HELD_MAX);
    expect(accepted).toBeLessThan(tried / 4);
  },
  120_000 + counts.fuzzSeconds * 1000,
);
