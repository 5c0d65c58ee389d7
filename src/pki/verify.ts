// Whose signature is it, and may we believe it? The one place that decides: scd asks it for the manager, `cml guestos
// verify` for people. X.509 itself (chains, constraints, times, revocation) is libcrypto's; what is ours is the policy:
// which roots, which keys, which paddings, which uses (spec/security.md 2.3; docs/decisions/pki.md).
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";
import { BadCertificate, type Broken, chainTo, type Moment, readBundle, subject } from "./certificates.ts";
import { must, reason, Scope } from "./crypto.ts";
import { KIND, PADDING, pointed, setPadding } from "./key.ts";
import { type Revocation, revoked } from "./revocation.ts";

export type { Revocation };

/** A file of roots, by a name for people. */
export interface Anchor {
  readonly name: string;
  readonly pem: Uint8Array;
}

/** Whom this device believes. */
export interface Trust {
  /** `ssig_rootca.cert` and whatever is registered in `ca/`: signed software. */
  readonly software: readonly Anchor[];
  /** `localca_rootca.cert`: locally signed software. */
  readonly local: readonly Anchor[];
  /** CRL files and OCSP responses that were provided. */
  readonly revocation: readonly Revocation[];
}

export interface Signed {
  readonly level: "SIGNED" | "LOCALLY_SIGNED";
  /** The signer's subject, for logs. */
  readonly signer: string;
  /** The root's subject. */
  readonly root: string;
}

/** The answer no, in one line; `part` says which of the two files is to blame. */
export class Refused extends Error {
  override readonly name = "Refused";
  constructor(
    readonly part: "certificate" | "signature",
    line: string,
  ) {
    super(line);
  }
}

/** The signature of RSA-16384, the largest key that libcrypto takes. */
export const SIGNATURE_MAX = 2048;

/** openssl/x509v3.h: bits of keyUsage (RFC 5280, 4.2.1.3) and of libcrypto's view of extKeyUsage. */
const KU_DIGITAL_SIGNATURE = 0x80;
const XKU_CODE_SIGN = 0x8;
const XKU_ANY = 0x100;
const ABSENT = 0xffffffff;

/** openssl/x509_vfy.h: no way to a root; another store may know one. */
const NO_ROOT: ReadonlySet<number> = new Set([2, 18, 19, 20, 21]);

/** A signer that says what its key is for must say signing; of what, if it says so, must include code. */
function fitToSign(signer: Pointer): void {
  const usage = C.X509_get_key_usage(signer);
  if (usage !== ABSENT && (usage & KU_DIGITAL_SIGNATURE) === 0)
    throw new Refused(
      "certificate",
      `signer ${subject(signer)}: its key usage does not include digitalSignature`,
    );
  const extended = C.X509_get_extended_key_usage(signer);
  if (extended !== ABSENT && (extended & (XKU_CODE_SIGN | XKU_ANY)) === 0)
    throw new Refused(
      "certificate",
      `signer ${subject(signer)}: its extended key usage does not include codeSigning`,
    );
}

function chainOf(scope: Scope, bundle: readonly Pointer[], trust: Trust, moment: Moment) {
  const [signer, ...between] = bundle as [Pointer, ...Pointer[]];
  let broken: Broken | undefined;
  for (const [level, anchors] of [
    ["SIGNED", trust.software],
    ["LOCALLY_SIGNED", trust.local],
  ] as const) {
    const roots = anchors.flatMap((a) => readBundle(scope, a.name, a.pem));
    if (roots.length === 0) continue;
    const chain = chainTo(scope, signer, between, roots, moment);
    if (Array.isArray(chain)) return { level, chain, roots };
    if (!broken || NO_ROOT.has(broken.error)) broken = chain;
  }
  throw new Refused("certificate", broken?.line ?? "this device has no root certificate to compare with");
}

const CURVES: ReadonlySet<string> = new Set(["prime256v1", "secp384r1"]);

function curve(key: Pointer): string {
  const into = mem(64);
  must(C.EVP_PKEY_get_group_name(key, into, into.length, null), "EVP_PKEY_get_group_name");
  return new TextDecoder().decode(into.subarray(0, into.indexOf(0)));
}

/** One try with one padding (RSA) or without (the others). */
function holds(key: Pointer, data: Uint8Array, signature: Uint8Array, padding?: number): boolean {
  using scope = new Scope();
  const ctx = scope.own(C.EVP_MD_CTX_new(), C.EVP_MD_CTX_free, "EVP_MD_CTX_new");
  const keyContext = mem(8);
  const digest = C.EVP_PKEY_get_base_id(key) === KIND.ed25519 ? null : C.EVP_sha512();
  must(C.EVP_DigestVerifyInit(ctx, keyContext, digest, null, key), "the signer's key");
  if (padding !== undefined) setPadding(pointed(keyContext), padding, C.EVP_sha512() as Pointer);
  const held = C.EVP_DigestVerify(ctx, signature, signature.length, data, data.length) === 1;
  C.ERR_clear_error();
  return held;
}

/** Is this the certificate's signature over the data? Nothing is asked about the certificate itself. */
export function matches(signer: Pointer, data: Uint8Array, signature: Uint8Array): boolean {
  try {
    checkSignature(signer, data, signature);
    return true;
  } catch (e) {
    if (e instanceof Refused) return false;
    throw e;
  }
}

/** SHA-512 with PSS (salt as long as the digest) for both kinds of RSA key, PKCS #1 v1.5 for the plain kind as well. */
function checkSignature(signer: Pointer, data: Uint8Array, signature: Uint8Array): void {
  const refuse = (why: string) => new Refused("signature", `signature by ${subject(signer)}: ${why}`);
  if (signature.length === 0) throw refuse("it is empty");
  if (signature.length > SIGNATURE_MAX)
    throw refuse(`${signature.length} bytes, at most ${SIGNATURE_MAX} are read`);
  const key = C.X509_get0_pubkey(signer);
  if (key === null) throw refuse(`the certificate's key cannot be read: ${reason()}`);
  const kind = C.EVP_PKEY_get_base_id(key);
  const [bytes, of] = [
    lasting(data.length === 0 ? mem(1) : data).subarray(0, data.length),
    lasting(signature),
  ];
  const fits = (...paddings: (number | undefined)[]) => paddings.some((p) => holds(key, bytes, of, p));
  let good: boolean;
  try {
    if (kind === KIND.rsa) good = fits(PADDING.pss, PADDING.pkcs1);
    else if (kind === KIND.rsaPss) good = fits(PADDING.pss);
    else if (kind === KIND.ed25519) good = fits(undefined);
    else if (kind === KIND.ec) {
      const name = curve(key);
      if (!CURVES.has(name)) throw refuse(`curve ${name} is not one of ${[...CURVES].join(", ")}`);
      good = fits(undefined);
    } else
      throw refuse(
        "a key of this kind is not supported: RSA, RSASSA-PSS, ECDSA P-256 and P-384, Ed25519 are",
      );
  } catch (e) {
    if (e instanceof Refused) throw e;
    throw refuse(e instanceof Error ? e.message : String(e));
  }
  if (!good) throw refuse("it does not match the data");
}

/**
 * Judge a detached signature.
 *
 * @param data what was signed, the exact bytes
 * @param signature the raw signature (`.sig`)
 * @param bundle PEM (`.cert`): the signer first, then untrusted intermediates in any order
 * @throws {Refused} with the certificate and the check that failed
 */
export function verify(
  data: Uint8Array,
  signature: Uint8Array,
  bundle: Uint8Array,
  trust: Trust,
  moment: Moment,
): Signed {
  using scope = new Scope();
  let certificates: Pointer[];
  try {
    certificates = readBundle(scope, "signer's certificates", bundle);
  } catch (e) {
    if (e instanceof BadCertificate) throw new Refused("certificate", e.message);
    throw e;
  }
  const signer = certificates[0]!;
  const { level, chain, roots } = chainOf(scope, certificates, trust, moment);
  fitToSign(signer);
  const line = revoked(scope, chain, roots, trust.revocation, moment);
  if (line) throw new Refused("certificate", line);
  checkSignature(signer, data, signature);
  return { level, signer: subject(signer), root: subject(chain.at(-1)!) };
}
