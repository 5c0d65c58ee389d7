// System calls that may wait, for slow hardware or for somebody hostile (a file system that a container serves itself):
// done by a child beside the event loop, which is killed when its time is over.
import { exit } from "../sys/calls.ts";
import type { Op } from "../sys/op.ts";
import { kill, SIGKILL } from "../sys/process.ts";
import { collected, launch } from "./launch.ts";

/** Resolves when all of `ops` have been done; rejects with the one that failed. `ops` may be told the one descriptor
 * that has to stay open. */
export async function errand(ops: (report: number) => readonly Op[], limitMs: number): Promise<void> {
  const child = launch((report) => [...ops(report), exit(0)]);
  const failure = child.started().then(
    () => undefined,
    (e: Error) => e,
  );
  const over = collected(child.pidfd).then(() => child.pidfd.close());
  const { promise: late, resolve } = Promise.withResolvers<true>();
  const timer = setTimeout(resolve, limitMs, true);
  try {
    if (await Promise.race([over, late])) {
      kill(child.pidfd, SIGKILL); // collected when it ends: a device that does not answer may keep it
      throw new Error(`not done after ${limitMs} ms`);
    }
    const failed = await failure;
    if (failed) throw failed;
  } finally {
    clearTimeout(timer);
  }
}
