// What the original made, byte for byte: its PKI, a device's request for a certificate and the certificates it had.
import { expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { chainTo, isFor, readBundle } from "./certificates.ts";
import { Scope } from "./crypto.ts";
import { request } from "./issue.ts";
import { PrivateKey } from "./key.ts";

const PKI = "test/data/signing/pki";
const prov = (name: string) => readFileSync(`test/data/prov/${name}`);
const deviceKey = () => PrivateKey.read("device.key", prov("device.key"));

/** "good", or why there is no chain from the first certificate over the others to the root. */
function chained(bundle: Uint8Array, root: string, ...between: Uint8Array[]): string {
  using scope = new Scope();
  const [leaf, ...others] = [bundle, ...between].flatMap((pem, i) => readBundle(scope, `bundle ${i}`, pem));
  const found = chainTo(scope, leaf!, others, readBundle(scope, root, readFileSync(`${PKI}/${root}`)), {
    ignoreTime: false,
  });
  return "line" in found ? found.line : "good";
}

test("every certificate of the original's PKI has a chain to its own root, and none to the other", () => {
  const [software, general] = ["ssig_rootca.cert", "gen_rootca.cert"];
  const all = readdirSync(PKI).filter((name) => name.endsWith(".cert"));
  expect(all.length).toBe(11);
  for (const name of all) {
    const [mine, other] = name.startsWith("ssig") ? [software, general] : [general, software];
    const bundle = readFileSync(`${PKI}/${name}`);
    expect([name, chained(bundle, mine)]).toEqual([name, "good"]);
    expect([name, chained(bundle, other)]).not.toEqual([name, "good"]);
  }
});

test("a device's request comes out byte for byte from the same key and names", () => {
  using key = deviceKey();
  const uuid = "82fcabff-6687-4845-a06f-67e5752d459a";
  const subject = [
    ["C", "DE"],
    ["O", "Fraunhofer"],
    ["OU", "AISEC"],
    ["CN", "generic 0000"],
  ] as const;
  const made = request(subject, key, [
    ["keyUsage", "critical,digitalSignature,keyEncipherment,nonRepudiation"],
    ["extendedKeyUsage", "clientAuth"],
    ["subjectAltName", `URI:UUID:${uuid}`],
  ]);
  expect(Buffer.from(made).toString()).toBe(prov("device.csr").toString());
});

test("the device's certificates are for its key: its own, and the one that was pushed, by the original's sub CA", () => {
  using key = deviceKey();
  for (const name of ["self-signed.cert", "device.cert"]) {
    expect([name, isFor(prov(name), key)]).toEqual([name, true]);
    expect(new X509Certificate(prov(name)).subjectAltName).toBe(
      "URI:UUID:82fcabff-6687-4845-a06f-67e5752d459a",
    );
  }
  expect(chained(prov("device.cert"), "gen_rootca.cert", readFileSync(`${PKI}/device_subca.cert`))).toBe(
    "good",
  );
});
