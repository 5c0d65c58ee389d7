// Ethernet frames as nobody honest would send them, sockets that send and hear them in a network namespace, and what
// tests need of such a namespace.
import { openIn } from "../../src/run/netns.ts";
import { MSG_DONTWAIT, recvfrom, SOCK_NONBLOCK, SOCK_RAW, sendto, socket } from "../../src/sys/calls.ts";
import { EAGAIN } from "../../src/sys/error.ts";
import type { Fd } from "../../src/sys/fd.ts";
import { ipv4, macBytes, upLink } from "../../src/sys/link.ts";
import { lasting, mem } from "../../src/sys/mem.ts";
import { be16, be32, NETLINK_ROUTE, Netlink } from "../../src/sys/netlink.ts";
import { attempt, now } from "../../src/sys/now.ts";
import { EPOLLIN, watch } from "../../src/sys/poll.ts";

const AF_PACKET = 17; // linux/socket.h
const [ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6] = [0x0003, 0x0800, 0x0806, 0x86dd]; // linux/if_ether.h
export const BROADCAST = "ff:ff:ff:ff:ff:ff";

const join = (...pieces: (Uint8Array | readonly number[])[]): Uint8Array =>
  Buffer.concat(pieces.map((p) => Uint8Array.from(p)));

/** What a new network namespace needs first. */
export function loopbackUp(): void {
  using route = Netlink.open(NETLINK_ROUTE);
  route.do([upLink("lo")]);
}

/** The sum of RFC 1071. */
function checksum(bytes: Uint8Array): Uint8Array {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return be16(~sum & 0xffff);
}

export const ethernet = (to: string, from: string, type: number, payload: Uint8Array): Uint8Array =>
  join(macBytes(to), macBytes(from), be16(type), payload);

/** The frame within a VLAN (IEEE 802.1Q). */
export const tagged = (frame: Uint8Array, vlan: number): Uint8Array =>
  join(frame.subarray(0, 12), [0x81, 0], be16(vlan), frame.subarray(12));

/** As a socket sees it: the kernel puts the tag elsewhere. */
export const untagged = (frame: Uint8Array): Uint8Array =>
  frame[12] === 0x81 && frame[13] === 0 ? join(frame.subarray(0, 12), frame.subarray(16)) : frame;

/** ARP (RFC 826): "`address` is at `mac`", said to somebody. `op` 1 asks, 2 answers. */
export const arp = (
  op: 1 | 2,
  sender: { mac: string; address: string },
  target: string,
  frame = { from: sender.mac, to: BROADCAST },
): Uint8Array =>
  ethernet(
    frame.to,
    frame.from,
    ETH_P_ARP,
    join(
      [0, 1, 8, 0, 6, 4],
      be16(op),
      macBytes(sender.mac),
      ipv4(sender.address),
      Array(6).fill(0),
      ipv4(target),
    ),
  );

/** IPv4 (RFC 791) with something in it. */
export function ip(from: string, to: string, protocol: number, payload: Uint8Array): Uint8Array {
  const head = join(
    [0x45, 0],
    be16(20 + payload.length),
    [0, 0, 0, 0, 64, protocol, 0, 0],
    ipv4(from),
    ipv4(to),
  );
  head.set(checksum(head), 10);
  return join(head, payload);
}
/** UDP without a sum, which IPv4 allows (RFC 768). */
export const udp = (from: number, to: number, text: string): Uint8Array =>
  join(be16(from), be16(to), be16(8 + text.length), [0, 0], Buffer.from(text));
export const ipFrame = (to: string, from: string, packet: Uint8Array): Uint8Array =>
  ethernet(to, from, ETH_P_IP, packet);

/** ICMP (RFC 792): for this address there is a better gateway. */
export const redirect = (gateway: string): Uint8Array => {
  const body = join([5, 1, 0, 0], ipv4(gateway), Array(28).fill(0));
  body.set(checksum(body), 2);
  return body;
};

/** A router advertisement (RFC 4861) that makes its sender everybody's router. */
export function routerAdvertisement(from: string): Uint8Array {
  const source = join([0xfe, 0x80], Array(13).fill(0), [1]);
  const target = join([0xff, 0x02], Array(13).fill(0), [1]);
  const body = join([134, 0, 0, 0, 64, 0], be16(1800), be32(0), be32(0));
  const pseudo = join(source, target, be32(body.length), [0, 0, 0, 58]);
  body.set(checksum(join(pseudo, body)), 2);
  const packet = join([0x60, 0, 0, 0], be16(body.length), [58, 255], source, target, body);
  return ethernet("33:33:00:00:00:01", from, ETH_P_IPV6, packet);
}

/** Sends and hears the frames of one link. */
export class Wire implements Disposable {
  readonly #fd: Fd;
  constructor(netns: Fd | undefined, index: number) {
    const protocol = (ETH_P_ALL << 8) & 0xffff; // network byte order
    const [fd] = openIn(netns, [(save) => socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, protocol, save)]);
    this.#fd = fd!;
    const address = lasting(join([AF_PACKET, 0], be16(ETH_P_ALL), u32le(index), Array(12).fill(0)));
    now({ call: "bind", args: [this.#fd.n, address, address.length] });
    while (this.#next() !== undefined); // of other links, from before it was bound
  }
  send(frame: Uint8Array): void {
    now(sendto(this.#fd.n, lasting(frame), 0));
  }
  /** What others have sent; what we sent ourselves is not among it. */
  #next(): Uint8Array | "own" | undefined {
    const into = mem(2048);
    const from = mem(20); // struct sockaddr_ll
    const length = lasting(u32le(20));
    const n = attempt(recvfrom(this.#fd.n, into, MSG_DONTWAIT, from, length));
    if (n === -EAGAIN) return undefined;
    if (n < 0) throw new Error(`recvfrom: errno ${-n}`);
    const PACKET_OUTGOING = 4; // linux/if_packet.h
    return from[10] === PACKET_OUTGOING ? "own" : into.subarray(0, n);
  }
  /** All frames up to one that holds this text; without it, what has come within 0.9 s. */
  async upTo(text: string): Promise<Uint8Array[]> {
    const frames: Uint8Array[] = [];
    for (;;) {
      const frame = this.#next();
      if (frame === undefined) {
        if (!(await soon(this.#fd))) return frames; // silence is the answer: it has to last a while
      } else if (frame !== "own") {
        frames.push(frame);
        if (Buffer.from(frame).includes(text)) return frames;
      }
    }
  }
  [Symbol.dispose](): void {
    this.#fd.close();
  }
}

function u32le(n: number): Uint8Array {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n);
  return b;
}

/** Can it be read within that time? */
export async function soon(fd: Fd, ms = 900): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  using _watch = watch(fd, EPOLLIN, () => resolve(true));
  const timer = setTimeout(resolve, ms, false);
  return await promise.finally(() => clearTimeout(timer));
}
