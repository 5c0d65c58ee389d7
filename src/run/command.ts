// Run a helper program of the system (mke2fs, e2fsck) to its end, without blocking: explicit path, arguments and
// environment, no standard input, what it says on standard error kept for the error.
import { cloexecFrom, dup3, execve, O_RDONLY, openat } from "../sys/calls.ts";
import { type Fd, pipe } from "../sys/fd.ts";
import { Reg } from "../sys/op.ts";
import { collected, type Ended, launch } from "./launch.ts";

const NULL = new Reg(0);
const SAID_MAX = 64 * 1024;

export interface Finished extends Ended {
  /** What it wrote to standard output and standard error, at most 64 KiB. */
  readonly said: string;
}

/** argv[0] is the absolute path. Rejects if it cannot be executed; its exit status is the caller's to judge. */
export async function command(argv: readonly string[]): Promise<Finished> {
  const out = pipe();
  using read = out.read;
  using write = out.write;
  const child = launch([
    openat(-100, "/dev/null", O_RDONLY, 0, NULL),
    dup3(NULL, 0),
    dup3(write.n, 1),
    dup3(write.n, 2),
    cloexecFrom(3),
    execve(argv[0]!, argv, ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]),
  ]);
  write.close();
  using pidfd: Fd = child.pidfd;
  const over = collected(pidfd);
  const started = child.started();
  started.catch(() => {}); // judged below, where it is awaited
  let said = "";
  const decoder = new TextDecoder();
  for await (const chunk of Bun.file(read.n).stream())
    if (said.length < SAID_MAX) said += decoder.decode(chunk, { stream: true });
  const end = await over;
  await started;
  return { ...end, said: said.slice(0, SAID_MAX) };
}

/** As command(), but anything but exit status 0 is an error that says the last line the program said. */
export async function must(argv: readonly string[]): Promise<string> {
  const end = await command(argv);
  if (end.status === 0) return end.said;
  const last = end.said.trim().split("\n").at(-1) ?? "";
  const how = end.signal === undefined ? `exit status ${end.status}` : `killed by signal ${end.signal}`;
  throw new Error(`${argv.join(" ")}: ${how}${last && `: ${last}`}`);
}
