// Frames on SEQPACKET sockets, as the original's scd speaks: the length (u32, big-endian) is one packet, the message the
// next (spec/security.md 0.1). Ours may send one descriptor beside the length.

import type { Fd } from "./fd.ts";
import { EPOLLIN, watch } from "./poll.ts";
import { receiveMessage, sendMessage } from "./scm.ts";

const LENGTH = 4;

/** The largest message: what a configuration with its signature and certificates needs, with room to spare. */
export const PACKET_MAX = 2 * 1024 * 1024;

export interface Packet {
  readonly bytes: Uint8Array;
  /** The receiver owns it. */
  readonly fd: Fd | undefined;
}

export function sendPacket(socket: Fd, bytes: Uint8Array, fd?: Fd): void {
  if (bytes.length > PACKET_MAX) throw new Error(`a message of ${bytes.length} bytes, at most ${PACKET_MAX}`);
  const length = new Uint8Array(LENGTH);
  new DataView(length.buffer).setUint32(0, bytes.length);
  sendMessage(socket, length, fd ? [fd] : []);
  if (bytes.length > 0) sendMessage(socket, bytes);
}

/**
 * Hand every frame that arrives to `on`, one after the other: the next is read when the promise of the last has
 * resolved. `over` is called once, when the other side has closed or broken the rules (with the reason), or `on` failed.
 */
export function receiving(
  socket: Fd,
  on: (packet: Packet) => void | Promise<void>,
  over: (reason?: unknown) => void,
): Disposable {
  let expected: { length: number; fd: Fd | undefined } | undefined;
  let done = false;
  const end = (reason?: unknown) => {
    if (done) return;
    done = true;
    w[Symbol.dispose]();
    expected?.fd?.close();
    over(reason);
  };
  /** One packet; true while there may be more. */
  const step = async (): Promise<boolean> => {
    const got = receiveMessage(socket, expected ? expected.length : LENGTH);
    if (got === "later") return false;
    if (got === "closed") {
      end();
      return false;
    }
    const [fd, ...more] = got.descriptors;
    for (const other of more) other.close();
    if (!expected) {
      if (got.cut || got.bytes.length !== LENGTH || more.length > 0) {
        fd?.close();
        throw new Error("a length and a message were expected, each in its packet");
      }
      const length = new DataView(got.bytes.buffer, got.bytes.byteOffset).getUint32(0);
      if (length > PACKET_MAX) {
        fd?.close();
        throw new Error(`a message of ${length} bytes is announced, at most ${PACKET_MAX}`);
      }
      expected = { length, fd };
      if (length > 0) return true;
    } else {
      fd?.close();
      if (got.cut || got.bytes.length !== expected.length) {
        got.bytes.fill(0); // perhaps a secret
        throw new Error(`a message of ${got.bytes.length} bytes where ${expected.length} were announced`);
      }
    }
    const packet = { bytes: expected.length > 0 ? got.bytes : new Uint8Array(), fd: expected.fd };
    expected = undefined;
    await on(packet);
    return !done;
  };
  const w = watch(socket, EPOLLIN, () => {
    w.pause();
    void (async () => {
      try {
        while (!done && (await step()));
        if (!done) w.resume();
      } catch (e) {
        end(e);
      }
    })();
  });
  return { [Symbol.dispose]: () => end() };
}
