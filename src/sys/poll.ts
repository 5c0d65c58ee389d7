// Waiting on raw descriptors (netlink, pidfds, inotify, listening sockets, ptys). One native thread runs epoll and
// writes a record per ready descriptor to a socket pair that the event loop reads. Every descriptor is armed
// one-shot and armed again after its callback, so a slow callback is flow control and nothing spins.
import { run } from "../../ffi/run.ts";
import { SOCK_STREAM } from "./calls.ts";
import { chain, SysError } from "./error.ts";
import { Fd, pair } from "./fd.ts";
import { Struct } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Data, Op } from "./op.ts";

// linux/eventpoll.h
export const EPOLLIN = 1;
/** A file of a cgroup has changed since it was last read. */
export const EPOLLPRI = 2;
export const EPOLLOUT = 4;
export const EPOLLERR = 8;
export const EPOLLHUP = 0x10;
const EPOLLONESHOT = 1 << 30;
const [EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD] = [1, 2, 3];
const RECORD = 16; // struct wake of ffi/run.c

/** A descriptor being watched. Dispose it before the descriptor is closed. */
export interface Watch extends Disposable {
  /** Stop and resume deliveries: back-pressure. */
  pause(): void;
  resume(): void;
}

interface Entry {
  readonly fd: number;
  readonly events: number;
  readonly on: (events: number) => void;
  paused: boolean;
  /** The kernel will tell, or has told already: arming it again would tell the same thing twice. */
  armed: boolean;
  gone: boolean;
}

let started: { epoll: Fd; entries: Map<number, Entry> } | undefined;
let nextKey = 1;

const ctl = (epoll: Fd, command: number, fd: number, events: number, key: number): Op => {
  const packed = process.arch === "x64"; // struct epoll_event is packed there only
  const s = new Struct(packed ? 12 : 16).u32(events);
  if (!packed) s.skip(4);
  const event: Data = { data: s.u64(key).bytes, text: `{events=${events}, data=${key}}` };
  return { call: "epoll_ctl", args: [epoll.n, command, fd, event] };
};

function start(): { epoll: Fd; entries: Map<number, Entry> } {
  const EPOLL_CLOEXEC = 0o2000000;
  const epoll = new Fd(now({ call: "epoll_create1", args: [EPOLL_CLOEXEC] }));
  const [ours, theirs] = pair(SOCK_STREAM);
  const tid = Number(run.poller(epoll.n, theirs.n));
  if (tid < 0) throw new SysError(-tid, "clone(poll thread)");
  const entries = new Map<number, Entry>();
  let rest = Buffer.alloc(0);
  void Bun.connect({
    fd: ours.take(),
    socket: {
      data(_socket: unknown, bytes: Uint8Array) {
        const all = rest.length > 0 ? Buffer.concat([rest, bytes]) : Buffer.from(bytes);
        let at = 0;
        for (; at + RECORD <= all.length; at += RECORD)
          fire(all.readUInt32LE(at), Number(all.readBigUInt64LE(at + 8)));
        rest = all.subarray(at);
      },
    },
  } as unknown as Parameters<typeof Bun.connect>[0]);

  function fire(events: number, key: number): void {
    const entry = entries.get(key);
    if (!entry || entry.gone) return;
    entry.armed = false;
    try {
      entry.on(events);
    } catch (e) {
      console.error(`watching descriptor ${entry.fd}: ${chain(e)}`);
    }
    arm(epoll, key, entry);
  }
  return { epoll, entries };
}

function arm(epoll: Fd, key: number, entry: Entry): void {
  if (entry.gone || entry.paused || entry.armed) return;
  entry.armed = true;
  now(ctl(epoll, EPOLL_CTL_MOD, entry.fd, entry.events | EPOLLONESHOT, key));
}

/** Call `on` whenever `fd` is ready for `events` (EPOLLIN …; EPOLLERR and EPOLLHUP are always reported). */
export function watch(fd: Fd, events: number, on: (events: number) => void): Watch {
  started ??= start();
  const { epoll, entries } = started;
  const key = nextKey++;
  const entry: Entry = { fd: fd.n, events, on, paused: false, armed: true, gone: false };
  now(ctl(epoll, EPOLL_CTL_ADD, entry.fd, events | EPOLLONESHOT, key));
  entries.set(key, entry);
  return {
    pause() {
      entry.paused = true;
    },
    resume() {
      entry.paused = false;
      arm(epoll, key, entry);
    },
    [Symbol.dispose]() {
      if (entry.gone) return;
      entry.gone = true;
      entries.delete(key);
      attempt(ctl(epoll, EPOLL_CTL_DEL, entry.fd, 0, key));
    },
  };
}

/** Resolves when `fd` can be read, or its other end is closed. */
export function readable(fd: Fd): Promise<void> {
  return new Promise((resolve) => {
    const w = watch(fd, EPOLLIN, () => {
      w[Symbol.dispose]();
      resolve();
    });
  });
}

/** Resolves when the process behind the pidfd has ended (pidfd_open(2): it becomes readable). */
export const ended = readable;
