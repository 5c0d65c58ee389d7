// Keys of volumes that no token protects: core0's, and those of containers with token_type NONE. cmld makes them and
// keeps them in keys/<uuid>.sealed, encrypted under what the machine says of itself (sys/sealed.ts). A key is on the disk
// before the volume is made, and is never made anew while there are volumes: they would be lost in silence.
import { existsSync, readdirSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { C0 } from "../../lib/uuid.ts";
import { destroy, readBounded, synced, writeAtomic } from "../../sys/file.ts";
import { type Facts, machineFacts, protects, SEALED_MAX, seal, unseal } from "../../sys/sealed.ts";
import { Secret } from "../../sys/secret.ts";
import { KEY_BYTES, sealedImages } from "./crypt.ts";

/** core0's key in clear, as the original has it: 32 bytes, for INTEGRITY_ONLY (security.md 3.2). */
const CLEAR = 32;

const hasVolumes = (images: string): boolean =>
  sealedImages(images).length > 0 ||
  (existsSync(images) && readdirSync(images).some((f) => f.endsWith(".made")));

export interface Held {
  /** …/keys */
  readonly folder: string;
  readonly uuid: string;
  /** The container's folder of images. */
  readonly images: string;
  readonly facts?: Facts;
  log(line: string): void;
}

/** The key, made for a container that has no volumes yet. */
export async function heldKey(h: Held): Promise<Secret> {
  const path = join(h.folder, `${h.uuid}.sealed`);
  const facts = h.facts ?? machineFacts();
  const sealed = await readBounded(path, SEALED_MAX);
  if (sealed) return unseal(sealed, h.uuid, facts);
  const clear = h.uuid === C0 ? await readBounded(join(h.folder, `${h.uuid}.key`), SEALED_MAX) : undefined;
  if (clear?.length === CLEAR) {
    h.log("its volumes have a key in clear, made by an earlier system");
    return Secret.take(clear);
  }
  if (hasVolumes(h.images)) throw new Error(`there are volumes in ${h.images}, and no ${path}`);
  const key = Secret.random(KEY_BYTES);
  try {
    if (!existsSync(h.folder)) {
      await mkdir(h.folder, { recursive: true, mode: 0o700 });
      await synced(dirname(h.folder));
    }
    await writeAtomic(path, seal(key, h.uuid, facts));
    if (!protects(facts))
      h.log("this machine has no serial number: the key of its volumes is as good as in clear");
    return key;
  } catch (e) {
    key[Symbol.dispose]();
    throw e;
  }
}

/** What the device's own key is encrypted with, for scd: text, so that openssl takes it as well. None on a machine that says nothing
 * of itself, where it would protect nothing. */
export async function devicePassphrase(folder: string, facts = machineFacts()): Promise<Secret | undefined> {
  const path = join(folder, `${DEVICE}.sealed`);
  const sealed = await readBounded(path, SEALED_MAX);
  if (sealed) return unseal(sealed, DEVICE, facts);
  if (!protects(facts)) return undefined;
  const passphrase = Secret.random(PASSPHRASE);
  passphrase.lend((bytes) => {
    for (const [i, b] of bytes.entries()) bytes[i] = BASE64.charCodeAt(b & 63);
  });
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await writeAtomic(path, seal(passphrase, DEVICE, facts));
  return passphrase;
}

const DEVICE = "device";
/** Letters of six bits each. */
const PASSPHRASE = 48;
const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** Without it the volumes are lost: what a wipe does first. */
export async function forgetKey(folder: string, uuid: string): Promise<void> {
  for (const extension of ["recovery", "sealed", "key"]) await destroy(join(folder, `${uuid}.${extension}`));
}
