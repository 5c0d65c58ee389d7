// What a token can do, whatever it is made of: softtoken.ts, usbtoken.ts.
import type { Secret } from "../sys/secret.ts";

/** A token that was unlocked and is not locked again locks itself: whoever unlocked it has ended. */
export const UNLOCKED_MS = 60_000;

/** A container's key as its token has wrapped it. */
export interface Wrapped {
  readonly wrapped: Uint8Array;
  /** Proof that this token did. */
  readonly mac?: Uint8Array | undefined;
}

/** Every method throws with one line; a wrong PIN is a WrongPassword, a token that takes no more LockedTillReboot, and a
 * wrapped key that is not this token's Corrupt. */
export interface Token {
  /** Make it, if it is not there. */
  add(): Promise<void>;
  /** Destroy it. */
  remove(): Promise<void>;
  unlock(pin: Secret, pairing: Uint8Array): Promise<void>;
  lock(): void | Promise<void>;
  changePin(pin: Secret, fresh: Secret, pairing: Uint8Array): Promise<void>;
  /** The first change: from the PIN that everybody knows. */
  provision?(pin: Secret, fresh: Secret, pairing: Uint8Array): Promise<void>;
  wrap(secret: Secret): Wrapped | Promise<Wrapped>;
  /** With a mac where there was none. */
  unwrap(w: Wrapped): Unwrapped | Promise<Unwrapped>;
}

export interface Unwrapped {
  readonly secret: Secret;
  readonly mac?: Uint8Array;
}
