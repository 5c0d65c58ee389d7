// Who may say what runs here: signatures as scd judges them, and what device.conf makes of that; the roots that are
// registered, and the device's own certificate.
import type { X509Certificate } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ContainerTrust } from "../../../proto/gen/proto.js";
import { nodeCrypto } from "../../lib/ondemand.ts";
import { AT_FDCWD, O_DIRECTORY, O_RDONLY, openat2, RESOLVE_NO_SYMLINKS } from "../../sys/calls.ts";
import { EEXIST, isErrno } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { readBounded, writeAtomic } from "../../sys/file.ts";
import { now } from "../../sys/now.ts";
import type { DeviceConfig } from "../config.ts";
import type { Scd } from "../scd.ts";

/** A detached signature, and whose it is: raw, and PEM. They count as a pair only. */
export interface Signature {
  readonly signature: Uint8Array;
  readonly certificate: Uint8Array;
}

/** Signatures and certificate chains are a few KiB. */
export const SIGNATURE_MAX = 65_536;
/** A root certificate. */
const ROOT_MAX = 65_536;

/** NAME.sig and NAME.cert of a folder; undefined if one of them is not there. */
export async function signatureOf(folder: string, name: string): Promise<Signature | undefined> {
  const [signature, certificate] = await Promise.all(
    ["sig", "cert"].map((extension) => readBounded(join(folder, `${name}.${extension}`), SIGNATURE_MAX)),
  );
  return signature && certificate && { signature, certificate };
}

export class Trust {
  readonly #scd: Scd;
  readonly #device: DeviceConfig;
  readonly #tokens: string;
  readonly #provisioned: () => boolean;

  /** `base`: the data folder. */
  constructor(scd: Scd, device: DeviceConfig, base: string, provisioned: () => boolean) {
    this.#scd = scd;
    this.#device = device;
    this.#tokens = join(base, "tokens");
    this.#provisioned = provisioned;
  }

  /** A device that is not provisioned may have no clock (spec/security.md 2.3). */
  get #ignoreTime(): boolean {
    return !this.#device.hostedmode && !this.#provisioned();
  }

  /** May a GuestOS with this configuration be used, and how far is it to be trusted? Throws the reason why not. */
  async guestOs(source: Uint8Array, signed: Signature | undefined): Promise<ContainerTrust> {
    if (!signed) throw new Error(UNSIGNED_GUEST);
    const whose = await this.#scd.verify(source, signed.signature, signed.certificate, this.#ignoreTime);
    if (whose === "SIGNED") return ContainerTrust.SIGNED;
    if (this.#device.locally_signed_images) return ContainerTrust.LOCALLY_SIGNED;
    throw new Error("it is locally signed, which needs locally_signed_images: true in device.conf");
  }

  /** May a container have this configuration? Throws the reason why not. */
  async container(source: Uint8Array, signed: Signature | undefined): Promise<void> {
    if (!this.#device.signed_configs) return;
    if (!signed) throw new Error(UNSIGNED_CONTAINER);
    const whose = await this.#scd.verify(source, signed.signature, signed.certificate, this.#ignoreTime);
    if (whose !== "SIGNED") throw new Error("it is locally signed, which is not enough for a container");
  }

  /** Believe a further root (spec/core.md 2.2, REGISTER_NEWCA). */
  async registerRoot(pem: Uint8Array): Promise<void> {
    checkRoot(pem);
    const name = nodeCrypto().createHash("sha1").update(pem).digest("hex");
    using folder = await this.#folder("ca");
    if (await readBounded(within(folder, name), ROOT_MAX)) return; // there already
    await writeAtomic(within(folder, name), pem, 0o644);
  }

  /** Believe a root of locally signed software; once. */
  async registerLocalRoot(pem: Uint8Array): Promise<void> {
    checkRoot(pem);
    using folder = await this.#folder("");
    const there = await readBounded(within(folder, LOCAL), ROOT_MAX);
    if (there && Buffer.from(there).equals(pem)) return;
    if (there) throw new Error("this device has a local root certificate, and it is another one");
    await writeAtomic(within(folder, LOCAL), pem, 0o644);
  }

  csr(): Promise<Uint8Array> {
    return this.#scd.csr();
  }

  acceptCertificate(pem: Uint8Array): Promise<void> {
    return this.#scd.accept(pem);
  }

  /** The token folder, or one in it, opened without following a link: scd writes there, and we are root. */
  async #folder(name: string): Promise<Fd> {
    const path = join(this.#tokens, name);
    try {
      await mkdir(path, { mode: 0o755 });
    } catch (e) {
      if (!isErrno(e, EEXIST)) throw e;
    }
    return new Fd(now(openat2(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS)));
  }
}

const LOCAL = "localca_rootca.cert";
const UNSIGNED_GUEST =
  "it has no signature: sign it with `cml guestos sign`, by a key whose root certificate is in tokens/ (control ca_register)";
const UNSIGNED_CONTAINER =
  "it has no signature: sign it with `cml container sign`, or say signed_configs: false in device.conf on a development system";

const within = (folder: Fd, name: string): string => `/proc/self/fd/${folder.n}/${name}`;

function checkRoot(pem: Uint8Array): void {
  if (pem.length > ROOT_MAX)
    throw new Error(`a root certificate of ${pem.length} bytes, at most ${ROOT_MAX}`);
  const lines = Buffer.from(pem).toString("latin1").trimEnd().split("\n");
  if (lines[0]?.trimEnd() !== "-----BEGIN CERTIFICATE-----" || lines.at(-1) !== "-----END CERTIFICATE-----")
    throw new Error("a PEM certificate is needed, and nothing before or after it");
  let certificate: X509Certificate;
  try {
    certificate = new (nodeCrypto().X509Certificate)(pem);
  } catch (cause) {
    throw new Error("no certificate that can be read", { cause });
  }
  if (!certificate.ca) throw new Error("the certificate is not one of a certification authority");
}
