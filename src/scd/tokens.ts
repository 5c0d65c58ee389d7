// Tokens, whatever they are made of, and who may speak to which: one after the other for each token.
import { isUuid } from "../lib/uuid.ts";
import type { Secret } from "../sys/secret.ts";
import { SoftToken } from "./softtoken.ts";

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

/** More containers than a device has ids for. */
const TOKENS_MAX = 4096;

export class Tokens {
  readonly #soft = new Map<string, SoftToken>();
  readonly #turns = new Map<string, Promise<unknown>>();
  constructor(readonly folder: string) {}

  soft(uuid: string): SoftToken {
    if (!isUuid(uuid)) throw new Error(`token_uuid ${JSON.stringify(uuid.slice(0, 64))}: not a uuid`);
    let token = this.#soft.get(uuid);
    if (!token) {
      if (this.#soft.size >= TOKENS_MAX) throw new Error(`more than ${TOKENS_MAX} tokens`);
      token = new SoftToken(this.folder, uuid);
      this.#soft.set(uuid, token);
    }
    return token;
  }

  /** Nobody else speaks to this token meanwhile. */
  inTurn<T>(uuid: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(uuid) ?? Promise.resolve();
    const turn = before.catch(() => {}).then(work);
    this.#turns.set(uuid, turn);
    const over = () => {
      if (this.#turns.get(uuid) === turn) this.#turns.delete(uuid);
    };
    turn.then(over, over);
    return turn;
  }

  forget(uuid: string): void {
    this.#soft.delete(uuid);
  }
}
