// The device's own identity: a key, a request for a certificate, and the certificate, self-signed until somebody pushes
// a better one (spec/security.md 1.4). The key is made at the first start, in a process of its own: RSA-4096 takes
// seconds, on small machines many.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { nodeCrypto } from "../lib/ondemand.ts";
import { isFor } from "../pki/certificates.ts";
import { certify, type Extensions, type Name, request } from "../pki/issue.ts";
import { PrivateKey } from "../pki/key.ts";
import { readBounded, writeAtomic } from "../sys/file.ts";
import type { Secret } from "../sys/secret.ts";
import { present } from "./tries.ts";

const KEY = "rsa:4096";
const DAYS = 365;
/** Where a machine says what it is. */
const DMI = "/sys/devices/virtual/dmi/id";
const CERTIFICATE_MAX = 64 * 1024;
const URI = "URI:UUID:";
const ALIAS = /(?:^|, )URI:UUID:([0-9a-f-]{36})(?:,|$)/;

/** Printable ASCII of a line of the firmware, at most `max` characters; `none` where there is no such line. */
function dmi(file: string, max: number, none: string): string {
  try {
    const line = readFileSync(join(DMI, file), "latin1").trim();
    return line.replace(/[^ -~]/g, "?").slice(0, max) || none;
  } catch {
    return none; // a machine without DMI
  }
}

/** spec/security.md 1.4: CN is the product's name and serial number. */
const subject = (): Name => [
  ["C", "DE"],
  ["O", "Fraunhofer"],
  ["OU", "AISEC"],
  ["CN", `${dmi("product_name", 19, "generic")} ${dmi("product_serial", 39, "0000")}`],
];

const extensions = (uuid: string): Extensions => [
  ["keyUsage", "critical,digitalSignature,keyEncipherment,nonRepudiation"],
  ["extendedKeyUsage", "clientAuth"],
  ["subjectAltName", `${URI}${uuid}`],
];

export class Device {
  #passphrase: Secret | undefined;
  constructor(readonly tokens: string) {}

  /** What its key is encrypted with on the disk, from now on; without it in clear, as the original's. */
  protectWith(passphrase: Secret): void {
    this.#passphrase?.[Symbol.dispose]();
    this.#passphrase = passphrase;
  }

  /** For the process that makes the key. */
  get passphrase(): Secret | undefined {
    return this.#passphrase;
  }

  #withPassphrase<T>(use: (passphrase: Uint8Array | undefined) => T): T {
    return this.#passphrase ? this.#passphrase.lend(use) : use(undefined);
  }

  #at = (name: string): string => join(this.tokens, name);

  /** True before the first key is made. */
  get isNew(): boolean {
    return !existsSync(this.#at("device.cert"));
  }

  /** The boot in which the key was made lasts: the request may be pulled, the certificate pushed. */
  async provisioning(): Promise<boolean> {
    const marker = await readBounded(this.#at("provisioning"), 64);
    return marker !== undefined && Buffer.from(marker).toString() === present().boot;
  }

  /** Make key, request and self-signed certificate, the certificate last: without it all is made again. */
  async initialise(): Promise<void> {
    const uuid = crypto.randomUUID();
    using key = PrivateKey.generate(KEY);
    const pem = this.#withPassphrase((p) => key.pem(p));
    await writeAtomic(this.#at("device.key"), pem);
    pem.fill(0);
    await writeAtomic(this.#at("device.csr"), request(subject(), key, extensions(uuid)));
    await writeAtomic(this.#at("provisioning"), present().boot);
    const own = certify({ subject: subject(), key, days: DAYS, extensions: extensions(uuid) });
    await writeAtomic(this.#at("device.cert"), own);
    await this.identify();
  }

  /** device_id.conf from the certificate, if it is not there. */
  async identify(): Promise<void> {
    if (existsSync(this.#at("device_id.conf"))) return;
    const certificate = await readBounded(this.#at("device.cert"), CERTIFICATE_MAX);
    const names = certificate && new (nodeCrypto().X509Certificate)(certificate).subjectAltName;
    const uuid = names && ALIAS.exec(names)?.[1];
    if (!uuid) throw new Error("device.cert: no URI:UUID:… among its subject's names");
    await writeAtomic(this.#at("device_id.conf"), `uuid: "${uuid}"\n`);
  }

  /** The request, while provisioning. */
  async csr(): Promise<Uint8Array> {
    const csr = await readBounded(this.#at("device.csr"), CERTIFICATE_MAX);
    if (!csr) throw new Error("device.csr is missing");
    return csr;
  }

  /** Take a certificate for the device's key. The original took any; one that is for another key helps nobody. */
  async accept(certificate: Uint8Array): Promise<void> {
    const pem = await readBounded(this.#at("device.key"), CERTIFICATE_MAX);
    if (!pem) throw new Error("device.key is missing");
    using key = this.#withPassphrase((p) => PrivateKey.read("device.key", pem, p));
    pem.fill(0);
    if (!isFor(certificate, key)) throw new Error("the certificate is for another key than this device's");
    await writeAtomic(this.#at("device.cert"), certificate);
  }
}
