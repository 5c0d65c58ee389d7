// What we issue, the openssl command line accepts; what we sign, it verifies.
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { certify, request } from "./issue.ts";
import { type KeySpec, PrivateKey } from "./key.ts";
import { verify } from "./verify.ts";

const CA = [
  ["basicConstraints", "critical,CA:TRUE"],
  ["keyUsage", "critical,keyCertSign,cRLSign"],
  ["subjectKeyIdentifier", "hash"],
] as const;
const LEAF = [
  ["basicConstraints", "critical,CA:FALSE"],
  ["keyUsage", "critical,digitalSignature"],
  ["subjectKeyIdentifier", "hash"],
  ["authorityKeyIdentifier", "keyid"],
] as const;

async function openssl(...args: string[]): Promise<string> {
  const ran = Bun.spawn(["openssl", ...args], { stderr: "pipe" });
  const [out, err] = await Promise.all([ran.stdout.text(), ran.stderr.text()]);
  if ((await ran.exited) !== 0) throw new Error(`openssl ${args[0]}: ${err}`);
  return out;
}

const PSS = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"];
const KINDS: [KeySpec, string[]][] = [
  ["rsa:2048", PSS],
  ["rsa-pss:2048", PSS],
  ["ec:P-256", []],
  ["ec:P-384", []],
];

for (const [kind, options] of KINDS)
  test(`${kind}: issued here, accepted by openssl; signed by openssl, accepted here`, async () => {
    const dir = mkdtempSync(join(tmpdir(), "issue-"));
    try {
      using caKey = PrivateKey.generate(kind === "rsa-pss:2048" ? "rsa:2048" : kind);
      using key = PrivateKey.generate(kind);
      const root = certify({ subject: [["CN", "root"]], key: caKey, days: 2, extensions: CA });
      const issuer = { certificate: root, key: caKey };
      const cert = certify({ subject: [["CN", "sïgner"]], key, issuer, days: 1, extensions: LEAF });
      const data = Buffer.from('name: "x"\n');
      const file = (name: string, bytes: Uint8Array) => {
        writeFileSync(join(dir, name), bytes);
        return join(dir, name);
      };
      const [rootFile, certFile] = [file("root.pem", root), file("cert.pem", cert)];
      expect(await openssl("verify", "-x509_strict", "-CAfile", rootFile, certFile)).toEndWith("OK\n");
      const [conf, sig, pem] = [file("c", data), file("c.sig", key.sign(data)), file("key", key.pem())];
      const pub = file("pub", Buffer.from(await openssl("x509", "-in", certFile, "-noout", "-pubkey")));
      const as = ["dgst", "-sha512", ...options];
      expect(await openssl(...as, "-verify", pub, "-signature", sig, conf)).toBe("Verified OK\n");
      await openssl(...as, "-sign", pem, "-out", sig, conf);
      const theirs = new Uint8Array(await Bun.file(sig).arrayBuffer());
      const trust = { software: [{ name: "root", pem: root }], local: [], revocation: [] };
      expect(verify(data, theirs, cert, trust, { ignoreTime: false })).toEqual({
        level: "SIGNED",
        signer: "CN=s\\C3\\AFgner",
        root: "CN=root",
      });
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

test("Ed25519 signs and verifies; openssl checks the chain", () => {
  using key = PrivateKey.generate("ed25519");
  const root = certify({
    subject: [["CN", "one"]],
    key,
    days: 1,
    extensions: [
      ["basicConstraints", "critical,CA:TRUE"],
      ["keyUsage", "critical,keyCertSign,digitalSignature"],
    ],
  });
  const trust = { software: [{ name: "root", pem: root }], local: [], revocation: [] };
  const data = Buffer.from("data");
  expect(verify(data, key.sign(data), root, trust, { ignoreTime: false }).signer).toBe("CN=one");
});

test("a request carries its extensions", async () => {
  using key = PrivateKey.generate("ec:P-256");
  const csr = request(
    [
      ["C", "DE"],
      ["CN", "generic 0000"],
    ],
    key,
    [
      ["keyUsage", "critical,digitalSignature"],
      ["subjectAltName", "URI:UUID:2f0b3f9c-0000-4000-8000-000000000001"],
    ],
  );
  const dir = mkdtempSync(join(tmpdir(), "issue-"));
  try {
    writeFileSync(join(dir, "csr"), csr);
    const text = await openssl("req", "-in", join(dir, "csr"), "-noout", "-text", "-verify");
    expect(text).toContain("Subject: C = DE, CN = generic 0000");
    expect(text).toContain("URI:UUID:2f0b3f9c-0000-4000-8000-000000000001");
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("a key that cannot be read, and one that nobody should make, are refused", () => {
  expect(() => PrivateKey.read("a.key", Buffer.from("-----BEGIN PRIVATE KEY-----\n"))).toThrow(
    /^a\.key: no private key/,
  );
  expect(() => PrivateKey.generate("rsa:1024")).toThrow("RSA keys have 2048 to 16384 bits here");
});
