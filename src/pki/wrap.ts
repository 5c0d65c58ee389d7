// A container's key as its soft token wraps it, in the original's format (spec/security.md 1.6): lengths, IV, a session
// key encrypted to the token's RSA key, the container's key encrypted with that. Whoever has the public key could make
// one, so ours comes with a proof: a MAC under a key that only the token's private key gives.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";
import { Secret } from "../sys/secret.ts";
import { must, reason, Scope } from "./crypto.ts";
import { PADDING, type PrivateKey, pointed, string } from "./key.ts";

/** The original's limit of a wrapped key. */
export const WRAPPED_MAX = 4096;
const [HEADER, IV, SESSION, BLOCK, DIGEST] = [8, 16, 32, 16, 32];

/** It was made for another key, or changed. */
export class Corrupt extends Error {
  override readonly name = "Corrupt";
}

const lengthIn = (memory: Uint8Array<ArrayBuffer>): number => new DataView(memory.buffer).getInt32(0, true);

function cipher(
  encrypting: boolean,
  session: Secret,
  iv: Uint8Array,
  from: Uint8Array,
  to: Uint8Array,
): number {
  using scope = new Scope();
  const ctx = scope.own(C.EVP_CIPHER_CTX_new(), C.EVP_CIPHER_CTX_free, "EVP_CIPHER_CTX_new");
  const [first, last] = [mem(4), mem(4)];
  session.lend((key) =>
    must(
      C.EVP_CipherInit_ex(ctx, C.EVP_aes_256_cbc(), null, key, lasting(iv), encrypting ? 1 : 0),
      "EVP_CipherInit_ex",
    ),
  );
  must(C.EVP_CipherUpdate(ctx, to, first, from, from.length), "EVP_CipherUpdate");
  const done = lengthIn(first);
  must(C.EVP_CipherFinal_ex(ctx, to.subarray(done), last), "EVP_CipherFinal_ex");
  return done + lengthIn(last);
}

function rsa(scope: Scope, key: PrivateKey): Pointer {
  const ctx = scope.own(C.EVP_PKEY_CTX_new(key.pointer, null), C.EVP_PKEY_CTX_free, "EVP_PKEY_CTX_new");
  return ctx;
}

export function wrap(key: PrivateKey, secret: Secret): Uint8Array {
  using scope = new Scope();
  using session = Secret.random(SESSION);
  const size = C.EVP_PKEY_get_size(key.pointer);
  const clear = secret.length;
  const length = clear + BLOCK - (clear % BLOCK); // PKCS #7
  const out = mem(HEADER + IV + size + length);
  const header = new DataView(out.buffer);
  header.setInt32(0, size, true);
  header.setInt32(4, length, true);
  const iv = crypto.getRandomValues(new Uint8Array(IV));
  out.set(iv, HEADER);
  const ctx = rsa(scope, key);
  must(C.EVP_PKEY_encrypt_init(ctx), "EVP_PKEY_encrypt_init");
  must(C.EVP_PKEY_CTX_set_rsa_padding(ctx, PADDING.pkcs1), "EVP_PKEY_CTX_set_rsa_padding");
  const room = mem(8);
  new DataView(room.buffer).setBigUint64(0, BigInt(size), true);
  session.lend((s) =>
    must(C.EVP_PKEY_encrypt(ctx, out.subarray(HEADER + IV), room, s, SESSION), "EVP_PKEY_encrypt"),
  );
  const written = secret.lend((s) => cipher(true, session, iv, s, out.subarray(HEADER + IV + size)));
  if (written !== length) throw new Error(`${written} bytes of a wrapped key, not ${length}`);
  return out;
}

export function unwrap(key: PrivateKey, wrapped: Uint8Array): Secret {
  const bytes = lasting(wrapped);
  const size = C.EVP_PKEY_get_size(key.pointer);
  if (bytes.length < HEADER + IV || bytes.length > WRAPPED_MAX)
    throw new Corrupt(`a wrapped key of ${bytes.length} bytes`);
  const header = new DataView(bytes.buffer);
  const [sealed, length] = [header.getInt32(0, true), header.getInt32(4, true)];
  if (
    sealed !== size ||
    length < BLOCK ||
    length % BLOCK !== 0 ||
    HEADER + IV + sealed + length !== bytes.length
  )
    throw new Corrupt(
      `a wrapped key of ${bytes.length} bytes that says ${sealed} and ${length}, for a key of ${size}`,
    );
  using scope = new Scope();
  const ctx = rsa(scope, key);
  must(C.EVP_PKEY_decrypt_init(ctx), "EVP_PKEY_decrypt_init");
  must(C.EVP_PKEY_CTX_set_rsa_padding(ctx, PADDING.pkcs1), "EVP_PKEY_CTX_set_rsa_padding");
  const room = mem(8);
  new DataView(room.buffer).setBigUint64(0, BigInt(size), true);
  using opened = Secret.empty(size);
  const asked = opened.lend((to) =>
    C.EVP_PKEY_decrypt(ctx, to, room, bytes.subarray(HEADER + IV, HEADER + IV + sealed), sealed),
  );
  const why = asked === 1 ? "" : reason();
  if (asked !== 1 || (pointed(room) as number) !== SESSION)
    throw new Corrupt(`the wrapped key is not for this token: ${why || "no session key in it"}`);
  using session = Secret.empty(SESSION);
  opened.lend((from) => session.lend((to) => to.set(from.subarray(0, SESSION))));
  using clear = Secret.empty(length);
  let n: number;
  try {
    const iv = bytes.subarray(HEADER, HEADER + IV);
    n = clear.lend((to) => cipher(false, session, iv, bytes.subarray(HEADER + IV + sealed), to));
  } catch (cause) {
    throw new Corrupt("the wrapped key was changed", { cause });
  }
  const key96 = Secret.empty(n);
  clear.lend((from) => key96.lend((to) => to.set(from.subarray(0, n))));
  return key96;
}

function hmac(key: Secret | Uint8Array, data: Uint8Array): Secret {
  const out = Secret.empty(DIGEST);
  const on = (k: Uint8Array) =>
    out.lend((to) => {
      if (C.HMAC(C.EVP_sha256(), k, k.length, data, data.length, to, null) === null)
        throw new Error(`HMAC: ${reason()}`);
    });
  if (key instanceof Secret) key.lend(on);
  else on(key);
  return out;
}

/** HMAC-SHA256 under HKDF-SHA256 (RFC 5869) of the key's private exponent. */
export function macOf(key: PrivateKey, uuid: string, wrapped: Uint8Array): Uint8Array {
  const at = mem(8);
  must(C.EVP_PKEY_get_bn_param(key.pointer, string("d"), at), "the private exponent");
  using scope = new Scope();
  const exponent = scope.own(pointed(at), C.BN_clear_free, "the private exponent");
  using material = Secret.empty(C.EVP_PKEY_get_size(key.pointer));
  material.lend((to) => {
    if (C.BN_bn2binpad(exponent, to, to.length) < 0) throw new Error(`BN_bn2binpad: ${reason()}`);
    return to;
  });
  const salt = lasting(Buffer.from("cml wrapped key"));
  using extracted = material.lend((m) => hmac(salt, m));
  using expanded = hmac(extracted, lasting(Buffer.from(`${uuid}\x01`)));
  using made = hmac(expanded, lasting(wrapped));
  return made.lend((bytes) => lasting(bytes));
}
