// Key material with an end: readable inside its `using` block, zero after it.
//
// It lies in one region of memory of its own that the kernel neither swaps nor dumps, so there is one copy to wipe as
// long as nobody makes another: bytes that are taken over are wiped where they were, and no method makes a string.
// What a runtime that collects garbage cannot promise is written down in docs/keys.md.
import { address } from "./encode.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";

/** The longest secret: the private exponent of an RSA key of 4096 bits. A slot for each. */
export const SECRET_MAX = 512;
/** A sealed container that runs has one; whoever waits for an answer a few more. */
const SLOTS = 512;
/** What getrandom(2) gives at once, always. */
const RANDOM_MAX = 256;
const PAGE = 4096;
const MADV_DONTDUMP = 16; // asm-generic/mman-common.h

interface Region {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Where the first slot begins: at a page of its own. */
  readonly first: number;
  readonly free: number[];
}

let region: Region | undefined;

/** Locked where RLIMIT_MEMLOCK allows it, and never dumped. */
function open(): Region {
  const size = SLOTS * SECRET_MAX;
  const bytes = mem(size + 2 * PAGE);
  const first = Number(-address(bytes) & BigInt(PAGE - 1));
  const pages = bytes.subarray(first, first + size);
  attempt({ call: "mlock", args: [pages, size] });
  attempt({ call: "madvise", args: [pages, size, MADV_DONTDUMP] });
  return { bytes, first, free: Array.from({ length: SLOTS }, (_, i) => i) };
}

export class Secret implements Disposable {
  readonly #slot: number;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #open = true;

  private constructor(length: number) {
    if (length > SECRET_MAX) throw new Error(`a secret of ${length} bytes, at most ${SECRET_MAX}`);
    region ??= open();
    const slot = region.free.pop();
    if (slot === undefined) throw new Error(`more than ${SLOTS} secrets at a time`);
    this.#slot = slot;
    const at = region.first + slot * SECRET_MAX;
    this.#bytes = region.bytes.subarray(at, at + length);
  }

  /** Takes the bytes over and wipes the caller's copy, also when it fails. */
  static take(source: Uint8Array): Secret {
    try {
      const made = new Secret(source.length);
      made.#bytes.set(source);
      return made;
    } finally {
      source.fill(0);
    }
  }

  /** From the kernel: the runtime's crypto.getRandomValues() keeps a copy of what it gives. */
  static random(length: number): Secret {
    if (length > RANDOM_MAX) throw new Error(`${length} random bytes, at most ${RANDOM_MAX}`);
    const made = new Secret(length);
    now({ call: "getrandom", args: [made.#bytes, length, 0], want: length });
    return made;
  }

  /** Zeros, for whoever fills them in lend(). */
  static empty(length: number): Secret {
    return new Secret(length);
  }

  get length(): number {
    return this.#bytes.length;
  }

  /** The bytes, for one call: whoever gets them keeps no reference. Their address does not change. */
  lend<T>(use: (bytes: Uint8Array<ArrayBuffer>) => T): T {
    if (!this.#open) throw new Error("a secret was used after its end");
    return use(this.#bytes);
  }

  /** Another of the same content, with an end of its own. */
  copy(): Secret {
    const made = new Secret(this.length);
    this.lend((bytes) => made.#bytes.set(bytes));
    return made;
  }

  equals(other: Secret): boolean {
    return this.lend((a) => other.lend((b) => a.length === b.length && crypto.timingSafeEqual(a, b)));
  }

  toJSON(): string {
    return "[secret]";
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#bytes.fill(0);
    region!.free.push(this.#slot);
  }
}
