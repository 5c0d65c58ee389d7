// Setting the machine's clock, for containers with allow_system_time: clock_settime, settimeofday, clock_adjtime,
// adjtimex and the ioctls of a real-time clock. The kernel wants CAP_SYS_TIME of the host; cmld does it for whoever has
// it in the container's user namespace. Reading is everybody's, natively. Containers without allow_system_time never
// get here: their filter answers EPERM, and the kernel refuses what it leaves to it.
import { readFileSync } from "node:fs";
import { AT_EMPTY_PATH, ioctl, pidfdGetfd, pidfdOpen, pwrite64, wait, write } from "../../../sys/calls.ts";
import { EACCES, EBADF, EINVAL, EIO, EPERM } from "../../../sys/error.ts";
import { Fd } from "../../../sys/fd.ts";
import { mem, Struct } from "../../../sys/mem.ts";
import type { Answer } from "../../../sys/notify.ts";
import { attempt } from "../../../sys/now.ts";
import { type Arg, type Op, Reg } from "../../../sys/op.ts";
import { WRITE } from "../../devices/rules.ts";
import { int, type Supervised } from "./supervised.ts";

const EFAULT = 14;
const CLOCK_REALTIME = 0; // linux/time.h
const TIME = 16; // struct timespec, timeval, timezone and two of them
const TIMEX = 208; // struct timex
const RESULT = new Reg(0);
const CLOCK = new Reg(1);

const settime = (seconds: bigint, nanoseconds: bigint): Op => ({
  call: "clock_settime",
  args: [CLOCK_REALTIME, new Struct(TIME).u64(seconds).u64(nanoseconds).bytes],
});

async function set(call: Supervised, seconds: bigint, nanoseconds: bigint): Promise<Answer> {
  if (!call.valid()) return { error: EPERM };
  const made = await call.do([], [settime(seconds, nanoseconds), call.done]);
  if ("errno" in made) return { error: made.errno };
  call.container.log(`has set the clock: ${seconds} s since 1970`);
  return { value: 0 };
}

const two = (bytes: Uint8Array): [bigint, bigint] => {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return [view.getBigInt64(0, true), view.getBigInt64(8, true)];
};

export async function clockSettime(call: Supervised): Promise<Answer> {
  const [clock, at] = call.args as [bigint, bigint];
  if (int(clock) !== CLOCK_REALTIME || !call.may("SYS_TIME")) return "kernel"; // EINVAL, EPERM
  const bytes = await call.bytes(at, TIME);
  return bytes ? set(call, ...two(bytes)) : { error: EFAULT };
}

/** The time zone is the kernel's own, and nobody's to change. */
export async function setTimeOfDay(call: Supervised): Promise<Answer> {
  const [at, zone] = call.args as [bigint, bigint];
  if (!call.may("SYS_TIME") || zone !== 0n) return { error: EPERM };
  if (at === 0n) return { value: 0 };
  const bytes = await call.bytes(at, TIME);
  if (!bytes) return { error: EFAULT };
  const [seconds, micro] = two(bytes);
  return micro < 0n || micro >= 1_000_000n ? { error: EINVAL } : set(call, seconds, micro * 1000n);
}

async function adjust(call: Supervised, at: bigint): Promise<Answer> {
  if (!call.may("SYS_TIME")) return "kernel"; // reads it, or is refused
  const { memory } = call;
  const timex = await call.bytes(at, TIMEX);
  if (!memory || !timex) return { error: EFAULT };
  if (new DataView(timex.buffer).getUint32(0, true) === 0) return "kernel";
  if (!call.valid()) return { error: EPERM };
  const made = await call.do(
    [memory.n],
    [
      { call: "clock_adjtime", args: [CLOCK_REALTIME, timex], save: RESULT },
      pwrite64(memory.n, timex, at),
      call.done,
      { call: "exit_group", args: [RESULT] }, // TIME_OK to TIME_ERROR
    ],
  );
  if ("status" in made) return { value: made.status };
  return { error: made.step === 0 ? made.errno : EFAULT };
}

export const adjtimex = (call: Supervised): Promise<Answer> => adjust(call, call.args[0]!);

export async function clockAdjtime(call: Supervised): Promise<Answer> {
  const [clock, at] = call.args as [bigint, bigint];
  return int(clock) === CLOCK_REALTIME ? adjust(call, at) : "kernel";
}

// --- real-time clocks --------------------------------------------------------------------

/** linux/rtc.h: what sets one, and the bytes that its argument points to; 0: it is a number. */
export const RTC_SETS: Readonly<Record<string, readonly [request: number, size: number]>> = {
  RTC_SET_TIME: [0x4024700a, 36],
  RTC_EPOCH_SET: [0x4008700e, 0],
  RTC_PARAM_SET: [0x40187014, 24],
};

const [STATX_TYPE, AT_STATX_DONT_SYNC] = [1, 0x4000]; // linux/stat.h, linux/fcntl.h
const [S_IFMT, S_IFCHR] = [0o170000, 0o020000];

/** The major number of real-time clocks on this machine; undefined: it has none. */
export function rtcMajor(devices = readFileSync("/proc/devices", "utf8")): number | undefined {
  const found = /^\s*(\d+) rtc$/m.exec(devices);
  return found ? Number(found[1]) : undefined;
}

/** The caller's own open file, which holds the clock: another open of it would be refused. What it points to is copied
 * first, and the kernel never reads it again. */
export async function rtcSet(call: Supervised): Promise<Answer> {
  const [fd, request, argument] = call.args as [bigint, bigint, bigint];
  const found = Object.values(RTC_SETS).find(([r]) => r === int(request) >>> 0);
  if (!found || !call.may("SYS_TIME")) return { error: EACCES };
  const n = attempt(pidfdOpen(call.caller.process));
  if (n < 0) return { error: EPERM };
  using process = new Fd(n);
  const value: Arg | undefined = found[1] === 0 ? argument : await call.bytes(argument, found[1]);
  if (value === undefined) return { error: EFAULT };
  if (!call.valid()) return { error: EPERM };
  const seen = mem(256); // struct statx
  const hand = call.hand([process.n], (talk) => [
    { ...pidfdGetfd(process.n, int(fd)), save: CLOCK },
    { call: "statx", args: [CLOCK, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, seen] },
    write(talk, seen),
    wait(talk),
    ioctl(CLOCK, request as unknown as number, value),
  ]);
  const status = await hand.heard();
  if (!status) return { error: EBADF };
  const view = new DataView(status.buffer, status.byteOffset);
  const device = { kind: "c", major: view.getUint32(128, true), minor: view.getUint32(132, true) } as const;
  if ((view.getUint16(28, true) & S_IFMT) !== S_IFCHR || device.major !== rtcMajor())
    return { error: EACCES };
  if (!(call.container.access(device) & WRITE) || !call.valid()) return { error: EACCES };
  hand.go();
  const made = await hand.outcome();
  if ("status" in made) return made.status === 0 ? { value: 0 } : { error: EIO };
  return { error: made.errno };
}
