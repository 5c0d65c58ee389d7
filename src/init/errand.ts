// What stage0 has sent a child for: the kernel modules that every boot needs, loaded while our runtime started. The
// child writes a byte when a part is done; when it has ended, everything is as done as it will ever be.
import { fcntl, O_NONBLOCK, read } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { EPOLLIN, watch } from "../sys/poll.ts";

const F_SETFL = 4; // asm-generic/fcntl.h

export interface Errand {
  /** What the data partition needs. */
  readonly disk: Promise<void>;
  /** What core0 needs. */
  readonly core: Promise<void>;
}

/** `from`: the number of our end of the pipe, as stage0 wrote it; undefined: nobody was sent. */
export function errand(from: string | undefined): Errand {
  const parts = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  const done = { disk: parts[0].promise, core: parts[1].promise };
  if (from === undefined) {
    for (const part of parts) part.resolve();
    return done;
  }
  const pipe = new Fd(Number(from));
  now(fcntl(pipe.n, F_SETFL, O_NONBLOCK));
  const bytes = mem(parts.length);
  let had = 0;
  const watching = watch(pipe, EPOLLIN, () => {
    const n = attempt(read(pipe.n, bytes));
    had = n > 0 ? had + n : parts.length;
    for (const part of parts.slice(0, had)) part.resolve();
    if (n > 0) return;
    watching[Symbol.dispose]();
    pipe.close();
  });
  return done;
}
