// What answers the calls that a container's filters leave to us: one supervisor a container, with a listener for its
// init and one for each command that was started in it and for what that leaves behind.
//
// It keeps to its turn: each listener wakes us for one call at a time, a container has at most IN_FLIGHT of them under
// way, and the others wait in the kernel; in the long run they get a SHARE of the time. So whoever makes one after the
// other slows itself alone. The channel that a
// listener came through is kept outside of cmld, with the listener still in it: the next cmld finds it there, and
// meanwhile the callers wait.
import { SOCK_SEQPACKET } from "../../../sys/calls.ts";
import { chain, EIO, ENOENT, ESRCH, isErrno } from "../../../sys/error.ts";
import { type Fd, pair } from "../../../sys/fd.ts";
import { type Answer, decode, type Ends, isWaiting, receive, reply } from "../../../sys/notify.ts";
import type { Call } from "../../../sys/op.ts";
import { EPOLLHUP, EPOLLIN, type Watch, watch } from "../../../sys/poll.ts";
import { receiveMessage } from "../../../sys/scm.ts";
import { type Caller, callerOf } from "./caller.ts";
import { adjtimex, clockAdjtime, clockSettime, rtcSet, setTimeOfDay } from "./clock.ts";
import { finitModule } from "./load.ts";
import { mknod, mknodAt } from "./mknod.ts";
import { mount } from "./mount.ts";
import { type Contained, type Handler, Supervised } from "./supervised.ts";
import { sysinfo } from "./sysinfo.ts";
import { UnderWay } from "./underway.ts";

/** What a container's filter leaves to us besides mounts and nodes. */
export interface Supervision {
  readonly time: boolean;
  readonly modules: boolean;
  readonly memory: boolean;
}

/** Calls of one container under way: each may cost us a process or two, one that hangs among them. */
const IN_FLIGHT = 2;
/** Part of the time in which calls of one container may be under way, how much of it may be saved up, and what one call
 * counts at most: one that hangs costs us nothing. */
const SHARE = 0.25;
const [SAVED_MS, CALL_MS] = [1000, 100];
/** Time for a child that was killed to be gone, before the answer is given all the same. */
const LEAVE_MS = 1000;
/** Listeners of one container that the next cmld will find. */
const KEPT_MAX = 64;

export const handlers: Readonly<Partial<Record<Call, Handler>>> = {
  mknod,
  mknodat: mknodAt,
  mount,
  sysinfo,
  clock_settime: clockSettime,
  settimeofday: setTimeOfDay,
  clock_adjtime: clockAdjtime,
  adjtimex,
  ioctl: rtcSet,
  finit_module: (call) => finitModule(call),
};

/** Where listeners are kept. */
interface Keeping {
  keep(name: string, fd: Fd): void;
  kept(name: string): Fd | undefined;
  forget(name: string): void;
}

/** The way of one listener to us. */
export class Channel implements Disposable {
  readonly ours: Fd;
  readonly theirs: Fd;
  /** Under which it is kept. */
  index: number | undefined;
  constructor() {
    [this.ours, this.theirs] = pair(SOCK_SEQPACKET);
  }
  get ends(): Ends {
    return { ours: this.ours.n, theirs: this.theirs.n };
  }
  [Symbol.dispose](): void {
    this.ours.close();
    this.theirs.close();
  }
}

interface Listener {
  readonly fd: Fd;
  readonly channel: Fd;
  readonly index: number | undefined;
  watch?: Watch;
}

async function within(what: Promise<void>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([what, late]);
  clearTimeout(timer);
}

const nameOf = (index: number): string => `calls.${index}`;
/** No listener that is kept. */
const NONE = 0xffffffff;
const supervisors = new Map<string, Supervisor>();

export class Supervisor implements Disposable {
  readonly #listeners = new Set<Listener>();
  readonly #kept = new Set<number>();
  readonly #underWay: UnderWay;
  #count = 0;
  #over = false;
  #saved = SAVED_MS;
  #counted = performance.now();
  /** None is taken meanwhile. */
  #pause: Timer | undefined;

  /** `file`: where calls under way are noted. */
  constructor(
    readonly uuid: string,
    readonly supervision: Supervision,
    readonly container: Contained,
    readonly keeping: Keeping,
    file: string,
  ) {
    this.#underWay = new UnderWay(file, IN_FLIGHT);
    supervisors.set(uuid, this);
  }

  static of(uuid: string): Supervisor | undefined {
    return supervisors.get(uuid);
  }

  /** For a process that is about to load its filter; kept before it does, so that no end of ours comes in between. */
  keep(channel: Channel): Channel {
    let index = 0;
    while (this.#kept.has(index)) index++;
    if (index < KEPT_MAX) {
      channel.index = index;
      this.#kept.add(index);
      this.keeping.keep(nameOf(index), channel.ours);
    }
    return channel;
  }

  /** The process has loaded its filter, or has failed to. True: we answer its calls. */
  take(channel: Channel): boolean {
    channel.theirs.close();
    return this.#take(channel.ours, channel.index);
  }

  /** What an earlier cmld has kept, and the calls that it had received; how many listeners. */
  adopt(): number {
    for (let index = 0; index < KEPT_MAX; index++) {
      const channel = this.keeping.kept(nameOf(index));
      if (!channel) continue;
      this.#kept.add(index);
      this.#take(channel, index);
    }
    for (const { place, listener, bytes, done } of this.#underWay.left()) {
      const l = [...this.#listeners].find((known) => known.index === listener);
      this.#count++;
      if (!l) this.#answered(place);
      else void this.#answer(l, bytes, place, done);
    }
    this.#pace();
    return this.#listeners.size;
  }

  #take(channel: Fd, index: number | undefined): boolean {
    const got = receiveMessage(channel, 1, true);
    const [fd, ...more] = typeof got === "string" ? [] : got.descriptors;
    for (const extra of more) extra.close();
    if (!fd || this.#over) {
      fd?.close();
      this.#drop(channel, index);
      return false;
    }
    const listener: Listener = { fd, channel, index };
    this.#listeners.add(listener);
    listener.watch = watch(fd, EPOLLIN, (events) => this.#notified(listener, events));
    this.#pace();
    return true;
  }

  #drop(channel: Fd, index: number | undefined): void {
    channel.close();
    if (index === undefined) return;
    this.#kept.delete(index);
    if (!this.#over) this.keeping.forget(nameOf(index)); // else all of the container's are forgotten
  }

  #close(l: Listener): void {
    if (!this.#listeners.delete(l)) return;
    l.watch?.[Symbol.dispose]();
    l.fd.close();
    this.#drop(l.channel, l.index);
  }

  /** Take no more calls than may be under way. */
  #pace(): void {
    for (const { watch } of this.#listeners)
      if (this.#count < IN_FLIGHT && !this.#pause) watch?.resume();
      else watch?.pause();
  }

  #notified(l: Listener, events: number): void {
    if (!(events & EPOLLIN)) {
      if (events & EPOLLHUP) this.#close(l); // nobody has this filter any more
      return;
    }
    if (this.#count >= IN_FLIGHT || this.#pause) return; // told before we asked for silence
    const call = this.#underWay.received(l.index ?? NONE, (into) => receive(l.fd, into));
    if (!call) return;
    this.#count++;
    this.#pace();
    void this.#answer(l, call.bytes, call.place, false);
  }

  /** A call has taken so long: if nothing is saved up, the next one waits. */
  #spent(ms: number): void {
    const at = performance.now();
    const earned = (at - this.#counted) * SHARE;
    this.#saved = Math.min(this.#saved + earned, SAVED_MS) - Math.min(ms, CALL_MS);
    this.#counted = at;
    if (this.#saved >= 0 || this.#pause || this.#over) return;
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#pace();
    }, -this.#saved / SHARE);
  }

  #answered(place: number): void {
    this.#count--;
    if (this.#over) return;
    this.#underWay.answered(place);
    this.#pace();
  }

  /** Resolves when nothing of it is left: later than the answer, if a child hangs. */
  async #answer(l: Listener, bytes: Uint8Array, place: number, done: boolean): Promise<void> {
    const began = performance.now();
    const notification = decode(bytes);
    const id = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
    const valid = (): boolean => l.fd.open && isWaiting(l.fd, id);
    let answer: Answer = { error: EIO };
    let call: Supervised | undefined;
    try {
      const caller = notification && this.#caller(notification.pid);
      if (!caller || !valid()) return; // it has been killed
      call = new Supervised(this.container, notification, caller, valid, this.#underWay, place);
      answer = done ? { value: 0 } : await handlers[notification.call]!(call);
    } catch (e) {
      this.container.log(`${notification?.call}: ${chain(e)}`);
    } finally {
      call?.[Symbol.dispose]();
      const idle = call?.idle() ?? Promise.resolve();
      await within(idle, LEAVE_MS); // a child that is still there keeps a mount of the container busy
      if (l.fd.open) reply(l.fd, id, answer);
      this.#spent(performance.now() - began);
      void idle.then(() => this.#answered(place));
    }
  }

  #caller(pid: number): Caller | undefined {
    try {
      return callerOf(pid);
    } catch (e) {
      if (isErrno(e, ENOENT) || isErrno(e, ESRCH)) return undefined;
      throw e;
    }
  }

  /** The container has ended, or cmld ends: what waits, waits for the next one. */
  [Symbol.dispose](): void {
    this.#over = true;
    clearTimeout(this.#pause);
    if (supervisors.get(this.uuid) === this) supervisors.delete(this.uuid);
    for (const l of this.#listeners) this.#close(l);
    this.#underWay[Symbol.dispose]();
  }
}
