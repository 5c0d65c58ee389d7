// The development PKI of this working copy: out/pki, made once, with the first guest or test that needs it (`cml pki init`).
// Whatever data folder is laid out here is signed with it and believes it, as a product's believes its owner's.
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { newUuid } from "../src/lib/uuid.ts";
import { initialise } from "../src/pki/development.ts";
import { certify } from "../src/pki/issue.ts";
import { PrivateKey } from "../src/pki/key.ts";

export const PKI = "out/pki";
/** Quick to make; the original's profile is rsa:4096. */
const KEY = "ec:P-256";
const DAYS = 3650;

/** The folder, made if it is not there. */
export function pki(): string {
  initialise(PKI, KEY, () => {});
  return PKI;
}

/** The same words as a Signer of `cml guestos sign`. */
export const developer = (folder = pki()): { key: string; certs: string[] } => ({
  key: join(folder, "ssig_cml.key"),
  certs: [join(folder, "ssig_cml.cert")],
});

/** The developer's signature over some bytes, and the certificate that goes with it. */
export function signature(
  data: Uint8Array,
  folder = pki(),
): { signature: Uint8Array; certificate: Uint8Array } {
  const { key: file, certs } = developer(folder);
  using key = PrivateKey.read(file, readFileSync(file));
  return { signature: key.sign(data), certificate: readFileSync(certs[0]!) };
}

/** NAME.sig and NAME.cert beside NAME.conf. */
export function signed(conf: string, folder = pki()): void {
  const at = conf.slice(0, -".conf".length);
  const by = signature(readFileSync(conf), folder);
  writeFileSync(`${at}.sig`, by.signature);
  writeFileSync(`${at}.cert`, by.certificate);
}

/** Make the data folder believe it. */
export function believe(base: string, folder = pki()): void {
  mkdirSync(join(base, "tokens"), { recursive: true, mode: 0o700 });
  copyFileSync(join(folder, "ssig_rootca.cert"), join(base, "tokens/ssig_rootca.cert"));
}

/** Give the device a settled identity: otherwise scd makes an RSA key at its first start, which takes a processor for
 * seconds. */
export function identity(base: string): void {
  const tokens = join(base, "tokens");
  mkdirSync(tokens, { recursive: true, mode: 0o700 });
  using key = PrivateKey.generate(KEY);
  const uuid = newUuid();
  writeFileSync(join(tokens, "device.key"), key.pem(), { mode: 0o600 });
  const extensions = [["subjectAltName", `URI:UUID:${uuid}`]] as const;
  const certificate = certify({ subject: [["CN", "a test device"]], key, days: DAYS, extensions });
  writeFileSync(join(tokens, "device.cert"), certificate);
  writeFileSync(join(tokens, "device_id.conf"), `uuid: "${uuid}"\n`);
}
