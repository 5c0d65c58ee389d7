// Messages on a stream: a length of four bytes, big-endian, then that many bytes. The limits are the protocol's: what
// a peer may make us hold is known before it is stored, and is what it has really sent, twice at most.

/** Zeros that do not move, so that what is in them can be wiped. */
const fixed = (n: number): Uint8Array<ArrayBuffer> => new Uint8Array(new ArrayBuffer(n));

/** Privileged control socket: less than 64 MiB, as the original. */
export const FRAME_MAX = 2 ** 26 - 1;
/** Control sockets of guests, and service sockets. */
export const FRAME_MAX_GUEST = 2 ** 20;

const HEADER = 4;
/** What a connection that sends something gets at first; most messages fit. */
const FIRST = 4096;

/** Header and payload in one piece, because one known client reads a payload with a single read(). */
export function frame(message: Uint8Array, max = FRAME_MAX): Uint8Array<ArrayBuffer> {
  if (message.length > max) throw new RangeError(`message of ${message.length} bytes, at most ${max}`);
  const out = fixed(HEADER + message.length);
  new DataView(out.buffer).setUint32(0, message.length);
  out.set(message, HEADER);
  return out;
}

/** Feed it chunks as they come; it gives whole messages and keeps the rest. One per connection. */
export class Unframer {
  #held = fixed(0);
  #size = 0;
  /** `wipes`: what it takes from a chunk is zero there from then on. */
  constructor(
    readonly max = FRAME_MAX,
    readonly wipes = false,
  ) {}

  /** Memory held for a message that is not complete yet. */
  get held(): number {
    return this.#held.length;
  }

  /**
   * The messages that `chunk` completes, as copies: the chunk may be used again. To be iterated to its end before the
   * next push. Throws a RangeError, after the messages before it, at a length above the limit; the stream is lost then.
   */
  *push(chunk: Uint8Array): Generator<Uint8Array<ArrayBuffer>> {
    let rest = chunk;
    for (;;) {
      rest = this.#take(rest, HEADER);
      if (this.#size < HEADER) return;
      const length = new DataView(this.#held.buffer).getUint32(0);
      if (length > this.max) throw new RangeError(`frame of ${length} bytes, at most ${this.max}`);
      rest = this.#take(rest, HEADER + length);
      if (this.#size < HEADER + length) return;
      const message = fixed(length);
      message.set(this.#held.subarray(HEADER, HEADER + length));
      this.wipe(); // perhaps a password; the message is its receiver's
      yield message;
    }
  }

  /** To be called when the peer has closed: throws if it did so within a message. */
  end(): void {
    if (this.#size > 0) throw new RangeError(`connection closed after ${this.#size} bytes of a frame`);
  }

  /** Forget, and wipe, what has come of a message that will not be complete. */
  wipe(): void {
    this.#held.fill(0);
    this.#held = fixed(0);
    this.#size = 0;
  }

  /** Move bytes over until `want` are held; returns what is left. Doubling: each byte is copied twice at most. */
  #take(from: Uint8Array, want: number): Uint8Array {
    const n = Math.min(Math.max(want - this.#size, 0), from.length);
    if (n === 0) return from;
    const need = this.#size + n;
    if (need > this.#held.length) {
      const larger = fixed(
        Math.max(need, Math.min(Math.max(2 * this.#held.length, FIRST), this.max + HEADER)),
      );
      larger.set(this.#held.subarray(0, this.#size));
      this.#held.fill(0);
      this.#held = larger;
    }
    const taken = from.subarray(0, n);
    this.#held.set(taken, this.#size);
    if (this.wipes) taken.fill(0);
    this.#size = need;
    return from.subarray(n);
  }
}
