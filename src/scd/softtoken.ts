// Soft tokens: a private key in tokens/<uuid>.p12 behind a PIN (spec/security.md 1.6). The file is all there is of one; what
// is held in memory is its key, between an unlock and the lock that follows.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { certify, type Extensions, type Name } from "../pki/issue.ts";
import { PrivateKey } from "../pki/key.ts";
import {
  ITERATIONS,
  makePkcs12,
  makePkcs12Beside,
  type Opened,
  openPkcs12Beside,
  PKCS12_MAX,
  WrongPassword,
} from "../pki/pkcs12.ts";
import { Corrupt, macOf, unwrap, wrap } from "../pki/wrap.ts";
import { own } from "../run/self.ts";
import { readBounded, removeSynced, writeAtomic } from "../sys/file.ts";
import { Secret } from "../sys/secret.ts";
import { type Token, UNLOCKED_MS, type Wrapped } from "./token.ts";
import { Tries } from "./tries.ts";

const KEY = "rsa:4096";
const DAYS = 365;
const FRIENDLY_NAME = "gyroidos test user";
/** The PIN of a token that nobody has provisioned yet. */
const TRANSPORT_PIN = "trustme";

const subject = (uuid: string): Name => [
  ["C", "DE"],
  ["ST", "Bayern"],
  ["L", "Muenchen"],
  ["O", "Fraunhofer"],
  ["OU", "AISEC"],
  ["OU", "gyroidos"],
  ["CN", uuid],
];
const EXTENSIONS: Extensions = [
  ["basicConstraints", "critical,CA:FALSE"],
  ["keyUsage", "critical,keyCertSign,cRLSign"],
  ["subjectKeyIdentifier", "hash"],
];

const fileOf = (folder: string, uuid: string): string => join(folder, `${uuid}.p12`);

/** Make the token's file, if it is not there. RSA-4096 takes seconds: for a process of its own. */
export async function makeToken(folder: string, uuid: string): Promise<void> {
  if (existsSync(fileOf(folder, uuid))) return;
  using key = PrivateKey.generate(KEY);
  const certificate = certify({ subject: subject(uuid), key, days: DAYS, extensions: EXTENSIONS });
  using pin = Secret.take(Buffer.from(TRANSPORT_PIN));
  await writeAtomic(fileOf(folder, uuid), makePkcs12(FRIENDLY_NAME, key, certificate, pin));
}

export class SoftToken implements Token {
  readonly #file: string;
  readonly #tries: Tries;
  #key: PrivateKey | undefined;
  /** Its file is ours, not the original's: what it wraps has always had a mac. */
  #own = false;
  #timer: Timer | undefined;

  constructor(
    readonly folder: string,
    readonly uuid: string,
  ) {
    this.#file = fileOf(folder, uuid);
    this.#tries = new Tries(join(folder, `${uuid}.tries`));
  }

  async add(): Promise<void> {
    if (existsSync(this.#file)) return;
    const argv = own("scd", "--make-token", this.uuid, "--tokens", this.folder);
    const making = Bun.spawn(argv, { stdio: ["ignore", "inherit", "inherit"] });
    const status = await making.exited;
    if (status !== 0 || !existsSync(this.#file))
      throw new Error(`making ${this.#file}: exit status ${status}`);
  }

  async remove(): Promise<void> {
    this.lock();
    await removeSynced(this.folder, [`${this.uuid}.p12`, `${this.uuid}.tries`]);
  }

  /** The PIN is tried, and counted, whether the token is unlocked or not. Deriving its key takes its time: others are
   * answered meanwhile, this token's turn is the caller's. */
  async #open(pin: Secret): Promise<Opened> {
    const bytes = await readBounded(this.#file, PKCS12_MAX);
    if (!bytes) throw new Error(`${this.uuid}: there is no such token`);
    await this.#tries.begin();
    let opened: Opened;
    try {
      opened = await openPkcs12Beside(`${this.uuid}.p12`, bytes, pin);
    } catch (e) {
      if (e instanceof WrongPassword)
        throw new WrongPassword(`the PIN is wrong; ${await this.#tries.left()}`);
      await this.#tries.undone(); // a damaged file says nothing about the PIN
      throw e;
    }
    try {
      await this.#tries.succeeded();
      return opened;
    } catch (e) {
      opened.key[Symbol.dispose]();
      throw e;
    }
  }

  async unlock(pin: Secret): Promise<void> {
    const { key, iterations } = await this.#open(pin);
    this.lock();
    this.#key = key;
    this.#own = iterations >= ITERATIONS;
    this.#timer = setTimeout(() => this.lock(), UNLOCKED_MS);
  }

  lock(): void {
    clearTimeout(this.#timer);
    this.#key?.[Symbol.dispose]();
    this.#key = undefined;
  }

  /** The file is replaced as a whole: after a power cut one of the two PINs opens it. */
  async changePin(pin: Secret, fresh: Secret): Promise<void> {
    const { key: opened, certificate } = await this.#open(pin);
    using key = opened;
    await writeAtomic(this.#file, await makePkcs12Beside(FRIENDLY_NAME, key, certificate, fresh));
  }

  #unlocked(): PrivateKey {
    if (!this.#key) throw new Error(`${this.uuid}: the token is locked`);
    return this.#key;
  }

  wrap(secret: Secret): Wrapped {
    const key = this.#unlocked();
    const wrapped = wrap(key, secret);
    return { wrapped, mac: macOf(key, this.uuid, wrapped) };
  }

  unwrap({ wrapped, mac }: Wrapped): { secret: Secret; mac?: Uint8Array } {
    const key = this.#unlocked();
    const right = macOf(key, this.uuid, wrapped);
    // Keys that the original wrapped come without: taken as they are, and with one from then on. Of which make the token is
    // says its file, and that is authenticated by its PIN.
    if (!mac && this.#own) throw new Corrupt("the proof that this token wrapped the key is gone");
    if (mac && !equal(mac, right)) throw new Corrupt("the wrapped key is not the one that this token made");
    const secret = unwrap(key, wrapped);
    return mac ? { secret } : { secret, mac: right };
  }
}

const equal = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && crypto.timingSafeEqual(a, b);
