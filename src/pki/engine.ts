// Private keys in a smartcard or an HSM, named by a PKCS #11 URI (RFC 7512): libcrypto's engine "pkcs11", which the original's
// tools ask as well. The key never comes here; what is to be signed goes there.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { must, reason } from "./crypto.ts";
import { PrivateKey, string } from "./key.ts";

/** openssl/crypto.h: OPENSSL_INIT_ENGINE_DYNAMIC. */
const ENGINE_DYNAMIC = 0x400;

export const isUri = (key: string): boolean => key.startsWith("pkcs11:");

/** The path of the module stands in the URI (`module-path=`), else the engine looks at PKCS11_MODULE_PATH and p11-kit. */
function parts(uri: string): { module: string | undefined; key: string } {
  const [path, query = ""] = uri.split("?", 2) as [string, string?];
  const words = query.split("&").filter(Boolean);
  const is = (word: string) => word.startsWith("module-path=");
  const module = words.find(is)?.slice("module-path=".length);
  const others = words.filter((word) => !is(word));
  return {
    module: module === undefined ? undefined : decodeURIComponent(module),
    key: others.length > 0 ? `${path}?${others.join("&")}` : path,
  };
}

/** `pin`: empty, where the URI names a source of it or the token asks for none. */
export function tokenKey(uri: string, pin: Uint8Array): PrivateKey {
  const { module, key } = parts(uri);
  must(C.OPENSSL_init_crypto(ENGINE_DYNAMIC, null), "OPENSSL_init_crypto");
  const engine = C.ENGINE_by_id(string("pkcs11"));
  if (engine === null)
    throw new Error(`${key}: libcrypto has no engine pkcs11 (Debian: libengine-pkcs11-openssl): ${reason()}`);
  const tell = (name: string, value: Uint8Array) => {
    const terminated = Buffer.concat([value, Buffer.alloc(1)]);
    const done = C.ENGINE_ctrl_cmd_string(engine, string(name), terminated, 0);
    terminated.fill(0);
    must(done, `engine pkcs11: ${name}`);
  };
  if (module !== undefined) tell("MODULE_PATH", Buffer.from(module));
  if (pin.length > 0) tell("PIN", pin);
  if (C.ENGINE_init(engine) !== 1) throw new Error(`${key}: no token can be asked: ${reason()}`);
  const found = C.ENGINE_load_private_key(engine, string(key), null, null);
  C.ENGINE_free(engine); // the key keeps it
  if (found === null) throw new Error(`${key}: no such private key, or not with this PIN: ${reason()}`);
  return new PrivateKey(found as Pointer);
}
