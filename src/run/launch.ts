// Start a program in a child and say, by name, which call failed if one did.
import { run } from "../../ffi/run.ts";
import {
  CLONE_CLEAR_SIGHAND,
  CLONE_FILES,
  CLONE_VFORK,
  CLONE_VM,
  pidfdOpen,
  read,
  resetSignals,
} from "../sys/calls.ts";
import { address, encode } from "../sys/encode.ts";
import { SysError } from "../sys/error.ts";
import { Fd, pipe } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { type Op, show } from "../sys/op.ts";
import { ended, readable } from "../sys/poll.ts";
import { unhurried } from "./haste.ts";

const SIGCHLD = 17; // asm-generic/signal.h
const [P_PIDFD, WEXITED, WNOHANG, WNOWAIT, WALL] = [3, 4, 1, 0x1000000, 0x40000000]; // linux/wait.h

const NONE = -1; // no descriptor
/** A pidfd of this process, made when it is first needed. */
let self: Fd | undefined;

export interface Child {
  readonly pid: number;
  readonly pidfd: Fd;
  /** Resolves once execve succeeded; rejects with the call that failed otherwise. Call it once. */
  started(): Promise<void>;
}

/** Throw what the shim reported, if it did: which op failed, and the errno. */
function refused(ops: readonly Op[], report: Fd, before = 0): void {
  const failure = mem(8);
  if (now(read(report.n, failure)) === 0) return;
  const view = new DataView(failure.buffer);
  const step = view.getUint32(0, true);
  throw new SysError(view.getUint32(4, true), `child: ${show(ops[step]!)}`, step - before);
}

/** How a process ended: `status` for exit(status), `signal` for a fatal signal; exactly one is set. */
export interface Ended {
  readonly status?: number;
  readonly signal?: number;
}

/** What a child does; a function, if it must know the one descriptor that has to stay open until its execve. */
export type Program = readonly Op[] | ((report: number) => readonly Op[]);

/** Clone a child that does `ops` (resetting signals and haste first), straight into the cgroup open as `cgroup`, and into the
 * pid namespace of the process behind `pidns`. `owner`: the uid that a new user namespace belongs to. What its members
 * take of what the kernel counts by user (inotify(7), namespaces, message queues, pending signals) counts as that
 * user's as well: were it root, they would share it with each other and with us. */
export const launch = (ops: Program, flags = 0n, cgroup = -1, pidns?: Fd, owner = 0): Child =>
  cloned([...resetSignals(), ...unhurried()], ops, { flags, cgroup, owner, ...(pidns && { pidns }) });

/** What children work with that share our memory, by their stacks, until they have ended. */
const inUse = new Map<Uint8Array, unknown>();
/** Stacks of those that have. */
const idle: Uint8Array[] = [];
/** Bytes; child() of ffi/run.c needs some hundred. */
const STACK = 4096;

/** Clone a child that shares our memory and goes on beside us, for a few calls and an exit. A copy would cost its page
 * tables, and a fault and a page for each that we then change: ten times as much. Nobody may change what `ops` point to
 * before it is `over`. No signal but SIGKILL reaches it. Not for one that a container sees: it must have no way to our
 * memory. */
export function beside(ops: Program, flags = 0n): Child & { readonly over: Promise<Ended> } {
  const stack = idle.pop() ?? mem(STACK);
  const child = cloned([], ops, { flags: flags | CLONE_VM | CLONE_CLEAR_SIGHAND, cgroup: -1, stack });
  const over = collected(child.pidfd).then((how) => {
    inUse.delete(stack);
    idle.push(stack);
    return how;
  });
  return { ...child, over };
}

function cloned(
  first: readonly Op[],
  ops: Program,
  how: { flags: bigint; cgroup: number; pidns?: Fd; stack?: Uint8Array; owner?: number },
): Child {
  const { flags, cgroup, pidns, stack, owner = 0 } = how;
  const report = pipe();
  using _ours = report.write; // ours closes here, the child's at execve
  using failed = new DisposableStack();
  failed.use(report.read);
  const all = [...first, ...(typeof ops === "function" ? ops(report.write.n) : ops)];
  const code = encode(all);
  const pidfd = mem(4);
  if (pidns) self ??= new Fd(now(pidfdOpen(process.pid)));
  const pid = Number(
    run.run(
      code,
      all.length,
      flags,
      cgroup,
      report.write.n,
      pidfd,
      SIGCHLD,
      pidns?.n ?? NONE,
      self?.n ?? NONE,
      stack ? address(stack) : 0n,
      BigInt(stack?.length ?? 0),
      owner,
    ),
  );
  if (pid < 0) throw new SysError(-pid, "clone3()");
  failed.move(); // from here on started() closes it
  if (stack) inUse.set(stack, [code, all]);

  return {
    pid,
    pidfd: new Fd(new DataView(pidfd.buffer).getInt32(0, true)),
    async started() {
      using end = report.read;
      await readable(end); // execve closes the other end, a failure writes to it
      refused(all, end, first.length);
    },
  };
}

/** Collect an ended child by its pidfd; undefined while it runs. */
export function reap(pidfd: Fd, flags = WNOHANG): Ended | undefined {
  const info = mem(128); // siginfo_t
  now({ call: "waitid", args: [P_PIDFD, pidfd.n, info, WEXITED | WALL | flags, null] });
  const view = new DataView(info.buffer);
  if (view.getInt32(16, true) === 0) return undefined; // si_pid
  const value = view.getInt32(24, true); // si_status
  const CLD_EXITED = 1;
  return view.getInt32(8, true) === CLD_EXITED ? { status: value } : { signal: value };
}

/** Wait for the end of a child and collect it. A child that somebody traces is his until he lets go of it, although its
 * pidfd says already that it has ended; we get the signal then. Left alone, it would stay, and its pid namespace with
 * it. */
export async function collected(pidfd: Fd): Promise<Ended> {
  await ended(pidfd);
  for (let how = reap(pidfd); ; ) {
    if (how) return how;
    const { promise, resolve } = Promise.withResolvers<void>();
    process.once("SIGCHLD", resolve);
    how = reap(pidfd); // he may have let go meanwhile
    if (!how) await promise;
    process.off("SIGCHLD", resolve);
  }
}

/** Whether our child has ended; it can still be collected. */
export const hasEnded = (pidfd: Fd): boolean => reap(pidfd, WNOHANG | WNOWAIT) !== undefined;

/** Do short, quick system calls in a vforked child that shares our descriptor table: descriptors it opens in
 * another namespace appear here. We stand still meanwhile (0.1 ms), so nothing in `ops` may block. */
export function elsewhere(ops: readonly Op[]): void {
  const all = [...ops, { call: "exit_group", args: [0] } satisfies Op];
  const report = pipe();
  using result = report.read;
  using write = report.write;
  const code = encode(all);
  const pidfd = mem(4);
  const pid = Number(
    run.run(
      code,
      all.length,
      CLONE_VM | CLONE_VFORK | CLONE_FILES,
      -1,
      write.n,
      pidfd,
      0,
      NONE,
      NONE,
      0n,
      0n,
      0,
    ),
  ); // no exit signal: no other wait() sees it
  if (pid < 0) throw new SysError(-pid, "clone3()");
  using child = new Fd(new DataView(pidfd.buffer).getInt32(0, true));
  const ended = reap(child, 0); // it gives our memory back a moment before it has ended
  if (ended?.status === 0) return;
  write.close();
  refused(all, result);
  throw new Error(`child ended by ${JSON.stringify(ended)}`);
}
