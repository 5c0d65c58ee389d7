// CRL files and OCSP responses that somebody provided (the device fetches none: it verifies without a network). Each
// certificate of a chain for which one of them speaks must be good by it; for those of which none speaks, nothing is known.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { address } from "../sys/encode.ts";
import { lasting, mem } from "../sys/mem.ts";
import { chainTo, type Moment, NO_CHECK_TIME, subject } from "./certificates.ts";
import { must, reason, type Scope } from "./crypto.ts";

/** A file of the folder `revocation/`: a CRL (PEM or DER) or an OCSP response (DER). */
export interface Revocation {
  readonly name: string;
  readonly kind: "crl" | "ocsp";
  readonly bytes: Uint8Array;
}

/** A CRL of some ten thousand entries. */
export const REVOCATION_MAX = 4 * 1024 * 1024;

function readCrl(scope: Scope, { name, bytes }: Revocation): Pointer {
  const bio = scope.bytes(bytes);
  const pem = bytes[0] === 0x2d; // "-----BEGIN"; DER begins with 0x30
  const crl = pem
    ? C.PEM_read_bio_X509_CRL(bio, null, null, Buffer.from("\0"))
    : C.d2i_X509_CRL_bio(bio, null);
  return scope.own(crl, C.X509_CRL_free, `${name}: it is no CRL`);
}

function readOcsp(scope: Scope, { name, bytes }: Revocation): Pointer {
  const der = lasting(bytes.length === 0 ? mem(1) : bytes);
  const at = mem(8);
  new DataView(at.buffer).setBigUint64(0, address(der), true);
  const response = C.d2i_OCSP_RESPONSE(null, at, bytes.length);
  scope.own(response, C.OCSP_RESPONSE_free, `${name}: it is no OCSP response`);
  if (C.OCSP_response_status(response) !== 0)
    throw new Error(`${name}: the responder did not answer "successful"`);
  return scope.own(
    C.OCSP_response_get1_basic(response),
    C.OCSP_BASICRESP_free,
    `${name}: not a basic OCSP response`,
  );
}

/** openssl/ocsp.h: V_OCSP_CERTSTATUS_…. */
const [GOOD, REVOKED] = [0, 1];
/** Seconds by which clocks may differ. */
const SKEW = 300;

/** What a response says of a certificate; undefined: nothing. A bad response about it is a reason, too. */
function ocspSays(
  scope: Scope,
  response: Pointer,
  certificate: Pointer,
  issuer: Pointer,
  chain: readonly Pointer[],
  roots: readonly Pointer[],
  { ignoreTime }: Moment,
): string | undefined {
  const [status, why, revokedAt, thisUpdate, nextUpdate] = [mem(4), mem(4), mem(8), mem(8), mem(8)];
  const about = [C.EVP_sha1(), C.EVP_sha256()].some((digest) => {
    const id = scope.own(
      C.OCSP_cert_to_id(digest, certificate, issuer),
      C.OCSP_CERTID_free,
      "OCSP_cert_to_id",
    );
    return C.OCSP_resp_find_status(response, id, status, why, revokedAt, thisUpdate, nextUpdate) === 1;
  });
  if (!about) return undefined;
  const store = scope.own(C.X509_STORE_new(), C.X509_STORE_free, "X509_STORE_new");
  for (const root of roots) must(C.X509_STORE_add_cert(store, root), "X509_STORE_add_cert");
  if (ignoreTime) must(C.X509_STORE_set_flags(store, NO_CHECK_TIME), "X509_STORE_set_flags");
  C.ERR_clear_error();
  if (C.OCSP_basic_verify(response, scope.stack(chain), store, 0) !== 1)
    return `the response's signature does not hold: ${reason()}`;
  const time = (at: Uint8Array): Pointer =>
    Number(new DataView(at.buffer as ArrayBuffer).getBigUint64(0, true)) as Pointer;
  if (!ignoreTime && C.OCSP_check_validity(time(thisUpdate), time(nextUpdate), SKEW, -1) !== 1)
    return `the response is not valid now: ${reason()}`;
  const code = new DataView(status.buffer).getInt32(0, true);
  if (code === GOOD) return undefined;
  return code === REVOKED ? "certificate revoked" : "the responder does not know it";
}

/**
 * Why one of the chain's certificates is not good by what was provided; undefined: nothing speaks against them. A
 * provided file that cannot be read is a reason as well: it may be the one that names the certificate.
 *
 * @param chain leaf first, its root last
 */
export function revoked(
  scope: Scope,
  chain: readonly Pointer[],
  roots: readonly Pointer[],
  provided: readonly Revocation[],
  moment: Moment,
): string | undefined {
  const read = { crl: [] as Pointer[], ocsp: [] as [name: string, response: Pointer][] };
  try {
    for (const file of provided) {
      if (file.bytes.length > REVOCATION_MAX)
        return `${file.name}: ${file.bytes.length} bytes, at most ${REVOCATION_MAX} are read`;
      if (file.kind === "crl") read.crl.push(readCrl(scope, file));
      else read.ocsp.push([file.name, readOcsp(scope, file)]);
    }
  } catch (e) {
    return e instanceof Error ? e.message : String(e);
  }
  for (const [i, certificate] of chain.slice(0, -1).entries()) {
    const issuer = chain[i + 1]!;
    const its = read.crl.filter(
      (crl) => C.X509_NAME_cmp(C.X509_CRL_get_issuer(crl), C.X509_get_subject_name(issuer)) === 0,
    );
    if (its.length > 0) {
      const checked = chainTo(scope, certificate, chain.slice(i + 1), roots, moment, its);
      if (!Array.isArray(checked)) return checked.line.replace(/^certificate 1 /, `certificate ${i + 1} `);
    }
    for (const [name, response] of read.ocsp) {
      const why = ocspSays(scope, response, certificate, issuer, chain, roots, moment);
      if (why) return `certificate ${i + 1} of the chain (${subject(certificate)}): ${why} (${name})`;
    }
  }
  return undefined;
}
