// What time a server says it is: one exchange of SNTP (RFC 4330, RFC 5905), and how far this machine's clock is from it.
import { randomBytes } from "node:crypto";
import { createSocket } from "node:dgram";
import { lookup } from "node:dns/promises";

const PORT = 123;
const PACKET = 48;
const [CLIENT, SERVER] = [3, 4]; // RFC 5905, figure 10
const VERSION = 4;
const UNSYNCHRONIZED = 3; // of the leap indicator
const STRATUM_MAX = 15;
/** From 1900, where NTP begins, to 1970. */
const EPOCH = 2_208_988_800;
/** Offsets of the timestamps: figure 8. */
const [ORIGINATE, RECEIVE, TRANSMIT] = [24, 32, 40];
/** One question: whoever wants to know asks again later, not within 15 s (RFC 4330, section 10). */
const WAIT_MS = 5_000;

/** A question. Its time is a number that nobody can guess, which the answer must repeat: ours is nobody's business. */
export function question(secret: Uint8Array): Buffer {
  const packet = Buffer.alloc(PACKET);
  packet[0] = (VERSION << 3) | CLIENT;
  packet.set(secret, TRANSMIT);
  return packet;
}

/** Seconds since 1970. After February 2036 the first bit of NTP's seconds is not set (RFC 4330, section 3). */
function seconds(packet: Buffer, at: number): number {
  const whole = packet.readUInt32BE(at);
  return whole + (whole < 2 ** 31 ? 2 ** 32 : 0) - EPOCH + packet.readUInt32BE(at + 4) / 2 ** 32;
}

/** Seconds by which the server is ahead; undefined: that is no answer to our question. */
export function offsetOf(
  answer: Buffer,
  secret: Uint8Array,
  sent: number,
  received: number,
): number | undefined {
  if (answer.length < PACKET || !answer.subarray(ORIGINATE, ORIGINATE + 8).equals(secret)) return undefined;
  const [first, stratum] = [answer[0]!, answer[1]!];
  if ((first & 7) !== SERVER) return undefined;
  if (first >> 6 === UNSYNCHRONIZED || stratum === 0 || stratum > STRATUM_MAX)
    throw new Error("the server does not know the time");
  if (answer.readBigUInt64BE(TRANSMIT) === 0n) throw new Error("the server says no time");
  return (seconds(answer, RECEIVE) - sent + (seconds(answer, TRANSMIT) - received)) / 2;
}

/** "host", "host:port" or an address. */
export async function ask(server: string): Promise<number> {
  const [, name = server, port = PORT] = /^([^:]+):(\d{1,5})$/.exec(server) ?? [];
  const { address, family } = await lookup(name);
  const socket = createSocket(family === 6 ? "udp6" : "udp4");
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const secret = randomBytes(8);
  let sent = 0;
  socket.on("error", reject);
  socket.on("message", (answer: Buffer) => {
    try {
      const offset = offsetOf(answer, secret, sent / 1000, Date.now() / 1000);
      if (offset !== undefined) resolve(offset);
    } catch (e) {
      reject(e);
    }
  });
  socket.connect(Number(port), address, () => {
    sent = Date.now();
    socket.send(question(secret));
  });
  const timer = setTimeout(() => reject(new Error("no answer")), WAIT_MS);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}
