// Messages with descriptors (SCM_RIGHTS, unix(7)) on AF_UNIX sockets. The runtime's own sockets cannot carry them.
import { type At, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SOL_SOCKET } from "./calls.ts";
import { address } from "./encode.ts";
import { EAGAIN, EINTR, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { lasting, mem, Struct } from "./mem.ts";
import { attempt } from "./now.ts";
import { type Data, type Op, show } from "./op.ts";

const [SCM_RIGHTS, SCM_CREDENTIALS] = [1, 2]; // linux/socket.h
const CREDENTIALS = 32; // CMSG_SPACE(sizeof(struct ucred))
const MSG_PEEK = 2;
const MSG_TRUNC = 0x20;
const MSG_CTRUNC = 8;
/** Descriptors taken from one message: more are closed by the kernel. */
const DESCRIPTORS_MAX = 8;

/** struct msghdr with one piece of data; its memory lives as long as `header` does. */
function header(
  data: Uint8Array,
  control: Uint8Array,
  name?: Uint8Array,
): { header: Uint8Array; keep: unknown } {
  const vector = mem(16);
  const v = new DataView(vector.buffer);
  v.setBigUint64(0, address(data), true);
  v.setBigUint64(8, BigInt(data.length), true);
  const bytes = mem(56);
  const h = new DataView(bytes.buffer);
  if (name) {
    h.setBigUint64(0, address(name), true);
    h.setUint32(8, name.length, true);
  }
  h.setBigUint64(16, address(vector), true);
  h.setBigUint64(24, 1n, true);
  if (control.length > 0) h.setBigUint64(32, address(control), true);
  h.setBigUint64(40, BigInt(control.length), true);
  return { header: bytes, keep: [vector, data, control, name] };
}

const space = (descriptors: number): number => (16 + 4 * descriptors + 7) & ~7; // CMSG_SPACE

/** Send one message whole (at least a byte), with descriptors beside it. `to`: sockaddr_un of the receiver, on an unconnected socket. */
export function sendMessage(
  socket: Fd,
  bytes: Uint8Array,
  descriptors: readonly Fd[] = [],
  to?: Uint8Array,
): void {
  const control = mem(descriptors.length === 0 ? 0 : space(descriptors.length));
  if (descriptors.length > 0) {
    const c = new DataView(control.buffer);
    c.setBigUint64(0, BigInt(16 + 4 * descriptors.length), true);
    c.setInt32(8, SOL_SOCKET, true);
    c.setInt32(12, SCM_RIGHTS, true);
    descriptors.forEach((fd, i) => {
      c.setInt32(16 + 4 * i, fd.n, true);
    });
  }
  const data = lasting(bytes);
  const m = header(data, control, to && lasting(to));
  const op: Op = { call: "sendmsg", args: [socket.n, m.header, MSG_DONTWAIT | MSG_NOSIGNAL] };
  const sent = attempt(op);
  data.fill(0); // perhaps a secret
  if (sent < 0) throw new SysError(-sent, show(op));
  if (sent !== data.length) throw new SysError(0, `${show(op)}: ${sent} of ${data.length} bytes`);
  void m.keep;
}

/** struct msghdr: one byte, and beside it a descriptor, printed as `text`. */
export function rights(fd: number, text: string): Data {
  const byte: Data = { data: new Uint8Array(1), text: "[0]" };
  const vector: Data = { data: new Struct(16).skip(8).u64(1).bytes, text: "", pointers: [[0, byte]] };
  const control: Data = {
    data: new Struct(space(1))
      .u64(16 + 4)
      .i32(SOL_SOCKET)
      .i32(SCM_RIGHTS)
      .i32(fd).bytes,
    text: "",
  };
  return {
    data: new Struct(56).skip(24).u64(1).skip(8).u64(control.data.length).bytes,
    text,
    pointers: [
      [16, vector],
      [32, control],
    ],
  };
}

/** A child's way to hand a descriptor to its parent: one message. */
export const handOver = (socket: At, fd: number): Op => ({
  call: "sendmsg",
  args: [socket, rights(fd, `{SCM_RIGHTS, [${fd}]}`), MSG_NOSIGNAL],
  want: 1,
});

/** Send one message as if user and group `id` had sent it: root may say so (unix(7), SCM_CREDENTIALS). */
export function sendAs(socket: Fd, bytes: Uint8Array, id: number): void {
  const control = mem(CREDENTIALS);
  const c = new DataView(control.buffer);
  c.setBigUint64(0, BigInt(16 + 12), true);
  c.setInt32(8, SOL_SOCKET, true);
  c.setInt32(12, SCM_CREDENTIALS, true);
  c.setInt32(16, process.pid, true);
  c.setUint32(20, id, true);
  c.setUint32(24, id, true);
  const data = lasting(bytes);
  const m = header(data, control);
  const op: Op = { call: "sendmsg", args: [socket.n, m.header, MSG_DONTWAIT | MSG_NOSIGNAL] };
  const sent = attempt(op);
  void m.keep;
  if (sent < 0) throw new SysError(-sent, show(op));
}

export interface Received {
  readonly bytes: Uint8Array;
  readonly descriptors: Fd[];
  /** Who sent it, as the kernel says; on sockets with SO_PASSCRED. */
  readonly pid?: number;
  readonly uid?: number;
  /** The message had more bytes or descriptors than there was room for. */
  readonly cut: boolean;
}

/** One message, if there is one: "later" if not, "closed" if the other side has ended the connection. `stay`: it can be
 * received again, with new copies of its descriptors. */
export function receiveMessage(socket: Fd, max: number, stay = false): Received | "later" | "closed" {
  const data = mem(max);
  const control = mem(space(DESCRIPTORS_MAX) + CREDENTIALS);
  const m = header(data, control);
  const flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC | (stay ? MSG_PEEK : 0);
  const op: Op = { call: "recvmsg", args: [socket.n, m.header, flags] };
  const n = attempt(op);
  void m.keep;
  if (n === -EAGAIN || n === -EINTR) return "later";
  if (n < 0) throw new SysError(-n, show(op));
  const h = new DataView(m.header.buffer);
  const length = Number(h.getBigUint64(40, true));
  const said = h.getInt32(48, true);
  const c = new DataView(control.buffer);
  const descriptors: Fd[] = [];
  let sender: { pid: number; uid: number } | undefined;
  for (let at = 0; at + 16 <= length; ) {
    const size = Number(c.getBigUint64(at, true));
    if (size < 16) break;
    const type = c.getInt32(at + 8, true) === SOL_SOCKET ? c.getInt32(at + 12, true) : 0;
    if (type === SCM_CREDENTIALS)
      sender = { pid: c.getInt32(at + 16, true), uid: c.getUint32(at + 20, true) };
    if (type === SCM_RIGHTS)
      for (let k = at + 16; k + 4 <= at + size; k += 4) descriptors.push(new Fd(c.getInt32(k, true)));
    at += (size + 7) & ~7;
  }
  if (n === 0 && descriptors.length === 0) return "closed";
  const cut = (said & (MSG_TRUNC | MSG_CTRUNC)) !== 0;
  const bytes = n === max ? data : lasting(data.subarray(0, n)); // where its length was known there is one copy
  if (n < max) data.fill(0, 0, n); // else two
  return { bytes, descriptors, cut, ...sender };
}
