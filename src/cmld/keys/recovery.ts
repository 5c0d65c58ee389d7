// A second way to the key of a container's volumes, for the day its token or its machine is lost: the key, encrypted
// under a recovery key of 128 random bits that is shown once and kept by nobody here. keys/<uuid>.recovery has it; a new
// recovery key takes the place of the old one.
//
//   "CMLRECO1"  salt[32]  nonce[12]  ciphertext  tag[16]
//
// AES-256-GCM under HKDF-SHA256 of the recovery key. 128 random bits need no slow derivation.
import { nodeCrypto } from "../../lib/ondemand.ts";
import { decrypt, encrypt, NONCE, TAG } from "../../sys/gcm.ts";
import { derived } from "../../sys/hkdf.ts";
import type { Secret } from "../../sys/secret.ts";

const MAGIC = "CMLRECO1";
const [SALT, BODY] = [8, 52];
/** Bytes of a recovery key: eight words and one that sums them up. */
export const RECOVERY_BYTES = 16;
export const RECOVERY_MAX = 4096;

function wrapping(recovery: Secret, salt: Uint8Array): Buffer {
  return recovery.lend((bytes) => derived(bytes, salt, "cml recovery"));
}

export function wrap(key: Secret, recovery: Secret): Uint8Array {
  const head = Buffer.alloc(BODY);
  head.write(MAGIC, "latin1");
  nodeCrypto()
    .randomBytes(BODY - SALT)
    .copy(head, SALT);
  return encrypt(key, wrapping(recovery, head.subarray(SALT, BODY - NONCE)), head);
}

/** The key, for the recovery key that it was wrapped under. */
export function unwrap(file: Uint8Array, recovery: Secret): Secret {
  const magic = Buffer.from(file.subarray(0, SALT)).toString("latin1");
  if (magic !== MAGIC || file.length < BODY + TAG || file.length > RECOVERY_MAX)
    throw new Error("the key behind the recovery key is damaged");
  try {
    return decrypt(file, BODY, wrapping(recovery, file.subarray(SALT, BODY - NONCE)));
  } catch (cause) {
    throw new Error("it is another recovery key", { cause });
  }
}
