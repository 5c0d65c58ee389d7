// PKCS #12 files as the original's soft tokens are: a private key and its certificate behind a password. Written with
// PBES2 (PBKDF2 with HMAC-SHA256, AES-256-CBC) and a MAC with SHA-256; the certificate, which is no secret, in clear, so
// that opening costs one key derivation for the MAC and one for the key. `openssl pkcs12` reads and writes the same.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";
import { Secret } from "../sys/secret.ts";
import { must, reasonOf, Scope, written } from "./crypto.ts";
import { atOnce, beside, type Deriving } from "./derive.ts";
import { KIND, PrivateKey, pointed, string } from "./key.ts";

/** Of both key derivations: OWASP's figure of 2023 for PBKDF2 with HMAC-SHA256. The original's have 2048. */
export const ITERATIONS = 600_000;
/** A file that asks for more would keep whoever opens it for seconds, on a small machine for minutes. */
const ITERATIONS_MAX = 2_000_000;
/** A key of RSA-8192 and a certificate chain fit. */
export const PKCS12_MAX = 64 * 1024;

/** openssl/pkcs12err.h, openssl/err.h. */
const [ERR_LIB_PKCS12, MAC_VERIFY_FAILURE] = [35n, 113n];
/** openssl/pkcs12.h: the default cipher for the key, none for the certificate. */
const [DEFAULT, NONE] = [0, -1];

export class WrongPassword extends Error {
  override readonly name = "WrongPassword";
}

export interface Opened {
  readonly key: PrivateKey;
  /** PEM. */
  readonly certificate: Uint8Array;
  /** Of its MAC: what a guess costs. */
  readonly iterations: number;
}

/** For libcrypto, which wants an end of the string. */
function terminated(password: Secret): Secret {
  if (password.lend((bytes) => bytes.includes(0))) throw new Error("a password with a NUL byte");
  const made = Secret.empty(password.length + 1);
  password.lend((from) => made.lend((to) => to.set(from)));
  return made;
}

function iterationsOf(p12: Pointer): number {
  const out = mem(8);
  C.PKCS12_get0_mac(null, null, null, out, p12);
  const integer = pointed(out);
  if ((integer as number) === 0) return 1; // the default of RFC 7292
  const value = mem(8);
  must(C.ASN1_INTEGER_get_int64(value, integer), "the number of iterations");
  const n = new DataView(value.buffer).getBigInt64(0, true);
  if (n < 1n || n > BigInt(ITERATIONS_MAX))
    throw new Error(`${n} iterations, at most ${ITERATIONS_MAX} are done`);
  return Number(n);
}

/** Takes as long as the file asks for: 0.2 s on a computer of today with our number of iterations. */
export const openPkcs12 = (what: string, bytes: Uint8Array, password: Secret): Opened =>
  atOnce(opening(what, bytes, password));
/** The same beside the event loop. */
export const openPkcs12Beside = (what: string, bytes: Uint8Array, password: Secret): Promise<Opened> =>
  beside(opening(what, bytes, password));

function* opening(what: string, bytes: Uint8Array, password: Secret): Deriving<Opened> {
  try {
    if (bytes.length > PKCS12_MAX) throw new Error(`${bytes.length} bytes, at most ${PKCS12_MAX}`);
    using scope = new Scope();
    using pass = terminated(password);
    C.ERR_clear_error();
    const p12 = scope.own(C.d2i_PKCS12_bio(scope.bytes(bytes), null), C.PKCS12_free, "not PKCS #12");
    const iterations = iterationsOf(p12);
    const [keyAt, certificateAt] = [mem(8), mem(8)];
    const args = [p12, pass, keyAt, certificateAt, null];
    const { result, error } = yield { call: "PKCS12_parse", args };
    if (result !== 1) {
      if (((error >> 23n) & 0xffn) === ERR_LIB_PKCS12 && (error & 0x7fffffn) === MAC_VERIFY_FAILURE)
        throw new WrongPassword("the password is wrong");
      throw new Error(reasonOf(error));
    }
    using unfinished = new DisposableStack();
    const certificate = pointed(certificateAt);
    if ((certificate as number) !== 0) unfinished.defer(() => C.X509_free(certificate));
    if ((pointed(keyAt) as number) === 0) throw new Error("no private key in it");
    const key = unfinished.use(new PrivateKey(pointed(keyAt)));
    if ((certificate as number) === 0) throw new Error("no certificate for its key in it");
    if (key.kind !== KIND.rsa) throw new Error("its key is not for RSA");
    const pem = written((bio) => C.PEM_write_bio_X509(bio, certificate));
    C.X509_free(certificate);
    unfinished.move();
    return { key, certificate: pem, iterations };
  } catch (cause) {
    if (cause instanceof WrongPassword) throw cause;
    throw new Error(what, { cause });
  }
}

/** As long as two key derivations take. */
export const makePkcs12 = (...of: Parameters<typeof making>): Uint8Array => atOnce(making(...of));
/** The same beside the event loop. */
export const makePkcs12Beside = (...of: Parameters<typeof making>): Promise<Uint8Array> =>
  beside(making(...of));

function* making(
  name: string,
  key: PrivateKey,
  certificate: Uint8Array,
  password: Secret,
): Deriving<Uint8Array> {
  using scope = new Scope();
  using pass = terminated(password);
  const x509 = scope.own(
    C.PEM_read_bio_X509(scope.bytes(certificate), null, null, string("")) as Pointer | null,
    C.X509_free,
    "certificate",
  );
  const friendly = lasting(Buffer.from(`${name}\0`));
  const { result, error } = yield {
    call: "PKCS12_create",
    args: [pass, friendly, key.pointer, x509, null, DEFAULT, NONE, ITERATIONS, ITERATIONS, 0],
  };
  if (result === null) throw new Error(`PKCS12_create: ${reasonOf(error)}`);
  const p12 = scope.own(result as Pointer, C.PKCS12_free, "PKCS12_create");
  return written((bio) => C.i2d_PKCS12_bio(bio, p12));
}
