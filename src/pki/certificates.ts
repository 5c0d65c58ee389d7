// Certificates as people write them (PEM bundles), and how we speak of them.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { members, must, printed, reason, Scope } from "./crypto.ts";
import type { PrivateKey } from "./key.ts";

/** A signer, its intermediates and a root: four in every known hierarchy. */
export const CERTIFICATES_MAX = 16;
/** Sixteen certificates with RSA-8192 keys and signatures fit. */
export const BUNDLE_MAX = 256 * 1024;

/** openssl/pemerr.h: nothing more that looks like PEM. */
const PEM_R_NO_START_LINE = 108;
/** openssl/err.h: the low 23 bits of an error are its reason. */
const REASON = 0x7fffffn;
/** An empty passphrase, so that nobody is asked for one (PEM_read_bio_X509(3)). */
const NO_PASSPHRASE = Buffer.from("\0");

/** What stands in a PEM file that is not there or not readable. */
export class BadCertificate extends Error {
  override readonly name = "BadCertificate";
}

/** Every certificate of a PEM file, in its order; owned by the scope. Text between them is skipped. */
export function readBundle(scope: Scope, what: string, pem: Uint8Array): Pointer[] {
  if (pem.length > BUNDLE_MAX)
    throw new BadCertificate(`${what}: ${pem.length} bytes, at most ${BUNDLE_MAX} are read`);
  const bio = scope.bytes(pem);
  const found: Pointer[] = [];
  for (;;) {
    C.ERR_clear_error();
    const next = C.PEM_read_bio_X509(bio, null, null, NO_PASSPHRASE);
    if (next === null) {
      const done = Number(BigInt(C.ERR_peek_last_error()) & REASON) === PEM_R_NO_START_LINE;
      const why = reason();
      if (!done) throw new BadCertificate(`${what}: certificate ${found.length + 1} cannot be read: ${why}`);
      break;
    }
    found.push(scope.own(next, C.X509_free, what));
    if (found.length > CERTIFICATES_MAX)
      throw new BadCertificate(`${what}: more than ${CERTIFICATES_MAX} certificates`);
  }
  if (found.length === 0) throw new BadCertificate(`${what}: no certificate in it`);
  return found;
}

/** openssl/x509.h: XN_FLAG_RFC2253. */
const RFC2253 = 0x1110317;

/** "CN=…,O=…" (RFC 2253, control characters and whatever is not ASCII escaped). */
export const subject = (certificate: Pointer): string =>
  printed((bio) => C.X509_NAME_print_ex(bio, C.X509_get_subject_name(certificate), 0, RFC2253));

/** Is the first certificate of this PEM file for this key? */
export function isFor(certificate: Uint8Array, key: PrivateKey): boolean {
  using scope = new Scope();
  const [first] = readBundle(scope, "certificate", certificate);
  const same = C.X509_check_private_key(first!, key.pointer) === 1;
  C.ERR_clear_error();
  return same;
}

/** "Nov 21 16:00:00 2026 GMT". */
export const notBefore = (certificate: Pointer): string =>
  printed((bio) => C.ASN1_TIME_print(bio, C.X509_get0_notBefore(certificate)));
export const notAfter = (certificate: Pointer): string =>
  printed((bio) => C.ASN1_TIME_print(bio, C.X509_get0_notAfter(certificate)));

/** openssl/x509_vfy.h. */
export const NO_CHECK_TIME = 0x200000;
const CRL_CHECK = 0x4;
/** At least 112 bits of security: RSA-2048, SHA-256, P-224 (SSL_CTX_set_security_level(3), level 2). */
const AUTH_LEVEL = 2;
/** Intermediates between a signer and its root. */
const DEPTH = 8;

export interface Moment {
  /** A device that is not provisioned may have no clock yet: spec/security.md 2.3, verify_ignore_time. */
  readonly ignoreTime: boolean;
}

/** Why a chain does not hold: which certificate, which check. */
export interface Broken {
  /** X509_V_ERR_… of openssl/x509_vfy.h. */
  readonly error: number;
  readonly line: string;
}

/** openssl/x509_vfy.h. */
const [NOT_YET_VALID, HAS_EXPIRED] = [9, 10];

/**
 * Build a chain from `leaf` over `between` to one of `roots`, which must be self-signed. Returns it, leaf first (the
 * scope owns what it needs), or why there is none. With `crls`, the leaf's issuer must have a valid one among them
 * and it must not name the leaf.
 */
export function chainTo(
  scope: Scope,
  leaf: Pointer,
  between: readonly Pointer[],
  roots: readonly Pointer[],
  { ignoreTime }: Moment,
  crls: readonly Pointer[] = [],
): Pointer[] | Broken {
  const store = scope.own(C.X509_STORE_new(), C.X509_STORE_free, "X509_STORE_new");
  for (const root of roots) must(C.X509_STORE_add_cert(store, root), "X509_STORE_add_cert");
  for (const crl of crls) must(C.X509_STORE_add_crl(store, crl), "X509_STORE_add_crl");
  const ctx = scope.own(C.X509_STORE_CTX_new(), C.X509_STORE_CTX_free, "X509_STORE_CTX_new");
  must(C.X509_STORE_CTX_init(ctx, store, leaf, scope.stack(between)), "X509_STORE_CTX_init");
  const parameters = C.X509_STORE_CTX_get0_param(ctx);
  const flags = (ignoreTime ? NO_CHECK_TIME : 0) | (crls.length > 0 ? CRL_CHECK : 0);
  must(C.X509_VERIFY_PARAM_set_flags(parameters, flags), "X509_VERIFY_PARAM_set_flags");
  C.X509_VERIFY_PARAM_set_depth(parameters, DEPTH);
  C.X509_VERIFY_PARAM_set_auth_level(parameters, AUTH_LEVEL);
  const good = C.X509_verify_cert(ctx) === 1;
  C.ERR_clear_error();
  if (good) return members(C.X509_STORE_CTX_get0_chain(ctx) as Pointer);

  const error = C.X509_STORE_CTX_get_error(ctx);
  const at = C.X509_STORE_CTX_get_current_cert(ctx);
  const depth = C.X509_STORE_CTX_get_error_depth(ctx);
  let why = String(C.X509_verify_cert_error_string(error));
  if (at !== null && error === HAS_EXPIRED) why += ` on ${notAfter(at)}`;
  if (at !== null && error === NOT_YET_VALID) why += ` before ${notBefore(at)}`;
  const which = at === null ? "" : ` (${subject(at)})`;
  return { error, line: `certificate ${depth + 1} of the chain${which}: ${why}` };
}
