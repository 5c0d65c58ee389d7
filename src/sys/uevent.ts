// Kernel events about devices (NETLINK_KOBJECT_UEVENT; lib/kobject_uevent.c of Linux): "add@/devices/…", then
// NAME=value, each ended by a NUL. Only the kernel's own are taken: any process may send to such a socket.
import { AF_NETLINK, MSG_DONTWAIT, recvfrom, SOCK_DGRAM, setsockopt, socket } from "./calls.ts";
import { EAGAIN, EINTR, ENOBUFS, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { mem, Struct } from "./mem.ts";
import { attempt, now } from "./now.ts";
import { type Op, type Reg, show } from "./op.ts";
import { EPOLLIN, type Watch, watch } from "./poll.ts";
import { sendAs } from "./scm.ts";

const NETLINK_KOBJECT_UEVENT = 15; // linux/netlink.h
const KERNEL_GROUP = 1;
/** UEVENT_BUFFER_SIZE is 2048; the header "add@PATH" comes on top. */
const EVENT_MAX = 8192;
/** Coldplug at boot makes thousands of events at once. */
const RECEIVE_BUFFER = 4 << 20;
const SO_RCVBUFFORCE = 33; // asm-generic/socket.h
/** Events that are read before others get a turn. */
const TURN = 256;
const MSG_TRUNC = 0x20; // linux/socket.h

export interface Uevent {
  /** "add", "remove", "change", "bind", "unbind", … */
  readonly action: string;
  /** Below /sys: "/devices/pci0000:00/…" */
  readonly path: string;
  /** SUBSYSTEM, DEVNAME, MODALIAS, DEVTYPE, … */
  readonly values: ReadonlyMap<string, string>;
}

/** undefined for what is not in the kernel's form. */
export function parseUevent(datagram: Uint8Array): Uevent | undefined {
  const [head = "", ...lines] = Buffer.from(datagram).toString("utf8").split("\0");
  const at = head.indexOf("@");
  if (at <= 0 || !head.startsWith("/", at + 1)) return undefined;
  const values = new Map<string, string>();
  for (const line of lines) {
    const equals = line.indexOf("=");
    if (equals > 0) values.set(line.slice(0, equals), line.slice(equals + 1));
  }
  return { action: head.slice(0, at), path: head.slice(at + 1), values };
}

/** What the kernel takes from a sender: UEVENT_BUFFER_SIZE less "SEQNUM=" and its number, which it adds itself. */
const SENT_MAX = 2048 - 28;

/** In the kernel's form, without SEQNUM; undefined if it is too long to be sent. */
export function printUevent({ action, path, values }: Uevent): Uint8Array | undefined {
  const own = { ACTION: action, DEVPATH: path };
  const rest = [...values].filter(([name]) => !(name in own) && name !== "SEQNUM");
  const lines = [...Object.entries(own), ...rest].map(([name, value]) => `${name}=${value}\0`);
  const bytes = Buffer.from(`${action}@${path}\0${lines.join("")}`);
  return bytes.length > SENT_MAX ? undefined : bytes;
}

/** A socket through which events can be sent into the network namespace it was opened in. */
export const senderSocket = (save: Reg): Op => socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT, save);

/** Tell whoever listens in that namespace; to them it is the kernel that speaks, with the ids of root there. No child is
 * needed: the kernel judges the credentials that come with the message, and `root` is what root there is to us. */
export function sendUevent(to: Fd, event: Uint8Array, root: number): void {
  const [NLM_F_REQUEST, ANY_TYPE] = [1, 16]; // linux/netlink.h: NLMSG_MIN_TYPE
  const head = new Struct(16)
    .u32(16 + event.length)
    .u16(ANY_TYPE)
    .u16(NLM_F_REQUEST).bytes;
  sendAs(to, Buffer.concat([head, event]), root);
  const answer = mem(36); // only a refusal is answered, and before sendmsg(2) returns: struct nlmsgerr
  if (attempt(recvfrom(to.n, answer, MSG_DONTWAIT)) < 20) return;
  throw new SysError(-new DataView(answer.buffer).getInt32(16, true), "uevent");
}

/** A socket that hears the kernel's device events of its network namespace. */
export function ueventSocket(): Fd {
  const fd = new Fd(now(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)));
  attempt(setsockopt(fd.n, 1, SO_RCVBUFFORCE, RECEIVE_BUFFER));
  const address = {
    data: new Struct(12).u16(AF_NETLINK).u16(0).u32(0).u32(KERNEL_GROUP).bytes,
    text: "kernel",
  };
  now({ call: "bind", args: [fd.n, address, 12] });
  return fd;
}

/** Call `on` for every event; `lost` when the kernel had to drop some, so that the caller looks for itself. */
export function uevents(fd: Fd, on: (event: Uevent) => void, lost: () => void): Watch {
  const into = mem(EVENT_MAX);
  const from = mem(12); // sockaddr_nl
  const length = mem(4);
  return watch(fd, EPOLLIN, () => {
    for (let turn = 0; turn < TURN; turn++) {
      length[0] = 12;
      const op = recvfrom(fd.n, into, MSG_DONTWAIT | MSG_TRUNC, from, length);
      const n = attempt(op);
      if (n === -EAGAIN || n === -EINTR) return;
      if (n === -ENOBUFS) {
        lost();
        continue;
      }
      if (n < 0) throw new SysError(-n, show(op));
      const sender = new DataView(from.buffer).getUint32(4, true);
      const whole = sender === 0 && n <= EVENT_MAX; // MSG_TRUNC: as long as it was, not as much as there was room for
      const event = whole ? parseUevent(into.subarray(0, n)) : undefined;
      if (event) on(event);
    }
  });
}
