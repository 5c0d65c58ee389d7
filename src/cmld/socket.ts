// Between a listening socket and whoever handles its messages: accept, unframe, one message after the other, answer.
//
// A peer gets as far as its own connection. Messages of one connection are handled strictly in order, the next one
// when the last one's promise has settled; what arrives meanwhile stays in the kernel. send() resolves when the peer
// has room, so a handler that awaits it never buffers more than one message. Incomplete frames count against a limit
// of all connections together and have a time limit; a peer that is refused is told why. A client that has closed its
// sending side still gets its answers.

import { FRAME_MAX, FRAME_MAX_GUEST, frame, Unframer } from "../lib/frame.ts";
import { SOL_SOCKET, write } from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import type { Fd } from "../sys/fd.ts";
import { accepting } from "../sys/listen.ts";
import { lasting, mem, Struct } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { hasReceived, overwriteReceived } from "../sys/received.ts";

export interface Limits {
  /** Bytes of one message. */
  readonly frame: number;
  readonly connections: number;
  /** Bytes of incomplete frames, all connections together. */
  readonly held: number;
  /** An incomplete frame that has not grown for so long ends the connection. */
  readonly partialMs: number;
  /** Bytes that wait for a peer before send() waits as well. */
  readonly waiting: number;
}

/** The machine's own control socket, and core0's. */
export const TRUSTED: Limits = {
  frame: FRAME_MAX,
  connections: 4096,
  held: 2 * FRAME_MAX,
  partialMs: 30_000,
  waiting: 1 << 20,
};
/** Sockets inside containers. */
export const GUEST: Limits = {
  frame: FRAME_MAX_GUEST,
  connections: 32,
  held: 4 * FRAME_MAX_GUEST,
  partialMs: 30_000,
  waiting: 64 << 10,
};

/** Messages of one connection that are handled before others get a turn. */
const TURN = 32;
/** A peer that does not read its last words is cut off. */
const LINGER_MS = 5_000;

export interface Peer {
  /** 1, 2, … for the log. */
  readonly id: number;
  /** SO_PEERCRED, in our namespaces. */
  readonly uid: number;
  readonly pid: number;
  /** Bytes that wait for the peer. */
  readonly queued: number;
  /** Aborted when the connection is gone. */
  readonly gone: AbortSignal;
  /** Resolves when there is room for more; also when the peer is gone. */
  send(message: Uint8Array): Promise<void>;
  /** Work that goes on after its request: the connection stays until it is done, even if the peer sends no more. */
  during(work: Promise<void>): void;
  /** Close when everything sent has been taken. */
  close(): void;
}

export interface Protocol {
  readonly limits: Limits;
  opened?(peer: Peer): void;
  /** The next message of this peer is handled when the promise has settled. May not reject. */
  handle(message: Uint8Array<ArrayBuffer>, peer: Peer): Promise<void>;
  /** Last words for a peer that is refused, or whose stream cannot be understood any more. */
  complaint(text: string): Uint8Array | undefined;
  warn(text: string): void;
}

export interface Server extends Disposable {
  readonly peers: ReadonlySet<Peer>;
  /** Stop accepting; connections go on. */
  stopAccepting(): void;
}

/** The runtime's socket on an existing descriptor; its types do not know `fd`. */
interface RuntimeSocket {
  write(bytes: Uint8Array): number;
  end(): void;
  terminate(): void;
  pause(): void;
  resume(): void;
}

const SO_PEERCRED = 17; // asm-generic/socket.h

function credentials(fd: Fd): { pid: number; uid: number } {
  const into = mem(12);
  const length = new Struct(4).u32(12).bytes;
  now({ call: "getsockopt", args: [fd.n, SOL_SOCKET, SO_PEERCRED, into, length] });
  const view = new DataView(into.buffer);
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true) };
}

const DONE = Promise.resolve();

class Shared {
  held = 0;
  readonly peers = new Set<Connection>();
  /** Those with an incomplete frame. */
  readonly #partial = new Set<Connection>();
  #sweep: Timer | undefined;
  constructor(readonly protocol: Protocol) {}

  /** A timer runs only while there is something to look at. */
  partial(c: Connection, is: boolean): void {
    if (is) this.#partial.add(c);
    else this.#partial.delete(c);
    if (this.#partial.size === 0) {
      clearInterval(this.#sweep);
      this.#sweep = undefined;
    } else
      this.#sweep ??= setInterval(() => {
        const now = performance.now();
        for (const one of [...this.#partial]) one.expire(now);
      }, this.protocol.limits.partialMs / 4);
  }
}

class Connection implements Peer {
  #socket: RuntimeSocket | undefined;
  readonly #in: Unframer;
  readonly #chunks: Uint8Array[] = [];
  readonly #out: Uint8Array[] = [];
  readonly #room: (() => void)[] = [];
  readonly #gone = new AbortController();
  #queued = 0;
  #busy = false;
  #paused = false;
  #ended = false;
  #closing = false;
  #works = 0;
  #held = 0;
  /** When the incomplete frame last grew, milliseconds. */
  grown = 0;

  constructor(
    readonly id: number,
    readonly uid: number,
    readonly pid: number,
    readonly shared: Shared,
  ) {
    this.#in = new Unframer(shared.protocol.limits.frame, true);
  }

  get queued(): number {
    return this.#queued;
  }
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  open(socket: RuntimeSocket): void {
    this.#socket = socket;
    this.#flush();
  }

  data(bytes: Uint8Array): void {
    hasReceived(bytes.length);
    if (!this.#closing && !this.gone.aborted) this.#chunks.push(lasting(bytes));
    bytes.fill(0); // perhaps a PIN: what is left of it is in the message, which its handler wipes
    if (this.#closing || this.gone.aborted) return;
    if (this.#busy) this.#pause(true);
    else void this.#work();
  }

  #pause(on: boolean): void {
    if (this.#paused === on || this.gone.aborted) return;
    this.#paused = on;
    if (on) this.#socket?.pause();
    else this.#socket?.resume();
  }

  async #work(): Promise<void> {
    const { protocol } = this.shared;
    this.#busy = true;
    try {
      let turn = 0;
      for (let chunk = this.#chunks.shift(); chunk; chunk = this.#chunks.shift()) {
        using whole = new DisposableStack();
        whole.defer(() => chunk?.fill(0));
        for (const message of this.#in.push(chunk)) {
          await protocol.handle(message, this);
          if (this.#closing || this.gone.aborted) return;
          if (++turn % TURN === 0) await new Promise<void>((next) => setImmediate(next));
        }
      }
      this.#account();
      if (this.#ended) this.#in.end();
    } catch (e) {
      this.#complain(chain(e));
      return;
    } finally {
      this.#busy = false;
    }
    this.#pause(false);
    this.#settle();
  }

  #account(): void {
    const { shared } = this;
    shared.held += this.#in.held - this.#held;
    this.#held = this.#in.held;
    shared.partial(this, this.#held > 0);
    if (this.#held === 0) return;
    this.grown = performance.now();
    if (shared.held > shared.protocol.limits.held)
      throw new RangeError(
        `${shared.held} bytes of incomplete messages on all connections, at most ${shared.protocol.limits.held}`,
      );
  }

  /** The peer sends no more. */
  end(): void {
    this.#ended = true;
    if (this.#busy || this.#closing) return;
    try {
      this.#in.end();
      this.#settle();
    } catch (e) {
      this.#complain(chain(e));
    }
  }

  expire(now: number): void {
    const { partialMs } = this.shared.protocol.limits;
    if (!this.#busy && now - this.grown > partialMs)
      this.#complain(`a message is incomplete and has not grown for ${partialMs / 1000} s`);
  }

  #complain(text: string): void {
    const { protocol } = this.shared;
    protocol.warn(`connection ${this.id} of uid ${this.uid}, pid ${this.pid}: ${text}`);
    const words = protocol.complaint(text);
    if (words) void this.send(words);
    this.close();
  }

  during(work: Promise<void>): void {
    this.#works++;
    void work.finally(() => {
      this.#works--;
      this.#settle();
    });
  }

  /** When the peer sends no more and everything is answered, the connection ends. */
  #settle(): void {
    if (this.#ended && !this.#busy && this.#works === 0) this.close();
  }

  send(message: Uint8Array): Promise<void> {
    if (this.gone.aborted || this.#closing) return DONE;
    const bytes = frame(message, FRAME_MAX);
    this.#out.push(bytes);
    this.#queued += bytes.length;
    this.#flush();
    if (this.#queued <= this.shared.protocol.limits.waiting) return DONE;
    return new Promise((resolve) => this.#room.push(resolve));
  }

  #flush(): void {
    if (!this.#socket || this.gone.aborted) return;
    for (let first = this.#out[0]; first; first = this.#out[0]) {
      const n = this.#socket.write(first);
      if (n < 0) return; // the close event follows
      this.#queued -= n;
      first.fill(0, 0, n); // perhaps a recovery key
      if (n < first.length) {
        this.#out[0] = first.subarray(n);
        break;
      }
      this.#out.shift();
    }
    if (this.#queued <= this.shared.protocol.limits.waiting) for (const go of this.#room.splice(0)) go();
    if (this.#closing && this.#queued === 0) this.#socket.end();
  }

  drain(): void {
    this.#flush();
  }

  close(): void {
    if (this.#closing || this.gone.aborted) return;
    this.#closing = true;
    this.#forget();
    this.#flush();
    setTimeout(() => this.terminate(), LINGER_MS).unref();
  }

  /** Nobody will read what else has come; some of it is perhaps a PIN. */
  #forget(): void {
    for (const chunk of this.#chunks.splice(0)) chunk.fill(0);
    this.#in.wipe();
    overwriteReceived();
  }

  terminate(): void {
    if (!this.gone.aborted) this.#socket?.terminate();
  }

  /** The runtime has closed the descriptor. */
  closed(): void {
    if (this.gone.aborted) return;
    const { shared } = this;
    shared.peers.delete(this);
    shared.partial(this, false);
    shared.held -= this.#held;
    this.#held = 0;
    this.#forget();
    for (const bytes of this.#out.splice(0)) bytes.fill(0);
    this.#queued = 0;
    for (const go of this.#room.splice(0)) go();
    this.#gone.abort();
  }
}

let connections = 0;

/** Serve every connection that arrives on `listening`, which stays the caller's. */
export function serve(listening: Fd, protocol: Protocol): Server {
  const shared = new Shared(protocol);

  function accept(fd: Fd): void {
    const { uid, pid } = credentials(fd);
    if (shared.peers.size >= protocol.limits.connections) {
      const text = `${shared.peers.size} connections are open already, and no more are allowed`;
      protocol.warn(`connection of uid ${uid}, pid ${pid} refused: ${text}`);
      const words = protocol.complaint(text);
      if (words) attempt(write(fd.n, frame(words)));
      fd.close();
      return;
    }
    const c = new Connection(++connections, uid, pid, shared);
    shared.peers.add(c);
    protocol.opened?.(c);
    const n = fd.take();
    const options = {
      fd: n,
      allowHalfOpen: true,
      socket: {
        open: (socket: RuntimeSocket) => c.open(socket),
        data: (_: unknown, bytes: Uint8Array) => c.data(bytes),
        drain: () => c.drain(),
        end: () => c.end(),
        error: (_: unknown, e: unknown) => protocol.warn(`connection ${c.id}: ${chain(e)}`),
        close: () => c.closed(),
      },
    };
    Bun.connect(options as unknown as Parameters<typeof Bun.connect>[0]).catch((e) => {
      protocol.warn(`connection ${c.id}: ${chain(e)}`);
      c.closed();
    });
  }

  const watching = accepting(listening, (fd) => {
    try {
      accept(fd);
    } catch (e) {
      protocol.warn(`accept: ${chain(e)}`);
      if (fd.open) fd.close();
    }
  });
  return {
    peers: shared.peers,
    stopAccepting: () => watching[Symbol.dispose](),
    [Symbol.dispose]() {
      watching[Symbol.dispose]();
      for (const c of [...shared.peers]) c.terminate();
    },
  };
}
