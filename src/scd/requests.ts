// What scd answers: one function per request of spec/security.md 1.2. Files are read by descriptor where the manager sends
// one, else by path beneath the folders that hold signed things; nothing else can be asked for.
import { fstatSync, read } from "node:fs";
import { sep } from "node:path";
import { promisify } from "node:util";
import {
  DaemonToToken,
  HashAlgo,
  type ITokenToDaemon,
  TokenToDaemon,
  TokenType,
} from "../../proto/gen/proto.js";
import { nodeCrypto } from "../lib/ondemand.ts";
import { TEXT_MAX } from "../lib/text.ts";
import { BUNDLE_MAX } from "../pki/certificates.ts";
import { TokenGone } from "../pki/pkcs11.ts";
import { WrongPassword } from "../pki/pkcs12.ts";
import { Refused, SIGNATURE_MAX, verify } from "../pki/verify.ts";
import { Corrupt, WRAPPED_MAX } from "../pki/wrap.ts";
import {
  AT_FDCWD,
  O_NONBLOCK,
  O_RDONLY,
  openat2,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
} from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { lasting } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { Secret } from "../sys/secret.ts";
import type { Device } from "./device.ts";
import { trustOf } from "./stores.ts";
import type { Token } from "./token.ts";
import type { Tokens } from "./tokens.ts";
import { LockedTillReboot } from "./tries.ts";

const Ask = DaemonToToken.Code;
const Say = TokenToDaemon.Code;

/** Bytes that are hashed before anybody else gets a turn: less than a millisecond. */
const PIECE = 1 << 20;
const readAt = promisify(read);

const ALGORITHMS: Readonly<Record<number, string>> = {
  [HashAlgo.SHA1]: "sha1",
  [HashAlgo.SHA256]: "sha256",
  [HashAlgo.SHA512]: "sha512",
};

export interface Surroundings {
  readonly tokens: string;
  /** Folders whose files may be named: operatingsystems/ and containers/. */
  readonly readable: readonly string[];
  readonly device: Device;
  readonly keys: Tokens;
  /** A token was there, and is not any more. */
  gone(uuid: string): void;
}

/** More than anybody types, and than a smart card takes. */
const PIN_MAX = 256;

/** Absent means SHA-1 (spec/security.md 1.2). */
function algorithmOf(request: DaemonToToken): string {
  const name = ALGORITHMS[request.hash_algo ?? HashAlgo.SHA1];
  if (name === undefined) throw new Error(`hash_algo ${request.hash_algo}: not known`);
  return name;
}

function openBeneath(readable: readonly string[], path: string): Fd {
  if (!readable.some((folder) => path.startsWith(folder + sep)) || path.split("/").includes(".."))
    throw new Error(`${path}: only files below ${readable.join(" and ")} are read`);
  const flags = O_RDONLY | O_NONBLOCK;
  return new Fd(now(openat2(AT_FDCWD, path, flags, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)));
}

/** Its size, if it is a file like any other. */
function regular(fd: Fd, what: string): number {
  const status = fstatSync(fd.n);
  if (!status.isFile()) throw new Error(`${what}: not a regular file`);
  return status.size;
}

async function readFd(fd: Fd, what: string, max: number): Promise<Uint8Array> {
  const size = regular(fd, what);
  if (size > max) throw new Error(`${what}: ${size} bytes, at most ${max}`);
  const bytes = new Uint8Array(size);
  let at = 0;
  while (at < size) {
    const { bytesRead } = await readAt(fd.n, bytes, at, size - at, at);
    if (bytesRead === 0) throw new Error(`${what}: it has become shorter`);
    at += bytesRead;
  }
  return bytes;
}

async function hashed(fd: Fd, what: string, algorithm: string): Promise<Buffer> {
  regular(fd, what);
  const hash = nodeCrypto().createHash(algorithm);
  // One is read while the other is hashed.
  let [mine, other] = [new Uint8Array(PIECE), new Uint8Array(PIECE)];
  let reading = readAt(fd.n, mine, 0, PIECE, 0);
  for (let at = 0; ; ) {
    const { bytesRead } = await reading;
    if (bytesRead === 0) return hash.digest();
    at += bytesRead;
    reading = readAt(fd.n, other, 0, PIECE, at);
    hash.update(mine.subarray(0, bytesRead));
    [mine, other] = [other, mine];
  }
}

/** What the failure of a request is called. */
const FAILED: Partial<Record<DaemonToToken.Code, TokenToDaemon.Code>> = {
  [Ask.LOCK]: Say.LOCK_FAILED,
  [Ask.UNLOCK]: Say.UNLOCK_FAILED,
  [Ask.CHANGE_PIN]: Say.CHANGE_PIN_FAILED,
  [Ask.PROVISION_PIN]: Say.PROVISION_PIN_FAILED,
  [Ask.WRAP_KEY]: Say.WRAPPED_KEY,
  [Ask.UNWRAP_KEY]: Say.UNWRAPPED_KEY,
  [Ask.PULL_DEVICE_CSR]: Say.DEVICE_CSR_ERROR,
  [Ask.PUSH_DEVICE_CERT]: Say.DEVICE_CERT_ERROR,
  [Ask.DEVICE_PASSPHRASE]: Say.DEVICE_CERT_ERROR,
  [Ask.CRYPTO_HASH_FILE]: Say.CRYPTO_HASH_ERROR,
  [Ask.CRYPTO_HASH_BUF]: Say.CRYPTO_HASH_ERROR,
  [Ask.CRYPTO_VERIFY_FILE]: Say.CRYPTO_VERIFY_ERROR,
  [Ask.CRYPTO_VERIFY_BUF]: Say.CRYPTO_VERIFY_ERROR,
  [Ask.TOKEN_ADD]: Say.TOKEN_ADD_FAILED,
  [Ask.TOKEN_REMOVE]: Say.TOKEN_REMOVE_FAILED,
  [Ask.REGISTER_EVENT_LISTENER]: Say.REGISTER_EVENT_LISTENER_ERROR,
};

async function checked(
  around: Surroundings,
  request: DaemonToToken,
  [data, signature, certificates]: readonly [Uint8Array, Uint8Array, Uint8Array],
): Promise<ITokenToDaemon> {
  if (algorithmOf(request) !== "sha512") throw new Error("hash_algo: signatures are over SHA-512");
  const trust = await trustOf(around.tokens);
  const moment = { ignoreTime: request.verify_ignore_time ?? false };
  const { level } = verify(data, signature, certificates, trust, moment);
  return { code: level === "SIGNED" ? Say.CRYPTO_VERIFY_GOOD : Say.CRYPTO_VERIFY_LOCALLY_SIGNED };
}

async function named(around: Surroundings, path: string, max: number): Promise<Uint8Array> {
  using fd = openBeneath(around.readable, path);
  return await readFd(fd, path, max);
}

/** The answer to a request that may fail with an error. */
async function done(
  around: Surroundings,
  request: DaemonToToken,
  fd: Fd | undefined,
): Promise<ITokenToDaemon> {
  const { device } = around;
  switch (request.code) {
    case Ask.CRYPTO_HASH_FILE: {
      const algorithm = algorithmOf(request);
      using opened = fd ? undefined : openBeneath(around.readable, request.hash_file ?? "");
      const hash_value = await hashed(fd ?? opened!, request.hash_file ?? "the descriptor", algorithm);
      return { code: Say.CRYPTO_HASH_OK, hash_value };
    }
    case Ask.CRYPTO_HASH_BUF: {
      const hash_value = nodeCrypto()
        .createHash(algorithmOf(request))
        .update(request.hash_buf ?? new Uint8Array())
        .digest();
      return { code: Say.CRYPTO_HASH_OK, hash_value };
    }
    case Ask.CRYPTO_VERIFY_FILE:
      return checked(around, request, [
        await named(around, request.verify_data_file ?? "", TEXT_MAX),
        await named(around, request.verify_sig_file ?? "", SIGNATURE_MAX),
        await named(around, request.verify_cert_file ?? "", BUNDLE_MAX),
      ]);
    case Ask.CRYPTO_VERIFY_BUF: {
      const { verify_data_buf: data, verify_sig_buf: signature, verify_cert_buf: certificates } = request;
      if (!data || !signature || !certificates)
        throw new Error("data, signature and certificates are needed");
      return checked(around, request, [data, signature, certificates]);
    }
    case Ask.PULL_DEVICE_CSR:
      if (!(await device.provisioning())) return NOT_PROVISIONING;
      return { code: Say.DEVICE_CSR, device_csr: await device.csr() };
    case Ask.PUSH_DEVICE_CERT:
      if (!(await device.provisioning())) return NOT_PROVISIONING;
      await device.accept(request.device_cert ?? new Uint8Array());
      return { code: Say.DEVICE_CERT_OK };
    case Ask.DEVICE_PASSPHRASE:
      device.protectWith(Secret.take(need(request.unwrapped_key, "unwrapped_key", PIN_MAX)));
      return { code: Say.DEVICE_CERT_OK };
    case Ask.LOCK:
    case Ask.UNLOCK:
    case Ask.CHANGE_PIN:
    case Ask.PROVISION_PIN:
    case Ask.WRAP_KEY:
    case Ask.UNWRAP_KEY:
    case Ask.TOKEN_ADD:
    case Ask.TOKEN_REMOVE:
      return around.keys.inTurn(request.token_uuid, async () => {
        try {
          return await onToken(around.keys, request);
        } catch (e) {
          if (e instanceof TokenGone) around.gone(request.token_uuid);
          throw e;
        }
      });
    default:
      return { code: Say.CMD_UNKNOWN, error_text: `request ${request.code}: not known` };
  }
}

// --- tokens -------------------------------------------------------------------------

function need(bytes: Uint8Array | undefined, what: string, max: number): Uint8Array {
  if (!bytes) throw new Error(`${what} is missing`);
  if (bytes.length > max) throw new Error(`${what}: ${bytes.length} bytes, at most ${max}`);
  return bytes;
}

const pinOf = (bytes: Uint8Array | undefined, what: string): Secret =>
  Secret.take(need(bytes, what, PIN_MAX));

function tokenOf(keys: Tokens, request: DaemonToToken): Token {
  const { token_type: type, token_uuid: uuid } = request;
  if (type === TokenType.SOFT) return keys.soft(uuid);
  if (type === TokenType.USB) return keys.usb(uuid, request.usbtoken_serial ?? "");
  throw new Error(`token_type ${TokenType[type] ?? type}: there is no token of this type here`);
}

async function onToken(keys: Tokens, request: DaemonToToken): Promise<ITokenToDaemon> {
  const token = tokenOf(keys, request);
  const pairing = request.pairing_secret ?? new Uint8Array();
  switch (request.code) {
    case Ask.TOKEN_ADD:
      await token.add();
      return { code: Say.TOKEN_ADD_SUCCESSFUL };
    case Ask.TOKEN_REMOVE:
      await token.remove();
      keys.forget(request.token_uuid);
      return { code: Say.TOKEN_REMOVE_SUCCESSFUL };
    case Ask.LOCK:
      await token.lock();
      return { code: Say.LOCK_SUCCESSFUL };
    case Ask.UNLOCK: {
      using pin = pinOf(request.token_pin, "token_pin");
      await token.unlock(pin, pairing);
      return { code: Say.UNLOCK_SUCCESSFUL };
    }
    case Ask.WRAP_KEY: {
      using secret = Secret.take(need(request.unwrapped_key, "unwrapped_key", WRAPPED_MAX));
      const { wrapped, mac } = await token.wrap(secret);
      return { code: Say.WRAPPED_KEY, wrapped_key: wrapped, wrapped_mac: mac };
    }
    case Ask.UNWRAP_KEY: {
      const wrapped = need(request.wrapped_key, "wrapped_key", WRAPPED_MAX);
      const { secret, mac } = await token.unwrap({ wrapped, mac: request.wrapped_mac });
      using _ = secret;
      // Whoever sends it wipes it.
      return { code: Say.UNWRAPPED_KEY, unwrapped_key: secret.lend(lasting), wrapped_mac: mac };
    }
    default: {
      const first = request.code === Ask.PROVISION_PIN;
      if (!request.pairing_secret) throw new Error("pairing_secret is missing");
      using pin = pinOf(request.token_pin, "token_pin");
      using fresh = pinOf(request.token_newpin, "token_newpin");
      if (first && token.provision) await token.provision(pin, fresh, pairing);
      else await token.changePin(pin, fresh, pairing);
      return { code: first ? Say.PROVISION_PIN_SUCCESSFUL : Say.CHANGE_PIN_SUCCESSFUL };
    }
  }
}

/** What a failure of a token is called where its request has a word for it. */
function tokenFailure(request: DaemonToToken, e: unknown): ITokenToDaemon | undefined {
  if (e instanceof LockedTillReboot) return { code: Say.LOCKED_TILL_REBOOT };
  if (e instanceof WrongPassword && request.code === Ask.UNLOCK) return { code: Say.PASSWD_WRONG };
  if (e instanceof Corrupt) return { code: Say.UNWRAPPED_KEY, unwrapped_key: new Uint8Array() };
  const incomplete = !request.token_pin || !request.token_newpin;
  if (request.code === Ask.PROVISION_PIN && incomplete) return { code: Say.CHANGE_PIN_FAILED };
  return undefined;
}

const NOT_PROVISIONING: ITokenToDaemon = {
  code: Say.DEVICE_PROV_ERROR,
  error_text: "the device's key was not made in this boot: its certificate is settled",
};

/** One answer for each request, whatever happens. */
export async function answer(
  around: Surroundings,
  request: DaemonToToken,
  fd: Fd | undefined,
): Promise<ITokenToDaemon> {
  try {
    return await done(around, request, fd);
  } catch (e) {
    const error_text = chain(e);
    if (e instanceof Refused)
      return {
        code: e.part === "signature" ? Say.CRYPTO_VERIFY_BAD_SIGNATURE : Say.CRYPTO_VERIFY_BAD_CERTIFICATE,
        error_text,
      };
    return {
      ...(tokenFailure(request, e) ?? { code: FAILED[request.code] ?? Say.CMD_UNKNOWN }),
      error_text,
    };
  }
}
