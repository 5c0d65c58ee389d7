// Standard output of programs that people and scripts call: what could not be written is an error, since somebody acts on what
// stands there, or on the exit status that says it does. console.log() tells nobody.
import { fstatSync, readFileSync } from "node:fs";
import { O_CLOEXEC } from "./calls.ts";
import { packed } from "./devnum.ts";

/** The exit status when nobody reads any more, as a shell has it for a program that SIGPIPE ended. */
export const UNREAD = 141;
export const isUnread = (e: unknown): boolean => (e as { code?: string } | undefined)?.code === "EPIPE";

let sink: Bun.FileSink | undefined;

/** In order; resolves when the other side has taken it, which may be after a long time, and rejects if nobody will. */
export async function out(text: string | Uint8Array): Promise<void> {
  if (text.length === 0) return;
  if (!sink && isClosed()) throw new Error("standard output is closed");
  sink ??= Bun.stdout.writer();
  try {
    await Promise.all([sink.write(text), sink.flush()]); // either may be told that nobody reads
  } catch (cause) {
    if (isUnread(cause)) throw cause;
    throw new Error("standard output", { cause });
  }
}

/** mem(4): /dev/null is 1:3. */
const NULL_DEVICE = packed(1, 3);

/** The runtime opens /dev/null in place of one that is closed; what we were given never closes at execve(2), or we would not
 * have it. */
function isClosed(): boolean {
  let about: string;
  try {
    if (fstatSync(1).rdev !== NULL_DEVICE) return false;
    about = readFileSync("/proc/self/fdinfo/1", "latin1");
  } catch {
    return false; // no /proc here
  }
  return (Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(about)?.[1] ?? "0", 8) & O_CLOEXEC) !== 0;
}
