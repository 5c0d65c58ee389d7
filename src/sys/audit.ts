// The kernel's audit (NETLINK_AUDIT; linux/audit.h, kernel/audit.c of Linux 6.1): becoming the audit daemon, or
// listening beside one, and records as values.
//
// A record is text: "audit(SECONDS.MILLISECONDS:NUMBER): " and key=value words. The kernel writes its own words first
// and escapes what comes from others (comm="…", or hexadecimal); in records that programs send, the sender's text
// stands after msg=' and may look like anything. So the first of two equal keys counts, and nothing after msg='.
import { readFileSync, readlinkSync } from "node:fs";
import {
  AF_NETLINK,
  bindNetlink,
  MSG_DONTWAIT,
  recvfrom,
  SOCK_RAW,
  SOL_SOCKET,
  sendto,
  setsockopt,
  socket,
} from "./calls.ts";
import { EAGAIN, EEXIST, EINTR, ENOBUFS, ENOENT, ESRCH, isErrno, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { lasting, mem, Struct } from "./mem.ts";
import { Netlink, pack } from "./netlink.ts";
import { attempt, now } from "./now.ts";
import { EPOLLIN, watch } from "./poll.ts";

const NETLINK_AUDIT = 9; // linux/netlink.h
const [NLMSG_ERROR, NLM_F_ACK, HEADER] = [2, 4, 16];
/** The group that anybody with CAP_AUDIT_READ may listen to; it loses what is not read in time. */
const AUDIT_NLGRP_READLOG = 1;
const SO_RCVBUFFORCE = 33; // asm-generic/socket.h
const RECEIVE_BUFFER = 1 << 20;
/** MAX_AUDIT_MESSAGE_LENGTH of linux/audit.h; headers come on top. */
const TEXT_MAX = 8970;
const RECORD_MAX = 16 << 10;
/** Records that are taken before others get a turn. */
const TURN = 64;
const FIELDS_MAX = 64;

const [AUDIT_GET, AUDIT_SET, AUDIT_ADD_RULE] = [1000, 1001, 1011];
const [ENABLED, PID, RATE_LIMIT, BACKLOG_LIMIT, BACKLOG_WAIT_TIME] = [1, 4, 8, 0x10, 0x20]; // AUDIT_STATUS_*
const [AUDIT_FILTER_TASK, AUDIT_NEVER] = [1, 0];
/** Records of programs: AUDIT_USER, AUDIT_FIRST_USER_MSG to AUDIT_LAST_USER_MSG, and the second range. */
export const isFromProgram = (type: number): boolean =>
  type === 1005 || (type >= 1100 && type <= 1199) || (type >= 2100 && type <= 2999);

/** Records a second that the whole machine may make, and those that wait for us; more are lost, and counted. */
const [RATE, BACKLOG] = [5_000, 8_192];

export interface KernelRecord {
  readonly type: number;
  /** Seconds since 1970, with three decimals. */
  readonly time: number;
  readonly serial: number;
  /** What the kernel wrote, in its order; what it quotes without the quotes. */
  readonly fields: ReadonlyMap<string, string>;
  /** What a program sent. */
  readonly message?: string;
}

const STAMP = /^audit\(([0-9]{1,12}\.[0-9]{3}):([0-9]{1,12})\): ?/;
const WORD = /([A-Za-z_][A-Za-z0-9_-]{0,63})=(?:"([^"]*)"|'([^']*)'|([^ ]*))/y;

/** The text of one record; undefined if it is none. */
export function parseRecord(type: number, bytes: Uint8Array): KernelRecord | undefined {
  const whole = bytes.subarray(0, TEXT_MAX);
  const nul = whole.indexOf(0);
  const text = Buffer.from(nul < 0 ? whole : whole.subarray(0, nul)).toString("utf8");
  const stamp = STAMP.exec(text);
  if (!stamp) return undefined;
  let head = text.slice(stamp[0].length);
  let message: string | undefined;
  if (isFromProgram(type)) {
    const at = / (?:msg='|data=)/.exec(head);
    if (at) {
      message = head.slice(at.index + at[0].length).trimEnd();
      if (message.endsWith("'")) message = message.slice(0, -1);
      head = head.slice(0, at.index);
    }
  }
  const fields = new Map<string, string>();
  for (let at = 0; at < head.length && fields.size < FIELDS_MAX; ) {
    if (head[at] === " " || head[at] === ",") {
      at++;
      continue;
    }
    WORD.lastIndex = at;
    const found = WORD.exec(head);
    if (!found) {
      // A word that is no assignment, as in some records of security modules.
      const next = head.indexOf(" ", at + 1);
      if (next < 0) break;
      at = next;
      continue;
    }
    const [, key, ...values] = found;
    if (!fields.has(key!)) fields.set(key!, values.find((v) => v !== undefined) ?? "");
    at = WORD.lastIndex;
  }
  return {
    type,
    time: Number(stamp[1]),
    serial: Number(stamp[2]),
    fields,
    ...(message !== undefined && { message }),
  };
}

// --- who ----------------------------------------------------------------------------------

/** A whole number that the kernel wrote; undefined if it is none, or stands for "unset". */
export function numberIn(r: KernelRecord, key: string): number | undefined {
  const text = r.fields.get(key);
  if (text === undefined || !/^[0-9]{1,10}$/.test(text)) return undefined;
  const n = Number(text);
  return n === 0xffffffff ? undefined : n;
}

/** Clock ticks a second in /proc: USER_HZ is 100 on every architecture that we have. */
const USER_HZ = 100;

/** Whether a process that started so many ticks after boot can have caused a record at that time; `clock` is what
 * time it is now, and how many seconds after boot. A pid that has been given away since cannot. */
export const mayBeFrom = (ticks: number, time: number, clock: { now: number; boot: number }): boolean =>
  ticks / USER_HZ <= time - clock.now + clock.boot + 1 / USER_HZ;

/** The cgroup2 group of the process that caused a record, if it is there still and is the same; else undefined. */
export function groupOfProcess(r: KernelRecord): string | undefined {
  const pid = numberIn(r, "pid");
  if (pid === undefined || pid === 0) return undefined;
  try {
    const group = /^0::(.*)$/m.exec(readFileSync(`/proc/${pid}/cgroup`, "utf8"))?.[1];
    // Read after the group: had the pid changed hands before, the start would be later than the record.
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const ticks = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
    const boot = Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]);
    return mayBeFrom(ticks, r.time, { now: Date.now() / 1000, boot }) ? group : undefined;
  } catch (e) {
    if (isErrno(e, ENOENT) || isErrno(e, ESRCH)) return undefined;
    throw e;
  }
}

/** The kernel's numbers of processes are ours (PROC_PID_INIT_INO of linux/proc_ns.h). */
export const inFirstPidNamespace = (): boolean => readlinkSync("/proc/self/ns/pid") === "pid:[4026531836]";

// --- the socket ---------------------------------------------------------------------------

interface Status {
  readonly mask: number;
  readonly enabled?: number;
  readonly pid?: number;
  readonly rate?: number;
  readonly backlog?: number;
  readonly wait?: number;
}

/** struct audit_status */
const status = (s: Status): Uint8Array<ArrayBuffer> =>
  new Struct(44)
    .u32(s.mask)
    .u32(s.enabled ?? 0)
    .u32(0)
    .u32(s.pid ?? 0)
    .u32(s.rate ?? 0)
    .u32(s.backlog ?? 0)
    .skip(12)
    .u32(s.wait ?? 0).bytes;

/** struct audit_rule_data without fields: what every new task is told. */
const RULE = 4 * (3 + 64 + 64 + 64 + 64 + 1);

/** Switch audit on, within bounds, and never for system calls: those would make every call slower, and nobody has
 * asked for them. */
function configure(): void {
  using netlink = Netlink.open(NETLINK_AUDIT);
  const settings: Status = {
    mask: ENABLED | RATE_LIMIT | BACKLOG_LIMIT | BACKLOG_WAIT_TIME,
    enabled: 1,
    rate: RATE,
    backlog: BACKLOG,
    wait: 0, // nobody waits for us: a full queue loses records, which we are told
  };
  netlink.do([{ type: AUDIT_SET, body: status(settings), what: "switch the kernel's audit on" }]);
  const rule = new Struct(RULE).u32(AUDIT_FILTER_TASK).u32(AUDIT_NEVER).bytes;
  netlink.do([{ type: AUDIT_ADD_RULE, body: rule, what: "exempt system calls from audit" }], EEXIST);
}

export interface Listener {
  record(r: KernelRecord): void;
  /** Records were lost on their way: the kernel's count since it started, or undefined if only we were too slow. */
  lost(count: number | undefined): void;
}

export interface KernelAudit extends Disposable {
  /** Ask the kernel how many records it has lost. */
  ask(): void;
}

/**
 * Hear of the kernel's audit records. `daemon`: as the machine's audit daemon, which the kernel has one of; else only
 * listening: the role is left to whoever has it, or wants it later, and audit stays on or off as it is.
 */
export function kernelAudit(daemon: boolean, on: Listener): KernelAudit {
  const fd = new Fd(now(socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT)));
  const into = mem(RECORD_MAX);
  const from = mem(12); // struct sockaddr_nl
  const length = new Struct(4).u32(12).bytes;
  let known: number | undefined;

  /** Length of the next datagram of the kernel's, now in `into`; or -errno. */
  function next(): number {
    for (;;) {
      length[0] = 12;
      const n = attempt(recvfrom(fd.n, into, MSG_DONTWAIT, from, length));
      if (n === -EINTR) continue;
      const foreign = n > 0 && new DataView(from.buffer).getUint32(4, true) !== 0;
      if (!foreign) return n;
    }
  }

  /** One datagram holds one message; the length in its header leaves the header out, or not (kauditd_send_multicast_skb). */
  function take(n: number): number | undefined {
    if (n < HEADER) return undefined;
    const view = new DataView(into.buffer, 0, n);
    const type = view.getUint16(4, true);
    if (type === NLMSG_ERROR) return n < HEADER + 4 ? 0 : -view.getInt32(HEADER, true);
    if (type === AUDIT_GET) {
      const count = n < HEADER + 28 ? 0 : view.getUint32(HEADER + 24, true);
      if (known !== undefined && count > known) on.lost(count - known);
      known = count;
    } else if (type > AUDIT_GET) {
      const record = parseRecord(type, into.subarray(HEADER, n));
      if (record) on.record(record);
    }
    return undefined;
  }

  const ask = (): void => void attempt(sendto(fd.n, request(AUDIT_GET, mem(0), 0), 0));

  try {
    attempt(setsockopt(fd.n, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER));
    if (daemon) {
      configure();
      now(sendto(fd.n, request(AUDIT_SET, status({ mask: PID, pid: process.pid }), NLM_F_ACK), 0));
      for (let answer: number | undefined; answer === undefined; ) {
        const n = next();
        if (n < 0) throw new SysError(-n, "become the audit daemon: recvfrom()");
        answer = take(n);
        if (answer) throw new SysError(answer, "become the audit daemon");
      }
    } else now(bindNetlink(fd.n, AUDIT_NLGRP_READLOG));
    ask();
  } catch (e) {
    fd.close();
    throw e;
  }
  const watching = watch(fd, EPOLLIN, () => {
    for (let turn = 0; turn < TURN; turn++) {
      const n = next();
      if (n === -EAGAIN) return;
      if (n === -ENOBUFS) on.lost(undefined);
      else if (n < 0) throw new SysError(-n, "audit: recvfrom()");
      else take(n);
    }
  });
  return {
    ask,
    [Symbol.dispose]() {
      watching[Symbol.dispose]();
      fd.close();
    },
  };
}

const request = (type: number, body: Uint8Array, flags: number): Uint8Array<ArrayBuffer> =>
  lasting(pack({ type, body, what: "audit" }, 1, flags));
