// An open file descriptor that closes itself.
import { close, O_CLOEXEC, pipe2, socketpair } from "./calls.ts";
import { mem } from "./mem.ts";
import { now } from "./now.ts";

export class Fd implements Disposable {
  #n: number;
  constructor(n: number) {
    this.#n = n;
  }
  /** The number; throws after close() or take(). */
  get n(): number {
    if (this.#n < 0) throw new Error("descriptor already closed");
    return this.#n;
  }
  get open(): boolean {
    return this.#n >= 0;
  }
  close(): void {
    if (this.#n >= 0) now(close(this.#n));
    this.#n = -1;
  }
  /** Give the number away: the caller closes it. */
  take(): number {
    const n = this.n;
    this.#n = -1;
    return n;
  }
  [Symbol.dispose](): void {
    this.close();
  }
}

function two(fill: (into: Uint8Array<ArrayBuffer>) => void): [Fd, Fd] {
  const into = mem(8);
  fill(into);
  const view = new DataView(into.buffer);
  return [new Fd(view.getInt32(0, true)), new Fd(view.getInt32(4, true))];
}

/** Both ends close on exec. */
export function pipe(flags = O_CLOEXEC): { read: Fd; write: Fd } {
  const [read, write] = two((into) => now(pipe2(into, flags | O_CLOEXEC)));
  return { read, write };
}

/** A pair of connected AF_UNIX sockets, close-on-exec. `type`: SOCK_STREAM, SOCK_SEQPACKET …, with flags. */
export function pair(type: number): [Fd, Fd] {
  return two((into) => now(socketpair(type, into)));
}
