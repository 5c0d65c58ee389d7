// A hand: a child that does a few calls for us which may wait, for slow hardware or for somebody else (memory or a file
// system of a container, which may lie on FUSE), and that can leave what it opened for the next one. We hear of it through
// the event loop and never wait: when its time is over it has failed, whether or not the kernel lets it go.
//
// It has nothing of ours open but what it is given: one that hangs must not hold a client's connection.
import { closeAllBut, exit, MSG_DONTWAIT, prctl, recvfrom, SOCK_SEQPACKET, signal } from "../sys/calls.ts";
import { EAGAIN, EINTR, EIO, SysError } from "../sys/error.ts";
import { type Fd, pair } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt } from "../sys/now.ts";
import { type Op, show } from "../sys/op.ts";
import { EPOLLIN, type Watch, watch } from "../sys/poll.ts";
import { kill, SIGKILL } from "../sys/process.ts";
import { beside, type Child, type Ended } from "./launch.ts";

const LIMIT_MS = 10_000;
const MESSAGE_MAX = 4096;
const PR_SET_DUMPABLE = 4; // linux/prctl.h

/** How it ended: the status it chose, or the errno of the call that failed (EIO: it did not end in time). */
export type Outcome = { readonly status: number } | { readonly errno: number; readonly step: number };

export class Hand implements Disposable {
  /** Resolves when the process is really gone: that may be long after it was given up. */
  readonly gone: Promise<void>;
  readonly #outcome: Promise<Outcome>;
  readonly #child: Child & { readonly over: Promise<Ended> };
  readonly #talk: Fd;
  readonly #watch: Watch;
  #wake = (): void => {};
  #late = false;

  /** `given`: numbers of ours that it keeps. `talk`: where it says something, one write a message, or waits for us. */
  constructor(given: readonly number[], program: (talk: number) => readonly Op[], limitMs = LIMIT_MS) {
    const [ours, theirs] = pair(SOCK_SEQPACKET);
    using failed = new DisposableStack();
    failed.use(ours);
    using far = theirs;
    let before = 0;
    this.#child = beside((report) => {
      const first = [prctl(PR_SET_DUMPABLE, 0), ...closeAllBut([report, far.n, ...given])];
      before = first.length;
      return [...first, ...program(far.n), exit(0)];
    });
    failed.move();
    this.#talk = ours;
    this.#watch = watch(ours, EPOLLIN, () => this.#wake());
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    this.#outcome = promise;
    const timer = setTimeout(() => {
      this.#late = true;
      resolve({ errno: EIO, step: -1 });
      this.#wake();
      kill(this.#child.pidfd, SIGKILL); // collected when it ends: a device that does not answer may keep it
    }, limitMs);
    this.gone = this.#end(before).then((outcome) => {
      clearTimeout(timer);
      resolve(outcome);
      this[Symbol.dispose]();
    });
  }

  async #end(before: number): Promise<Outcome> {
    const { started, pidfd, over } = this.#child;
    const failure = await started().then(
      () => undefined,
      (e: unknown) => e,
    );
    const how = await over;
    pidfd.close();
    if (failure instanceof SysError) return { errno: failure.errno, step: (failure.step ?? 0) - before };
    return how.status === undefined ? { errno: EIO, step: -1 } : { status: how.status };
  }

  /** The next thing it says; undefined: it has ended, or is given up. */
  async heard(): Promise<Uint8Array | undefined> {
    for (;;) {
      if (this.#late || !this.#talk.open) return undefined;
      const bytes = mem(MESSAGE_MAX);
      const n = attempt(recvfrom(this.#talk.n, bytes, MSG_DONTWAIT));
      if (n > 0) return bytes.subarray(0, n);
      if (n !== -EAGAIN && n !== -EINTR) return undefined;
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    }
  }

  /** It waits; let it go on. */
  go(): void {
    attempt(signal(this.#talk.n));
  }

  outcome(): Promise<Outcome> {
    return this.#outcome;
  }

  /** A pidfd of it, for another child to take what it left. */
  get pidfd(): number {
    return this.#child.pidfd.n;
  }

  [Symbol.dispose](): void {
    if (!this.#talk.open) return;
    this.#watch[Symbol.dispose]();
    this.#talk.close();
    this.#wake();
    if (this.#child.pidfd.open) kill(this.#child.pidfd, SIGKILL);
  }
}

/** What one hand does without a word. Rejects with the call that failed. */
export async function errand(given: readonly number[], ops: readonly Op[], limitMs: number): Promise<void> {
  using hand = new Hand(given, () => ops, limitMs);
  const outcome = await hand.outcome();
  if ("status" in outcome) return;
  const failed = ops[outcome.step];
  if (!failed) throw new Error(`not done after ${limitMs} ms`);
  throw new SysError(outcome.errno, `child: ${show(failed)}`, outcome.step);
}
