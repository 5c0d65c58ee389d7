// Smart cards and hardware security modules, through the PKCS #11 module of their maker (or OpenSC's). A key that was made
// in one never leaves it: it signs, wraps and unwraps there.
//
//   const module = Pkcs11Module.open("/usr/lib/…/opensc-pkcs11.so");
//   const slot = module.token((t) => t.serial === "DENK0100123");
//   using session = module.session(slot);
//   session.login(pin);
//   const [key] = session.find({ class: "private", label: "ssig" });
//   const signature = session.sign(key, "rsa-pss-sha512", data);
import { type Pkcs11, pkcs11 } from "../../ffi/pkcs11.ts";
import { address } from "../sys/encode.ts";
import { lasting, mem, Struct } from "../sys/mem.ts";
import type { Secret } from "../sys/secret.ts";
import { WrongPassword } from "./pkcs12.ts";

/** pkcs11t.h. */
const CKR = {
  5: "general error",
  6: "function failed",
  19: "attribute value invalid",
  50: "the device was removed",
  112: "mechanism invalid",
  130: "object handle invalid",
  160: "the PIN is wrong",
  162: "the PIN is too short or too long",
  164: "the PIN is locked",
  179: "session handle invalid",
  224: "there is no token",
  257: "not logged in",
  272: "the wrapped key is invalid",
  274: "the wrapped key has a wrong length",
} as const satisfies Record<number, string>;
const [PIN_INCORRECT, PIN_LOCKED, ALREADY_INITIALIZED, ALREADY_LOGGED_IN] = [0xa0, 0xa4, 0x191, 0x100];
const GONE: ReadonlySet<number> = new Set([0x30, 0x32, 0xb3, 0xe0, 0xe1]);
const [SERIAL_SESSION, RW_SESSION, USER] = [4n, 2n, 1];

const CLASS = { certificate: 1, public: 2, private: 3, secret: 4 } as const;
const KEY_TYPE = { rsa: 0, ec: 3, generic: 0x10, aes: 0x1f } as const;
const A = {
  class: 0x0,
  token: 0x1,
  private: 0x2,
  label: 0x3,
  value: 0x11,
  keyType: 0x100,
  id: 0x102,
  sensitive: 0x103,
  wrap: 0x106,
  unwrap: 0x107,
  valueLength: 0x161,
  extractable: 0x162,
} as const;
/** A key that is wrapped or was unwrapped: only for the session, and its value can be read. */
const PASSING = [
  [A.class, CLASS.secret],
  [A.keyType, KEY_TYPE.generic],
  [A.token, false],
  [A.private, true],
  [A.sensitive, false],
  [A.extractable, true],
] as const;
const AES_KEY_GEN = 0x1080;
/** RFC 3394. */
const AES_KEY_WRAP = 0x2109;
/** Each with its parameter: CK_RSA_PKCS_PSS_PARAMS (hash, MGF1 of the same, salt as long), or none. */
const SIGNING = {
  "rsa-pss-sha512": [0x45, [0x270, 4, 64]],
  "rsa-pkcs1-sha512": [0x42, []],
  "ecdsa-sha512": [0x1046, []],
  /** Over a digest that the caller has made; for tokens that cannot hash. */
  ecdsa: [0x1041, []],
} as const satisfies Record<string, readonly [number, readonly number[]]>;
export type Signing = keyof typeof SIGNING;

const SLOTS_MAX = 64;
const OBJECTS_MAX = 256;
const SIGNATURE_MAX = 2048;
const VALUE_MAX = 64 * 1024;

/** The token is not there any more. */
export class TokenGone extends Error {
  override readonly name = "TokenGone";
}
/** It takes no PIN any more, until its owner unblocks it. */
export class PinLocked extends Error {
  override readonly name = "PinLocked";
}
export class Pkcs11Error extends Error {
  override readonly name = "Pkcs11Error";
  constructor(
    readonly code: number,
    what: string,
  ) {
    super(`${what}: ${(CKR as Record<number, string>)[code] ?? `CKR 0x${code.toString(16)}`}`);
  }
}

function must(result: number | bigint, what: string): void {
  const code = Number(result);
  if (code === 0) return;
  const error = new Pkcs11Error(code, what);
  if (code === PIN_INCORRECT) throw new WrongPassword(error.message);
  if (code === PIN_LOCKED) throw new PinLocked(error.message);
  if (GONE.has(code)) throw new TokenGone(error.message);
  throw error;
}

const ulong = (n: number | bigint): Uint8Array<ArrayBuffer> => new Struct(8).u64(n).bytes;
const numberIn = (memory: Uint8Array<ArrayBuffer>): number =>
  Number(new DataView(memory.buffer).getBigUint64(0, true));

type Value = boolean | number | string | Uint8Array;

/** CK_ATTRIBUTE[]; the caller keeps all of it alive through the call. */
function template(attributes: readonly (readonly [type: number, value: Value])[]): {
  bytes: Uint8Array;
  count: number;
  keep: unknown;
} {
  const values = attributes.map(([, v]) => {
    if (typeof v === "boolean") return lasting(new Uint8Array([v ? 1 : 0]));
    if (typeof v === "number") return ulong(v);
    return typeof v === "string" ? lasting(Buffer.from(v)) : v;
  });
  const s = new Struct(Math.max(24 * attributes.length, 1));
  attributes.forEach(([type], i) => {
    s.u64(type)
      .u64(values[i]!.length > 0 ? address(values[i]!) : 0n)
      .u64(values[i]!.length);
  });
  return { bytes: s.bytes, count: attributes.length, keep: values };
}

/** CK_MECHANISM, and what it points to. */
function mechanism(type: number, parameter: readonly number[] = []): { bytes: Uint8Array; keep: unknown } {
  const values = new Struct(Math.max(8 * parameter.length, 8));
  for (const p of parameter) values.u64(p);
  const size = 8 * parameter.length;
  const s = new Struct(24)
    .u64(type)
    .u64(size > 0 ? address(values.bytes) : 0n)
    .u64(size);
  return { bytes: s.bytes, keep: values };
}

export interface TokenInfo {
  readonly slot: number;
  readonly label: string;
  readonly manufacturer: string;
  readonly serial: string;
}

export interface Wanted {
  readonly class: keyof typeof CLASS;
  readonly label?: string;
  readonly id?: Uint8Array;
}

const opened = new Map<string, Pkcs11Module>();

export class Pkcs11Module implements Disposable {
  private constructor(
    readonly path: string,
    readonly functions: Pkcs11,
  ) {}

  /** One for each file, until it is disposed of. */
  static open(path: string): Pkcs11Module {
    let module = opened.get(path);
    if (module) return module;
    let functions: Pkcs11;
    try {
      functions = pkcs11(path);
    } catch (cause) {
      throw new Error(`PKCS #11 module ${path}`, { cause });
    }
    const result = Number(functions.C_Initialize(null));
    if (result !== ALREADY_INITIALIZED) must(result, `${path}: C_Initialize`);
    module = new Pkcs11Module(path, functions);
    opened.set(path, module);
    return module;
  }

  /** Its sessions end; the next open() begins anew. */
  [Symbol.dispose](): void {
    opened.delete(this.path);
    this.functions.C_Finalize(null);
  }

  /** Tokens that are there now. */
  tokens(): TokenInfo[] {
    const [list, count] = [mem(8 * SLOTS_MAX), ulong(SLOTS_MAX)];
    must(this.functions.C_GetSlotList(1, list, count), "C_GetSlotList");
    const view = new DataView(list.buffer);
    const found: TokenInfo[] = [];
    for (let i = 0; i < numberIn(count); i++) {
      const slot = Number(view.getBigUint64(8 * i, true));
      const info = mem(256); // struct CK_TOKEN_INFO: 208
      if (Number(this.functions.C_GetTokenInfo(slot, info)) !== 0) continue; // it has gone meanwhile
      const text = (from: number, to: number) =>
        Buffer.from(info.subarray(from, to))
          .toString("utf8")
          .replace(/[ \0]+$/, "");
      found.push({ slot, label: text(0, 32), manufacturer: text(32, 64), serial: text(80, 96) });
    }
    return found;
  }

  token(which: (t: TokenInfo) => boolean, called: string): TokenInfo {
    const found = this.tokens().find(which);
    if (!found) throw new TokenGone(`${called}: there is no such token`);
    return found;
  }

  session(token: TokenInfo): Session {
    const at = mem(8);
    must(
      this.functions.C_OpenSession(token.slot, SERIAL_SESSION | RW_SESSION, null, null, at),
      `token ${token.serial}: C_OpenSession`,
    );
    return new Session(this.functions, numberIn(at), token);
  }
}

export class Session implements Disposable {
  constructor(
    readonly functions: Pkcs11,
    readonly handle: number,
    readonly token: TokenInfo,
  ) {}

  #must(result: number | bigint, what: string): void {
    must(result, `token ${this.token.serial}: ${what}`);
  }

  /** Throws a WrongPassword or PinLocked; the token counts wrong ones itself. */
  login(pin: Secret): void {
    const result = Number(pin.lend((p) => this.functions.C_Login(this.handle, USER, p, p.length)));
    if (result !== ALREADY_LOGGED_IN) this.#must(result, "C_Login");
  }

  logout(): void {
    this.functions.C_Logout(this.handle);
  }

  setPin(old: Secret, fresh: Secret): void {
    this.#must(
      old.lend((o) => fresh.lend((f) => this.functions.C_SetPIN(this.handle, o, o.length, f, f.length))),
      "C_SetPIN",
    );
  }

  find(wanted: Wanted): number[] {
    const t = template([
      [A.class, CLASS[wanted.class]],
      ...(wanted.label === undefined ? [] : ([[A.label, wanted.label]] as const)),
      ...(wanted.id === undefined ? [] : ([[A.id, lasting(wanted.id)]] as const)),
    ]);
    this.#must(this.functions.C_FindObjectsInit(this.handle, t.bytes, t.count), "C_FindObjectsInit");
    try {
      const [list, count] = [mem(8 * OBJECTS_MAX), mem(8)];
      this.#must(this.functions.C_FindObjects(this.handle, list, OBJECTS_MAX, count), "C_FindObjects");
      void t.keep;
      const view = new DataView(list.buffer);
      return Array.from({ length: numberIn(count) }, (_, i) => Number(view.getBigUint64(8 * i, true)));
    } finally {
      this.functions.C_FindObjectsFinal(this.handle);
    }
  }

  /** CKA_VALUE of a certificate, CKA_ID, …; by the number of pkcs11t.h. */
  attribute(object: number, type: number): Uint8Array {
    const ask = (into: Uint8Array | null, length: number): number => {
      const s = new Struct(24)
        .u64(type)
        .u64(into && into.length > 0 ? address(into) : 0n)
        .u64(length);
      this.#must(this.functions.C_GetAttributeValue(this.handle, object, s.bytes, 1), "C_GetAttributeValue");
      return Number(new DataView(s.bytes.buffer).getBigUint64(16, true));
    };
    const length = ask(null, 0);
    if (length > VALUE_MAX) throw new Error(`token ${this.token.serial}: an attribute of ${length} bytes`);
    const into = mem(length);
    return into.subarray(0, ask(into, length));
  }

  /** Raw, as the token gives it: r and s of ECDSA side by side. */
  sign(key: number, how: Signing, data: Uint8Array): Uint8Array {
    const [type, parameter] = SIGNING[how];
    const m = mechanism(type, parameter);
    this.#must(this.functions.C_SignInit(this.handle, m.bytes, key), `C_SignInit ${how}`);
    const [bytes, into, length] = [lasting(data), mem(SIGNATURE_MAX), ulong(SIGNATURE_MAX)];
    this.#must(this.functions.C_Sign(this.handle, bytes, bytes.length, into, length), `C_Sign ${how}`);
    void m.keep;
    return into.subarray(0, numberIn(length));
  }

  /** An AES-256 key that stays in the token, for wrapping. */
  makeWrappingKey(label: string): number {
    const t = template([
      [A.class, CLASS.secret],
      [A.keyType, KEY_TYPE.aes],
      [A.valueLength, 32],
      [A.label, label],
      [A.token, true],
      [A.private, true],
      [A.sensitive, true],
      [A.extractable, false],
      [A.wrap, true],
      [A.unwrap, true],
    ]);
    const at = mem(8);
    this.#must(
      this.functions.C_GenerateKey(this.handle, mechanism(AES_KEY_GEN).bytes, t.bytes, t.count, at),
      "C_GenerateKey",
    );
    void t.keep;
    return numberIn(at);
  }

  destroy(object: number): void {
    this.#must(this.functions.C_DestroyObject(this.handle, object), "C_DestroyObject");
  }

  /** RFC 3394: eight bytes longer than the secret. */
  wrap(by: number, secret: Secret): Uint8Array {
    const object = secret.lend((value) => {
      const t = template([...PASSING, [A.value, value]]);
      const at = mem(8);
      this.#must(this.functions.C_CreateObject(this.handle, t.bytes, t.count, at), "C_CreateObject");
      void t.keep;
      return numberIn(at);
    });
    try {
      const [into, length] = [mem(SIGNATURE_MAX), ulong(SIGNATURE_MAX)];
      const m = mechanism(AES_KEY_WRAP);
      this.#must(this.functions.C_WrapKey(this.handle, m.bytes, by, object, into, length), "C_WrapKey");
      return into.slice(0, numberIn(length));
    } finally {
      this.destroy(object);
    }
  }

  /** Throws a Pkcs11Error where it was wrapped by another, or changed. The value is the caller's to wipe. */
  unwrap(by: number, wrapped: Uint8Array): Uint8Array {
    const t = template(PASSING);
    const [at, bytes] = [mem(8), lasting(wrapped)];
    this.#must(
      this.functions.C_UnwrapKey(
        this.handle,
        mechanism(AES_KEY_WRAP).bytes,
        by,
        bytes,
        bytes.length,
        t.bytes,
        t.count,
        at,
      ),
      "C_UnwrapKey",
    );
    void t.keep;
    const object = numberIn(at);
    try {
      return this.attribute(object, A.value);
    } finally {
      this.destroy(object);
    }
  }

  [Symbol.dispose](): void {
    this.functions.C_CloseSession(this.handle);
  }
}
