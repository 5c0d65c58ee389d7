// Private keys: made, read, written, and what they sign. A key is libcrypto's memory; JavaScript holds its address.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";
import { must, reason, Scope, written } from "./crypto.ts";

/** What `cml pki init --key` takes, and the original's tool (rsa:4096, ec:prime256v1). */
export type KeySpec = `rsa:${number}` | `rsa-pss:${number}` | `ec:${"P-256" | "P-384"}` | "ed25519";

/** openssl/evp.h, obj_mac.h. */
export const KIND = { rsa: 6, rsaPss: 912, ec: 408, ed25519: 1087 } as const;
/** openssl/rsa.h: RSA_PKCS1_PADDING, RSA_PKCS1_PSS_PADDING; RSA_PSS_SALTLEN_DIGEST. */
export const PADDING = { pkcs1: 1, pss: 6 } as const;
const SALT_AS_DIGEST = -1;

export const string = (s: string): Buffer => {
  if (s.includes("\0")) throw new Error(`${JSON.stringify(s)}: a NUL byte`);
  return Buffer.from(lasting(Buffer.from(`${s}\0`)).buffer);
};

/** What EVP_Digest…Init wrote: the key context, which belongs to the digest context. */
export const pointed = (memory: Uint8Array<ArrayBuffer>): Pointer =>
  Number(new DataView(memory.buffer).getBigUint64(0, true)) as Pointer;

/** PSS as the original signs: MGF1 and salt of the same digest. */
export function setPadding(keyContext: Pointer, padding: number, digest: Pointer): void {
  must(C.EVP_PKEY_CTX_set_rsa_padding(keyContext, padding), "EVP_PKEY_CTX_set_rsa_padding");
  if (padding !== PADDING.pss) return;
  must(C.EVP_PKEY_CTX_set_rsa_mgf1_md(keyContext, digest), "EVP_PKEY_CTX_set_rsa_mgf1_md");
  must(C.EVP_PKEY_CTX_set_rsa_pss_saltlen(keyContext, SALT_AS_DIGEST), "EVP_PKEY_CTX_set_rsa_pss_saltlen");
}

export class PrivateKey implements Disposable {
  readonly kind: number;

  /** Takes over an EVP_PKEY. */
  constructor(readonly pointer: Pointer) {
    this.kind = C.EVP_PKEY_get_base_id(pointer);
  }

  /** A new key. RSA takes seconds: not for an event loop that others wait for. */
  static generate(spec: KeySpec): PrivateKey {
    using scope = new Scope();
    const [kind, size] = spec.split(":") as [string, string | undefined];
    const name = { rsa: "RSA", "rsa-pss": "RSA-PSS", ec: "EC", ed25519: "ED25519" }[kind];
    if (name === undefined)
      throw new Error(`key ${spec}: rsa:BITS, rsa-pss:BITS, ec:P-256, ec:P-384 or ed25519`);
    const ctx = scope.own(C.EVP_PKEY_CTX_new_from_name(null, string(name), null), C.EVP_PKEY_CTX_free, name);
    must(C.EVP_PKEY_keygen_init(ctx), `key ${spec}`);
    if (name.startsWith("RSA")) {
      const bits = Number(size);
      if (!Number.isInteger(bits) || bits < 2048 || bits > 16384)
        throw new Error(`key ${spec}: RSA keys have 2048 to 16384 bits here`);
      must(C.EVP_PKEY_CTX_set_rsa_keygen_bits(ctx, bits), `key ${spec}`);
    } else if (name === "EC") must(C.EVP_PKEY_CTX_set_group_name(ctx, string(size ?? "")), `key ${spec}`);
    const made = mem(8);
    must(C.EVP_PKEY_generate(ctx, made), `key ${spec}`);
    return new PrivateKey(pointed(made));
  }

  /** From PEM (PKCS #8 or traditional), with its passphrase if it has one. */
  static read(what: string, pem: Uint8Array, passphrase: Uint8Array = new Uint8Array()): PrivateKey {
    using scope = new Scope();
    const pass = mem(passphrase.length + 1);
    pass.set(passphrase);
    const key = C.PEM_read_bio_PrivateKey(scope.bytes(pem), null, null, pass);
    pass.fill(0);
    if (key === null) throw new Error(`${what}: no private key that can be read: ${reason()}`);
    return new PrivateKey(key);
  }

  /** PKCS #8 PEM, with a passphrase encrypted with AES-256; without, whoever asks wipes it. */
  pem(passphrase?: Uint8Array): Uint8Array {
    if (!passphrase)
      return written((bio) => C.PEM_write_bio_PKCS8PrivateKey(bio, this.pointer, null, null, 0, null, null));
    const pass = lasting(passphrase);
    try {
      return written((bio) =>
        C.PEM_write_bio_PKCS8PrivateKey(
          bio,
          this.pointer,
          C.EVP_aes_256_cbc(),
          pass,
          pass.length,
          null,
          null,
        ),
      );
    } finally {
      pass.fill(0);
    }
  }

  /** A digest context that signs with this key, owned by the scope: PSS for RSA where `pss`, and for RSA-PSS keys. */
  signer(scope: Scope, digest: Pointer, pss: boolean): Pointer {
    const ctx = scope.own(C.EVP_MD_CTX_new(), C.EVP_MD_CTX_free, "EVP_MD_CTX_new");
    const keyContext = mem(8);
    const own = this.kind === KIND.ed25519 ? null : digest;
    must(C.EVP_DigestSignInit(ctx, keyContext, own, null, this.pointer), "EVP_DigestSignInit");
    if (this.kind === KIND.rsaPss || (this.kind === KIND.rsa && pss))
      setPadding(pointed(keyContext), PADDING.pss, digest);
    return ctx;
  }

  /** The signature that belongs into a `.sig` file: SHA-512; RSASSA-PSS, ECDSA or Ed25519 as the key is. */
  sign(data: Uint8Array): Uint8Array {
    using scope = new Scope();
    const bytes = lasting(data);
    const ctx = this.signer(scope, C.EVP_sha512() as Pointer, true);
    const length = mem(8);
    must(C.EVP_DigestSign(ctx, null, length, bytes, bytes.length), "EVP_DigestSign");
    const into = mem(pointed(length) as number);
    must(C.EVP_DigestSign(ctx, into, length, bytes, bytes.length), "EVP_DigestSign");
    return into.subarray(0, pointed(length) as number);
  }

  [Symbol.dispose](): void {
    C.EVP_PKEY_free(this.pointer);
  }
}
