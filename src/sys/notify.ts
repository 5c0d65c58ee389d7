// Calls that a filter leaves to us (seccomp_unotify(2)): whoever makes one waits in the kernel until the listener of its
// filter has an answer. A notification's id stands for that very caller: what was read by its pid counts only if the id
// is still valid afterwards.
import { dup3, ioctl, O_CLOEXEC } from "./calls.ts";
import { EINTR, ENOENT, SysError } from "./error.ts";
import type { Fd } from "./fd.ts";
import { Struct } from "./mem.ts";
import { attempt } from "./now.ts";
import { NR } from "./numbers.ts";
import { type Call, type Data, type Op, Reg, show } from "./op.ts";
import { rights } from "./scm.ts";

// linux/seccomp.h
const [NOTIF_RECV, NOTIF_SEND, NOTIF_ID_VALID] = [0xc0502100, 0xc0182101, 0x40082102];
const SET_MODE_FILTER = 1;
const [NEW_LISTENER, WAIT_KILLABLE_RECV] = [8, 0x20];
const FLAG_CONTINUE = 1;
/** Bytes of struct seccomp_notif. */
export const NOTIFICATION = 80;
const RESPONSE_SIZE = 24;
const EFAULT = 14;

export interface Notification {
  readonly id: bigint;
  /** The thread that called, by its pid in our namespace; 0: it has none there. */
  readonly pid: number;
  readonly call: Call;
  /** The registers, all six. */
  readonly args: readonly bigint[];
}

/** What the caller gets: a result, an errno, or "kernel": it does the call itself, as if nobody had asked. */
export type Answer = { readonly value: number } | { readonly error: number } | "kernel";

const column = process.arch === "arm64" ? 1 : 0;
const names = new Map(
  (Object.keys(NR) as Call[]).flatMap((call) =>
    NR[call][column] === null ? [] : [[NR[call][column], call]],
  ),
) as Map<number, Call>;

/** struct seccomp_notif. Undefined: a number that we gave no such verdict. */
export function decode(bytes: Uint8Array): Notification | undefined {
  if (bytes.length !== NOTIFICATION) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const call = names.get(view.getInt32(16, true));
  if (call === undefined) return undefined;
  return {
    id: view.getBigUint64(0, true),
    pid: view.getUint32(8, true),
    call,
    args: [0, 1, 2, 3, 4, 5].map((i) => view.getBigUint64(32 + 8 * i, true)),
  };
}

/** Put the next call that waits `into` NOTIFICATION zeroed bytes; only when poll says that there is one, else this
 * blocks. False: its caller has been killed meanwhile. */
export function receive(listener: Fd, into: Uint8Array): boolean {
  const op = ioctl(listener.n, NOTIF_RECV, into);
  const result = attempt(op);
  if (result === -ENOENT || result === -EINTR) return false;
  if (result < 0) throw new SysError(-result, show(op));
  return true;
}

/** False: the caller is gone, or was interrupted. */
export const isWaiting = (listener: Fd, id: bigint): boolean =>
  attempt(ioctl(listener.n, NOTIF_ID_VALID, new Struct(8).u64(id).bytes)) === 0;

/** A caller that is gone needs no answer. */
export function reply(listener: Fd, id: bigint, answer: Answer): void {
  const response = new Struct(RESPONSE_SIZE).u64(id);
  if (answer === "kernel") response.u64(0).i32(0).u32(FLAG_CONTINUE);
  else if ("error" in answer) response.u64(0).i32(-answer.error).u32(0);
  else response.u64(answer.value).i32(0).u32(0);
  const op = ioctl(listener.n, NOTIF_SEND, response.bytes);
  const result = attempt(op);
  if (result < 0 && result !== -ENOENT) throw new SysError(-result, show(op));
}

/** Once a call was received only a fatal signal ends the wait for its answer (Linux 5.19): otherwise a signal handler
 * would make the caller repeat what we have done. EINVAL: the kernel does not know it. */
let killable: number | undefined;
function listenerFlags(): number {
  const asked = NEW_LISTENER | WAIT_KILLABLE_RECV;
  killable ??=
    attempt({ call: "seccomp", args: [SET_MODE_FILTER, asked, null] }) === -EFAULT ? asked : NEW_LISTENER;
  return killable;
}

const LISTENER = new Reg(0);
/** Of a SEQPACKET pair, as the child has them: the listener travels through it. */
export interface Ends {
  readonly ours: number;
  readonly theirs: number;
}

/** Load a filter into the calling process, which is root in its user namespace, and all that it will start. With
 * ends: its listener is sent there, and nothing of both is left open; without: there is no listener, and a call that
 * would be left to it is ENOSYS. */
export function loadFilter(filter: Data, ends?: Ends): Op[] {
  if (!ends) return [{ call: "seccomp", args: [SET_MODE_FILTER, 0, filter] }];
  const { ours, theirs } = ends;
  return [
    { call: "seccomp", args: [SET_MODE_FILTER, listenerFlags(), filter], save: LISTENER },
    dup3(LISTENER, ours, O_CLOEXEC), // a message names a descriptor by a number that we know
    { call: "sendmsg", args: [theirs, rights(ours, `{SCM_RIGHTS=[${ours}]}`), 0], want: 1 },
    ...[LISTENER, ours, theirs].map((fd): Op => ({ call: "close", args: [fd] })),
  ];
}
