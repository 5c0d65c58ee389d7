// Tokens that are hardware: a smart card or an HSM with a PKCS #11 module. A key of AES-256 that never leaves it wraps the
// container's key (RFC 3394, 104 bytes as the original's). Its PIN is what pairs it with this device, and what somebody types.
//
// The token counts wrong PINs itself, and blocks itself for good; ours counts as well, and stops before that.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { PinLocked, Pkcs11Error, type Pkcs11Module, type Session, type TokenInfo } from "../pki/pkcs11.ts";
import { WrongPassword } from "../pki/pkcs12.ts";
import { Corrupt } from "../pki/wrap.ts";
import { writeAtomic } from "../sys/file.ts";
import { Secret } from "../sys/secret.ts";
import { type Token, UNLOCKED_MS, type Unwrapped, type Wrapped } from "./token.ts";
import { LockedTillReboot, Tries } from "./tries.ts";

/** What a module says of a wrapped key that is not its own: SoftHSM and OpenSC differ (pkcs11t.h). */
const NOT_ITS_OWN: ReadonlySet<number> = new Set([0x5, 0x40, 0x41, 0x110, 0x112]);

export class UsbToken implements Token {
  readonly #tries: Tries;
  /** There once the token's PIN begins with this device's pairing secret, whichever container's it was then. */
  readonly #paired: string;
  #session: Session | undefined;
  #timer: Timer | undefined;

  constructor(
    folder: string,
    readonly uuid: string,
    readonly serial: string,
    readonly module: () => Pkcs11Module,
  ) {
    this.#tries = new Tries(join(folder, `${uuid}.tries`));
    this.#paired = join(folder, `card-${Buffer.from(serial).toString("hex")}.paired`);
  }

  #token(): TokenInfo {
    return this.module().token((t) => t.serial === this.serial, `token ${this.serial}`);
  }

  /** What makes it this container's lies in the token; here is nothing to make. */
  async add(): Promise<void> {
    this.#token();
  }

  /** The key of what is wiped is gone with its wrapped form; the token needs its PIN to forget more. */
  async remove(): Promise<void> {
    this.lock();
    await this.#tries.succeeded();
  }

  /** A session where this PIN is right. */
  async #login(pin: Secret): Promise<Session> {
    const token = this.#token(); // one that is not there costs no try
    await this.#tries.begin();
    const session = this.module().session(token);
    try {
      session.login(pin);
    } catch (e) {
      session[Symbol.dispose]();
      if (e instanceof PinLocked) throw new LockedTillReboot(`${e.message}, until its owner unblocks it`);
      if (e instanceof WrongPassword)
        throw new WrongPassword(`the PIN is wrong; ${await this.#tries.left()}`);
      await this.#tries.undone();
      throw e;
    }
    await this.#tries.succeeded();
    return session;
  }

  async unlock(pin: Secret, pairing: Uint8Array): Promise<void> {
    this.lock();
    using code = authenticationCode(pairing, pin);
    this.#session = await this.#login(code);
    this.#timer = setTimeout(() => this.lock(), UNLOCKED_MS);
    await this.#note();
  }

  lock(): void {
    clearTimeout(this.#timer);
    this.#session?.logout();
    this.#session?.[Symbol.dispose]();
    this.#session = undefined;
  }

  /** The key is made when it is first used, so that a change that is interrupted is a change that was made or was not. */
  async provision(pin: Secret, fresh: Secret, pairing: Uint8Array): Promise<void> {
    const again = existsSync(this.#paired); // a wipe takes nothing from the token: each try of the bare PIN would be lost
    using old = again ? authenticationCode(pairing, pin) : pin.copy();
    using code = authenticationCode(pairing, fresh);
    try {
      await this.#change(old, code);
    } catch (e) {
      if (!again || !(e instanceof WrongPassword)) throw e;
      throw new WrongPassword(
        `${e.message} (the token is paired with this device; if it was initialised since, remove ${this.#paired})`,
      );
    }
    await this.#note();
  }

  async #note(): Promise<void> {
    if (!existsSync(this.#paired)) await writeAtomic(this.#paired, "");
  }

  async changePin(pin: Secret, fresh: Secret, pairing: Uint8Array): Promise<void> {
    using old = authenticationCode(pairing, pin);
    using code = authenticationCode(pairing, fresh);
    await this.#change(old, code);
  }

  async #change(old: Secret, fresh: Secret): Promise<void> {
    this.lock();
    using session = await this.#login(old);
    session.setPin(old, fresh);
    session.logout();
  }

  #unlocked(): Session {
    if (!this.#session) throw new Error(`${this.uuid}: the token is locked`);
    return this.#session;
  }

  #key(session: Session): number | undefined {
    return session.find({ class: "secret", label: this.#label })[0];
  }

  get #label(): string {
    return `cml ${this.uuid}`;
  }

  wrap(secret: Secret): Wrapped {
    const session = this.#unlocked();
    return { wrapped: session.wrap(this.#key(session) ?? session.makeWrappingKey(this.#label), secret) };
  }

  unwrap({ wrapped }: Wrapped): Unwrapped {
    const session = this.#unlocked();
    const key = this.#key(session);
    if (key === undefined) throw new Error(`token ${this.serial} has no key called ${this.#label}`);
    try {
      return { secret: Secret.take(session.unwrap(key, wrapped)) };
    } catch (cause) {
      if (!(cause instanceof Pkcs11Error) || !NOT_ITS_OWN.has(cause.code)) throw cause;
      throw new Corrupt("the wrapped key is not this token's, or was changed", { cause });
    }
  }
}

/** spec/security.md 1.7: the pairing secret, then the PIN. */
function authenticationCode(pairing: Uint8Array, pin: Secret): Secret {
  const code = Secret.empty(pairing.length + pin.length);
  code.lend((to) => {
    to.set(pairing);
    pin.lend((from) => to.set(from, pairing.length));
  });
  return code;
}
