// Records on their way into a container, by the words of the service socket: cmld says that there are some
// (AUDIT_NOTIFY), the service asks by acknowledging what it had last (AUDIT_ACK with the SHA-512 of that message, or
// zeros), gets the first one that it has not acknowledged (AUDIT_RECORD), and in the end AUDIT_COMPLETE.
//
// One record is under way at a time, so a service that does not ask costs nothing. A record leaves the trail when its
// hash comes back, also from a service that got it from an earlier cmld: each record has its number in it, so no two
// have the same hash.
import { CmldToServiceMessage } from "../../../proto/gen/proto.js";
import type { Trail } from "./trail.ts";

const { Code } = CmldToServiceMessage;

/** A service that could not keep what it got asks no more by itself: it is told again when something comes after this. */
const PATIENCE_MS = 60_000;

/** Somebody to talk to; send() resolves when there is room for more. */
export interface Receiver {
  readonly gone: AbortSignal;
  send(message: Uint8Array): Promise<void>;
}

interface Packed {
  readonly sequence: number;
  readonly message: Uint8Array;
  readonly hash: string;
}

export class Delivery {
  readonly #trail: Trail;
  #to: Receiver | undefined;
  #first: Packed | undefined;
  /** When the service was last told that there is something, or got it, and has not asked since. */
  #told = Number.NEGATIVE_INFINITY;
  #turn: Promise<unknown> = Promise.resolve();

  constructor(trail: Trail) {
    this.#trail = trail;
  }

  async #head(): Promise<Packed | undefined> {
    if (this.#first && this.#first.sequence > this.#trail.acknowledged) return this.#first;
    const [first] = await this.#trail.next(this.#trail.acknowledged);
    this.#first = undefined;
    if (!first) return undefined;
    const message = CmldToServiceMessage.encode({ code: Code.AUDIT_RECORD, audit_record: first.record });
    const hash = new Bun.CryptoHasher("sha512").update(message).digest("hex");
    this.#first = { sequence: first.sequence, message, hash };
    return this.#first;
  }

  /** It takes records from now on. Who has not said so is told nothing: a helper that waits for its name would take it
   * for the answer. */
  listens(to: Receiver): void {
    if (this.#to !== to) this.#told = Number.NEGATIVE_INFINITY;
    this.#to = to;
    this.notify();
  }

  /** Say that there is something, once until it is asked for: to ask twice is to get a record twice. */
  notify(): void {
    if (!this.#to || this.#to.gone.aborted || this.#trail.last === this.#trail.acknowledged) return;
    if (performance.now() - this.#told < PATIENCE_MS) return;
    this.#told = performance.now();
    const { remaining } = this.#trail;
    void this.#to.send(
      CmldToServiceMessage.encode({ code: Code.AUDIT_NOTIFY, audit_remaining_storage: remaining }),
    );
  }

  /** The answer to AUDIT_ACK. Two services that ask at the same time are answered one after the other. */
  acknowledged(hash: string, from: Receiver): Promise<void> {
    const turn = this.#turn.then(async () => {
      this.#to = from;
      this.#told = Number.NEGATIVE_INFINITY;
      const head = await this.#head();
      if (head && hash.toLowerCase() === head.hash) await this.#trail.acknowledge(head.sequence);
      return this.#head();
    });
    this.#turn = turn.catch(() => {});
    return turn.then((next) => {
      if (next) this.#told = performance.now(); // what it gets leads to the next question
      return from.send(next?.message ?? CmldToServiceMessage.encode({ code: Code.AUDIT_COMPLETE }));
    });
  }
}
