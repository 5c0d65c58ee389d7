// A secret in a file: AES-256-GCM (NIST SP 800-38D), with what stands before it in the file authenticated too.
//
//   head, whose last 12 bytes are the nonce   ciphertext   tag[16]
import { nodeCrypto } from "../lib/ondemand.ts";
import { Secret } from "./secret.ts";

export const NONCE = 12;
export const TAG = 16;

const authenticated = (head: Uint8Array, name: string): Buffer => Buffer.concat([head, Buffer.from(name)]);

/** `under`: 32 bytes, wiped. `name` is authenticated as well, and not in the file. */
export function encrypt(secret: Secret, under: Uint8Array, head: Uint8Array, name = ""): Uint8Array {
  const cipher = nodeCrypto().createCipheriv("aes-256-gcm", under, head.subarray(-NONCE));
  under.fill(0);
  cipher.setAAD(authenticated(head, name));
  const body = secret.lend((bytes) => cipher.update(bytes));
  return Buffer.concat([head, body, cipher.final(), cipher.getAuthTag()]);
}

/** Of a file that is longer than its head and a tag. `under` is wiped. Throws if anything is not as it was. */
export function decrypt(file: Uint8Array, head: number, under: Uint8Array, name = ""): Secret {
  const decipher = nodeCrypto().createDecipheriv("aes-256-gcm", under, file.subarray(head - NONCE, head));
  under.fill(0);
  decipher.setAAD(authenticated(file.subarray(0, head), name));
  decipher.setAuthTag(file.subarray(file.length - TAG));
  const secret = decipher.update(file.subarray(head, file.length - TAG));
  try {
    decipher.final();
  } catch (e) {
    secret.fill(0);
    throw e;
  }
  return Secret.take(secret);
}
