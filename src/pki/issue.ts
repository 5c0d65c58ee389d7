// Certificates and requests for them: the hierarchy of a development PKI, a device's own certificate, a soft token's.
// Extensions are written as openssl's configuration writes them (x509v3_config(5)).
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";
import { must, Scope, written } from "./crypto.ts";
import { type PrivateKey, string } from "./key.ts";

/** ["CN", "…"] pairs in their order, names as in openssl/objects.h. */
export type Name = readonly (readonly [type: string, value: string])[];
/** ["keyUsage", "critical,digitalSignature"] pairs. */
export type Extensions = readonly (readonly [name: string, value: string])[];

const MBSTRING_UTF8 = 0x1000; // openssl/asn1.h
const X509_V3 = 2;
/** Bytes of a serial number: positive and unguessable (RFC 5280, 4.1.2.2: at most 20). */
const SERIAL = 16;
/** sizeof(X509V3_CTX) is 64 in OpenSSL 3.0; it is ours to allocate. */
const CONTEXT = 128;

function nameOf(scope: Scope, name: Name): Pointer {
  const made = scope.own(C.X509_NAME_new(), C.X509_NAME_free, "X509_NAME_new");
  for (const [type, value] of name) {
    const bytes = lasting(Buffer.from(value));
    must(
      C.X509_NAME_add_entry_by_txt(made, string(type), MBSTRING_UTF8, bytes, bytes.length, -1, 0),
      `${type}=${JSON.stringify(value)}`,
    );
  }
  return made;
}

function extension(scope: Scope, context: Uint8Array | null, name: string, value: string): Pointer {
  const made = C.X509V3_EXT_nconf_nid(null, context, C.OBJ_sn2nid(string(name)), string(value));
  return scope.own(made, C.X509_EXTENSION_free, `extension ${name}=${value}`);
}

export interface Order {
  readonly subject: Name;
  /** Whose key is certified. */
  readonly key: PrivateKey;
  /** Who signs; absent: the key itself. */
  readonly issuer?: { readonly certificate: Uint8Array; readonly key: PrivateKey };
  readonly days: number;
  readonly extensions: Extensions;
}

/** A certificate as PEM, signed with SHA-256 (PSS where the issuer's key is for PSS only). */
export function certify(order: Order): Uint8Array {
  using scope = new Scope();
  const made = scope.own(C.X509_new(), C.X509_free, "X509_new");
  must(C.X509_set_version(made, X509_V3), "X509_set_version");
  const bytes = lasting(crypto.getRandomValues(new Uint8Array(SERIAL)));
  bytes[0]! = (bytes[0]! & 0x7f) | 0x40;
  const big = scope.own(C.BN_bin2bn(bytes, SERIAL, null), C.BN_free, "BN_bin2bn");
  const serial = scope.own(C.BN_to_ASN1_INTEGER(big, null), C.ASN1_INTEGER_free, "BN_to_ASN1_INTEGER");
  must(C.X509_set_serialNumber(made, serial), "X509_set_serialNumber");
  C.X509_gmtime_adj(C.X509_getm_notBefore(made), 0);
  C.X509_time_adj_ex(C.X509_getm_notAfter(made), order.days, 0, null);
  const subject = nameOf(scope, order.subject);
  must(C.X509_set_subject_name(made, subject), "X509_set_subject_name");
  must(C.X509_set_pubkey(made, order.key.pointer), "X509_set_pubkey");
  const issuer =
    order.issuer === undefined
      ? made
      : scope.own(
          C.PEM_read_bio_X509(scope.bytes(order.issuer.certificate), null, null, string("")),
          C.X509_free,
          "the issuer's certificate",
        );
  must(C.X509_set_issuer_name(made, C.X509_get_subject_name(issuer)), "X509_set_issuer_name");
  const context = mem(CONTEXT);
  C.X509V3_set_ctx(context, issuer, made, null, null, 0);
  for (const [name, value] of order.extensions)
    must(C.X509_add_ext(made, extension(scope, context, name, value), -1), `extension ${name}`);
  const by = order.issuer?.key ?? order.key;
  if (C.X509_sign_ctx(made, by.signer(scope, C.EVP_sha256() as Pointer, false)) <= 0)
    must(0, "X509_sign_ctx");
  return written((bio) => C.PEM_write_bio_X509(bio, made));
}

/** A certificate signing request (PKCS #10) as PEM, signed with SHA-256. */
export function request(subject: Name, key: PrivateKey, extensions: Extensions): Uint8Array {
  using scope = new Scope();
  const made = scope.own(C.X509_REQ_new(), C.X509_REQ_free, "X509_REQ_new");
  must(C.X509_REQ_set_version(made, 0), "X509_REQ_set_version");
  must(C.X509_REQ_set_subject_name(made, nameOf(scope, subject)), "X509_REQ_set_subject_name");
  must(C.X509_REQ_set_pubkey(made, key.pointer), "X509_REQ_set_pubkey");
  const list = scope.stack(extensions.map(([name, value]) => extension(scope, null, name, value)));
  must(C.X509_REQ_add_extensions(made, list), "X509_REQ_add_extensions");
  if (C.X509_REQ_sign_ctx(made, key.signer(scope, C.EVP_sha256() as Pointer, false)) <= 0)
    must(0, "X509_REQ_sign_ctx");
  return written((bio) => C.PEM_write_bio_X509_REQ(bio, made));
}
