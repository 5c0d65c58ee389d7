// A key at rest on a machine without a TPM: encrypted under what the machine says of itself (its serial numbers, which
// are in its firmware and not on its disk), so that a disk, or a copy of it, opens nowhere else. Whoever holds the machine
// as well can open it: this is no more than that, and better than clear text. The first byte after the magic says what
// protects the key; a TPM will be number 2 (docs/decisions/volume-keys.md).
//
//   "CMLKEY01"  protector u8  facts u8  salt[32]  nonce[12]  ciphertext  tag[16]
//
// AES-256-GCM; the key that protects is HKDF-SHA256 of the facts, and the name and everything before the nonce's end are
// authenticated with it.
import { readFileSync } from "node:fs";
import { nodeCrypto } from "../lib/ondemand.ts";
import { decrypt, encrypt, NONCE, TAG } from "./gcm.ts";
import { derived } from "./hkdf.ts";
import type { Secret } from "./secret.ts";

const MAGIC = "CMLKEY01";
const MACHINE = 1;
const [PROTECTOR, FACTS, SALT, BODY] = [8, 9, 10, 54];
/** The longest sealed file. */
export const SEALED_MAX = 4096;

/** What a machine says of itself, readable by root only where it matters; the order is the bits' in the file. */
const SOURCES = [
  "/sys/class/dmi/id/product_uuid",
  "/sys/class/dmi/id/product_serial",
  "/sys/class/dmi/id/board_serial",
  "/sys/class/dmi/id/chassis_serial",
  "/sys/firmware/devicetree/base/serial-number",
] as const;

/** By source, absent where the machine does not say. */
export type Facts = readonly (string | undefined)[];

export const machineFacts = (): Facts =>
  SOURCES.map((path) => {
    try {
      return readFileSync(path, "latin1").replace(/[\s\0]+$/, "") || undefined;
    } catch {
      return undefined; // no such firmware
    }
  });

const bitsOf = (facts: Facts): number =>
  facts.reduce((bits, fact, i) => (fact === undefined ? bits : bits | (1 << i)), 0);

/** Whether the machine says anything at all; otherwise a sealed key is as good as one in clear. */
export const protects = (facts: Facts): boolean => bitsOf(facts) !== 0;

function wrapping(facts: Facts, bits: number, salt: Uint8Array): Buffer {
  const said = facts.map((fact, i) =>
    bits & (1 << i) ? `${i}:${fact?.length ?? "missing"}:${fact ?? ""}` : "",
  );
  return derived(said.join("\n"), salt, "cml key at rest");
}

/** `name`: what the key is for; a file under another name does not open. */
export function seal(key: Secret, name: string, facts = machineFacts()): Uint8Array {
  const head = Buffer.alloc(BODY);
  head.write(MAGIC, "latin1");
  head[PROTECTOR] = MACHINE;
  head[FACTS] = bitsOf(facts);
  nodeCrypto()
    .randomBytes(BODY - SALT)
    .copy(head, SALT);
  return encrypt(key, wrapping(facts, head[FACTS], head.subarray(SALT, BODY - NONCE)), head, name);
}

export const isSealed = (bytes: Uint8Array): boolean =>
  Buffer.from(bytes.subarray(0, MAGIC.length)).toString("latin1") === MAGIC;

export function unseal(bytes: Uint8Array, name: string, facts = machineFacts()): Secret {
  if (!isSealed(bytes) || bytes.length < BODY + TAG || bytes.length > SEALED_MAX)
    throw new Error(`the key of ${name} is damaged`);
  const protector = bytes[PROTECTOR]!;
  if (protector !== MACHINE)
    throw new Error(`the key of ${name} is protected by ${protector}, which is not known here`);
  const bits = bytes[FACTS]!;
  if (bits >> SOURCES.length) throw new Error(`the key of ${name} is damaged`);
  const changed = SOURCES.filter((_, i) => bits & (1 << i) && facts[i] === undefined);
  try {
    return decrypt(bytes, BODY, wrapping(facts, bits, bytes.subarray(SALT, BODY - NONCE)), name);
  } catch (cause) {
    const why =
      changed.length > 0 ? `this machine has no ${changed.join(", ")}` : "damaged, or of another machine";
    throw new Error(`the key of ${name} does not open: ${why}`, { cause });
  }
}
