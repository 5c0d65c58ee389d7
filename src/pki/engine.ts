// Private keys and certificates in a smartcard or an HSM, named by a PKCS #11 URI (RFC 7512): libcrypto's engine "pkcs11", which
// the original's tools ask as well. The key never comes here; what is to be signed goes there.
import { existsSync } from "node:fs";
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { address } from "../sys/encode.ts";
import { Struct } from "../sys/mem.ts";
import { must, reason, Scope, written } from "./crypto.ts";
import { PrivateKey, pointed, string } from "./key.ts";

/** openssl/crypto.h: OPENSSL_INIT_ENGINE_DYNAMIC. */
const ENGINE_DYNAMIC = 0x400;

export const isUri = (name: string): boolean => name.startsWith("pkcs11:");

/** The path of the module stands in the URI (`module-path=`), else the engine looks at PKCS11_MODULE_PATH and p11-kit. */
function parts(uri: string): { module: string | undefined; object: string } {
  const [path, query = ""] = uri.split("?", 2) as [string, string?];
  const words = query.split("&").filter(Boolean);
  const is = (word: string) => word.startsWith("module-path=");
  const module = words.find(is)?.slice("module-path=".length);
  try {
    decodeURIComponent(uri);
  } catch {
    throw new Error(`${uri}: a "%" without two hexadecimal digits of UTF-8 after it`);
  }
  const others = words.filter((word) => !is(word));
  return {
    module: module === undefined ? undefined : decodeURIComponent(module),
    object: others.length > 0 ? `${path}?${others.join("&")}` : path,
  };
}

/** The engine, with the module of the URI, ready to be asked for what the rest of the URI names. `pin`: empty, where the URI names a
 * source of it or the token asks for none. The caller frees it; what it loaded keeps it. */
function asked(uri: string, pin: Uint8Array): { engine: Pointer; object: string } {
  const { module, object } = parts(uri);
  if (module !== undefined && !existsSync(module)) throw new Error(`${module}: no such PKCS #11 module`);
  must(C.OPENSSL_init_crypto(ENGINE_DYNAMIC, null), "OPENSSL_init_crypto");
  const engine = C.ENGINE_by_id(string("pkcs11"));
  if (engine === null)
    throw new Error(
      `${object}: libcrypto has no engine pkcs11 (Debian: libengine-pkcs11-openssl): ${reason()}`,
    );
  const tell = (name: string, value: Uint8Array) => {
    const terminated = Buffer.concat([value, Buffer.alloc(1)]);
    const done = C.ENGINE_ctrl_cmd_string(engine, string(name), terminated, 0);
    terminated.fill(0);
    must(done, `engine pkcs11: ${name}`);
  };
  if (module !== undefined) tell("MODULE_PATH", Buffer.from(module));
  if (pin.length > 0) tell("PIN", pin);
  if (C.ENGINE_init(engine) !== 1) throw new Error(`${object}: no token can be asked: ${reason()}`);
  return { engine, object };
}

export function tokenKey(uri: string, pin: Uint8Array): PrivateKey {
  const { engine, object } = asked(uri, pin);
  const found = C.ENGINE_load_private_key(engine, string(object), null, null);
  C.ENGINE_free(engine); // the key keeps it
  if (found === null) throw new Error(`${object}: no such private key, or not with this PIN: ${reason()}`);
  return new PrivateKey(found as Pointer);
}

/** In PEM. The PIN is asked for by tokens whose certificates are private. */
export function tokenCertificate(uri: string, pin: Uint8Array): Uint8Array {
  const { engine, object } = asked(uri, pin);
  const name = string(object);
  const wanted = new Struct(16).u64(address(name)).u64(0).bytes; // libp11, eng_back.c: s_slot_cert_id, cert
  const done = C.ENGINE_ctrl_cmd(engine, string("LOAD_CERT_CTRL"), 0, wanted, null, 0);
  const certificate = pointed(new Uint8Array(wanted.buffer, 8, 8).slice());
  C.ENGINE_free(engine);
  if (done !== 1 || certificate === 0) throw new Error(`${object}: no such certificate: ${reason()}`);
  using scope = new Scope();
  const owned = scope.own(certificate, C.X509_free, object);
  return written((bio) => C.PEM_write_bio_X509(bio, owned));
}
