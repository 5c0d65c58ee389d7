// Netlink: messages as values, and a socket that sends a batch of them and reads the answers. Requests to rtnetlink
// and nf_tables are carried out inside sendto(2), and the first part of a dump is queued there as well, so the
// answers are read at once and nothing here waits: about 10 µs a request that reads, measured; what a request
// costs beyond that is the kernel's own work. Only the kernel's datagrams count: whoever is root in the network
// namespace of a socket can send to it, too.
import {
  AF_NETLINK,
  bindNetlink,
  MSG_DONTWAIT,
  recvfrom,
  SOCK_RAW,
  sendto,
  setsockopt,
  socket,
} from "./calls.ts";
import { EAGAIN, EINTR, ENOBUFS, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { lasting, mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Op } from "./op.ts";
import { EPOLLIN, type Watch, watch } from "./poll.ts";

// linux/netlink.h
export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;
export const NETLINK_GENERIC = 16;
export const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_CREATE = 0x400;
export const NLM_F_APPEND = 0x800;
export const NLM_F_DUMP = 0x300;
const [NLM_F_CAPPED, NLM_F_ACK_TLVS] = [0x100, 0x200];
const [NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE] = [1, 2, 3];
const NLMSGERR_ATTR_MSG = 1;
const SOL_NETLINK = 270;
const [NETLINK_CAP_ACK, NETLINK_EXT_ACK] = [10, 11];
const NLA_F_NESTED = 0x8000;
const NLA_TYPE_MASK = 0x3fff;
const HEADER = 16; // struct nlmsghdr

/** Datagrams of others than the kernel that one request ignores before it gives up. */
const FOREIGN_MAX = 1000;
/** Bytes that the answer to one request may have: a container can make as many links as it likes. */
const ANSWER_MAX = 8 << 20;
/** Messages in one send: their acknowledgements must fit into the receive buffer (212 992 bytes, about 800 each). */
const BATCH_MAX = 64;

/** A netlink attribute: its type and what it holds. A text gets its NUL; a list is nested attributes. */
export type Attribute = readonly [type: number, value: Uint8Array | string | readonly Attribute[]];

/** One message to the kernel. `what` stands in the error if the kernel refuses it. */
export interface Message {
  readonly type: number;
  /** NLM_F_REQUEST is added always, NLM_F_ACK where needed. */
  readonly flags?: number;
  /** The fixed part (struct ifinfomsg …) with the attributes. */
  readonly body: Uint8Array;
  readonly what: string;
}

/** One message from the kernel. */
export interface Reply {
  readonly type: number;
  readonly body: Uint8Array;
}

export const u8 = (n: number): Uint8Array => new Uint8Array([n]);
export function u16(n: number): Uint8Array {
  const b = Buffer.alloc(2);
  b.writeUInt16LE(n);
  return b;
}
export function u32(n: number): Uint8Array {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n >>> 0);
  return b;
}
/** Network byte order: nf_tables writes its numbers so. */
export function be32(n: number): Uint8Array {
  const b = Buffer.alloc(4);
  b.writeUInt32BE(n >>> 0);
  return b;
}
export function be16(n: number): Uint8Array {
  const b = Buffer.alloc(2);
  b.writeUInt16BE(n);
  return b;
}

/** A fixed part followed by attributes, padded to four bytes as the kernel wants them. */
export function body(fixed: Uint8Array, attributes: readonly Attribute[]): Uint8Array {
  const size = (list: readonly Attribute[]): number => list.reduce((n, [, v]) => n + 4 + align(length(v)), 0);
  const length = (v: Attribute[1]): number =>
    typeof v === "string" ? Buffer.byteLength(v) + 1 : v instanceof Uint8Array ? v.length : size(v);
  const out = Buffer.alloc(align(fixed.length) + size(attributes));
  out.set(fixed);
  let at = align(fixed.length);
  const put = (list: readonly Attribute[]): void => {
    for (const [type, value] of list) {
      const n = 4 + length(value);
      if (n > 0xffff) throw new RangeError(`netlink attribute ${type} of ${n} bytes, at most 65535`);
      out.writeUInt16LE(n, at);
      const nested = typeof value !== "string" && !(value instanceof Uint8Array);
      out.writeUInt16LE(nested ? type | NLA_F_NESTED : type, at + 2);
      if (nested) {
        at += 4;
        put(value);
      } else {
        if (typeof value === "string") out.write(value, at + 4);
        else out.set(value, at + 4);
        at += align(n);
      }
    }
  };
  put(attributes);
  return out;
}

const align = (n: number): number => (n + 3) & ~3;

/** The attributes in `bytes`, by type (the last one of a type counts); what is cut off or malformed ends the list. */
export function attributes(bytes: Uint8Array): Map<number, Uint8Array> {
  const found = new Map<number, Uint8Array>();
  for (const [type, value] of attributeList(bytes)) found.set(type, value);
  return found;
}

/** The attributes in `bytes` in order, repeated types included. */
export function attributeList(bytes: Uint8Array): [type: number, value: Uint8Array][] {
  const list: [number, Uint8Array][] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at + 4 <= bytes.length; ) {
    const n = view.getUint16(at, true);
    if (n < 4 || at + n > bytes.length) break;
    list.push([view.getUint16(at + 2, true) & NLA_TYPE_MASK, bytes.subarray(at + 4, at + n)]);
    at += align(n);
  }
  return list;
}

/** A text attribute: up to its NUL. Bytes outside of printable ASCII become \xNN: names of links are chosen by
 * containers and end on terminals. */
export function textOf(value: Uint8Array | undefined): string {
  if (!value) return "";
  const end = value.indexOf(0);
  let text = "";
  for (const c of end < 0 ? value : value.subarray(0, end))
    text += c >= 0x20 && c < 0x7f ? String.fromCharCode(c) : `\\x${c.toString(16).padStart(2, "0")}`;
  return text;
}

export function numberOf(value: Uint8Array | undefined): number {
  if (!value) return 0;
  const view = new DataView(value.buffer, value.byteOffset, value.byteLength);
  if (value.length >= 4) return view.getUint32(0, true);
  return value.length >= 2 ? view.getUint16(0, true) : (value[0] ?? 0);
}

/** A message with its header, as it goes to the kernel. */
export function pack(m: Message, sequence: number, flags: number): Uint8Array {
  const out = Buffer.alloc(HEADER + align(m.body.length));
  out.writeUInt32LE(HEADER + m.body.length, 0);
  out.writeUInt16LE(m.type, 4);
  out.writeUInt16LE(NLM_F_REQUEST | (m.flags ?? 0) | flags, 6);
  out.writeUInt32LE(sequence, 8);
  out.set(m.body, HEADER);
  return out;
}

// One buffer for all sockets: an answer is read and parsed before anything else runs. 32 KiB is the largest piece
// of a dump (NLMSG_GOODSIZE and netlink_dump() of Linux); a longer datagram is noticed and refused.
let buffer: Uint8Array<ArrayBuffer> | undefined;
const BUFFER = 64 << 10;
const address = mem(12); // struct sockaddr_nl
const addressLength = mem(4);

const fromKernel = (): boolean => new DataView(address.buffer).getUint32(4, true) === 0; // nl_pid

interface How {
  /** Index of the message whose answer ends the exchange; default: the last one's. */
  readonly last?: number;
  /** That message's flags; default NLM_F_ACK. */
  readonly flags?: number;
  readonly tolerate?: readonly number[];
  /** A refusal of the first one is the end as well. */
  readonly atomic?: boolean;
}

/** Bytes that no kernel would send. */
export class BadReply extends Error {}

/** What the kernel's datagrams come to, as answers to messages numbered from `start` on. */
export class Answers {
  readonly replies: Reply[] = [];
  readonly refusals: Error[] = [];
  interrupted = false;
  #size = 0;
  constructor(
    readonly messages: readonly Message[],
    readonly start: number,
    readonly how: How = {},
  ) {}

  /** One more datagram; true: it was the last. */
  take(datagram: Uint8Array): boolean {
    const { last = this.messages.length - 1, tolerate = [], atomic = false } = this.how;
    this.#size += datagram.length;
    if (this.#size > ANSWER_MAX)
      throw new Error(`${this.messages[0]!.what}: answer longer than ${ANSWER_MAX} bytes`);
    let done = false;
    for (const r of parse(datagram)) {
      const index = r.sequence - this.start;
      const message = this.messages[index];
      if (!message) continue; // the rest of an exchange that was given up
      if (r.flags & NLM_F_DUMP_INTR) this.interrupted = true;
      if (r.type === NLMSG_DONE || r.type === NLMSG_ERROR) {
        const errno = errnoOf(r.body);
        if (errno !== 0 && !tolerate.includes(errno)) this.refusals.push(refusal(message.what, errno, r));
        if (index === last || (atomic && index === 0 && errno !== 0)) done = true;
      } else if (r.type !== NLMSG_NOOP) this.replies.push({ type: r.type, body: lasting(r.body) });
    }
    return done;
  }
}

interface Received extends Reply {
  readonly flags: number;
  readonly sequence: number;
}

export class Netlink implements Disposable {
  readonly #fd: Fd;
  #sequence = 1;

  /** Takes over a netlink socket, made here or in another network namespace (run/netns.ts). */
  constructor(fd: Fd) {
    this.#fd = fd;
    now(setsockopt(fd.n, SOL_NETLINK, NETLINK_EXT_ACK, 1));
    now(setsockopt(fd.n, SOL_NETLINK, NETLINK_CAP_ACK, 1));
  }

  /** A socket in our own network namespace. */
  static open(protocol: number): Netlink {
    return new Netlink(new Fd(now(socket(AF_NETLINK, SOCK_RAW, protocol))));
  }

  [Symbol.dispose](): void {
    this.#fd.close();
  }

  /** Hear of changes: groups as bits (RTMGRP_*). `on` gets what the kernel has said since, or undefined if the
   * receive buffer was too small for it. Not for a socket that requests go through as well. */
  subscribe(groups: number, on: (news: readonly Reply[] | undefined) => void): Watch {
    now(bindNetlink(this.#fd.n, groups));
    return watch(this.#fd, EPOLLIN, () => {
      const news: Reply[] = [];
      let lost = false;
      for (let i = 0; i < FOREIGN_MAX; i++) {
        const n = this.#datagram();
        if (n === -EAGAIN) break;
        if (n === -ENOBUFS) lost = true;
        if (n > 0 && fromKernel())
          for (const { type, body } of parse(buffer!.subarray(0, n)))
            news.push({ type, body: lasting(body) });
      }
      on(lost ? undefined : news);
    });
  }

  /** Do all of `messages` in order, in as few sends as possible, and return what they answer. The kernel goes on
   * after a refusal; the first one is thrown when all have been tried. `tolerate`: errnos that are no failure. */
  do(messages: readonly Message[], ...tolerate: number[]): Reply[] {
    const all: Reply[] = [];
    let first: Error | undefined;
    for (let i = 0; i < messages.length; i += BATCH_MAX) {
      const { replies, refusals } = this.#exchange(messages.slice(i, i + BATCH_MAX), { tolerate });
      all.push(...replies);
      first ??= refusals[0];
    }
    if (first) throw first;
    return all;
  }

  /** do() or transaction() in two parts, for a caller that has the send done by a child: what the kernel does takes
   * the time of whoever sends. At most 64 messages. */
  prepare(
    messages: readonly Message[],
    { tolerate = [], atomic = false }: { tolerate?: readonly number[]; atomic?: boolean } = {},
  ): { send: Op; finish(): Reply[] } {
    const how = atomic ? { last: messages.length - 2, tolerate, atomic } : { tolerate };
    const { send, collect } = this.#compose(messages, how);
    return {
      send,
      finish: () => {
        const { replies, refusals } = collect();
        if (refusals[0]) throw refusals[0];
        return replies;
      },
    };
  }

  /** All answers to a dump request, asked again if the list changed meanwhile. */
  dump(message: Message): Reply[] {
    for (let tries = 0; tries < 10; tries++) {
      const { replies, refusals, interrupted } = this.#exchange([message], { flags: NLM_F_DUMP });
      if (refusals[0]) throw refusals[0];
      if (!interrupted) return replies;
    }
    throw new Error(`${message.what}: the list changes faster than it can be read`);
  }

  /** Messages that the kernel takes or refuses as a whole (nf_tables): the first one begins, the last one ends the
   * batch. Linux before 6.10 acknowledges neither of the two, so the last but one is asked for its answer; a batch
   * refused as a whole is answered in the name of the first. */
  transaction(messages: readonly Message[], ...tolerate: number[]): void {
    const { refusals } = this.#exchange(messages, { last: messages.length - 2, tolerate, atomic: true });
    if (refusals[0]) throw refusals[0];
  }

  #exchange(messages: readonly Message[], how: How): Answers {
    const { send, collect } = this.#compose(messages, how);
    now(send);
    return collect();
  }

  /** One datagram with all of `messages`, and what reads until number `last` of them is answered. */
  #compose(messages: readonly Message[], how: How): { send: Op; collect(): Answers } {
    const { last = messages.length - 1, flags = NLM_F_ACK } = how;
    const start = this.#sequence;
    this.#sequence += messages.length;
    // A refusal is reported without NLM_F_ACK too, and in order: asking for the last one's is enough.
    const packed = messages.map((m, i) => pack(m, start + i, i === last ? flags : 0));
    const bytes = lasting(Buffer.concat(packed));
    return {
      send: sendto(this.#fd.n, bytes, 0),
      collect: () => {
        const answers = new Answers(messages, start, how);
        while (!answers.take(this.#receive(messages[last]!.what)));
        return answers;
      },
    };
  }

  /** Length of the next datagram, now in `buffer`, or -errno. */
  #datagram(): number {
    buffer ??= mem(BUFFER);
    new DataView(addressLength.buffer).setUint32(0, address.length, true);
    return attempt(recvfrom(this.#fd.n, buffer, MSG_DONTWAIT, address, addressLength));
  }

  /** The next datagram that the kernel sent. */
  #receive(what: string): Uint8Array {
    for (let foreign = 0; foreign < FOREIGN_MAX; ) {
      const n = this.#datagram();
      if (n === -EINTR) continue;
      if (n === -EAGAIN) throw new Error(`${what}: the kernel did not answer`);
      if (n === -ENOBUFS) throw new Error(`${what}: answers were lost, the receive buffer was full`);
      if (n < 0) throw new SysError(-n, `${what}: recvfrom()`);
      if (fromKernel()) return buffer!.subarray(0, n);
      foreign++;
    }
    throw new Error(`${what}: flooded with messages that are not the kernel's`);
  }
}

/** The messages of one datagram. */
export function* parse(datagram: Uint8Array): Generator<Received> {
  const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.byteLength);
  for (let at = 0; at + HEADER <= datagram.length; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER || at + length > datagram.length) return;
    yield {
      type: view.getUint16(at + 4, true),
      flags: view.getUint16(at + 6, true),
      sequence: view.getUint32(at + 8, true),
      body: datagram.subarray(at + HEADER, at + length),
    };
    at += align(length);
  }
}

const errnoOf = (b: Uint8Array): number =>
  b.length < 4 ? 0 : -new DataView(b.buffer, b.byteOffset).getInt32(0, true);

/** One error for one refusal: what was tried, the errno, and the kernel's own sentence if it sent one. */
function refusal(what: string, errno: number, r: Received): Error {
  const error = new SysError(errno, what);
  if (r.flags & NLM_F_ACK_TLVS) {
    // struct nlmsgerr: the errno, the request's header, then its rest unless capped, then attributes.
    const view = new DataView(r.body.buffer, r.body.byteOffset, r.body.byteLength);
    const rest =
      r.type === NLMSG_DONE
        ? 4
        : r.flags & NLM_F_CAPPED || r.body.length < 8
          ? 4 + HEADER
          : 4 + align(view.getUint32(4, true));
    const text = textOf(attributes(r.body.subarray(rest)).get(NLMSGERR_ATTR_MSG));
    if (text !== "") error.cause = new Error(text);
  }
  return error;
}
