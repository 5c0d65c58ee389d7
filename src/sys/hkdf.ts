// HKDF with SHA-256 (RFC 5869), as far as one key of 32 bytes goes. The runtime's own leaves a copy of what it derives from
// in memory that it frees; HMAC's message is not copied.
import { nodeCrypto } from "../lib/ondemand.ts";

/** 32 bytes, the caller's to wipe. */
export function derived(from: Uint8Array | string, salt: Uint8Array, what: string): Buffer {
  const extracted = nodeCrypto().createHmac("sha256", salt).update(from).digest();
  const key = nodeCrypto().createHmac("sha256", extracted).update(`${what}\x01`).digest();
  extracted.fill(0);
  return key;
}
