// What stage0 has sent children for: the kernel modules that every boot needs, loaded while our runtime started, each
// part by a child of its own. A child writes the number of its part, a digit, when it is done; when all have ended,
// everything is as done as it will ever be.
import { fcntl, O_NONBLOCK, read } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { EPOLLIN, watch } from "../sys/poll.ts";

const F_SETFL = 4; // asm-generic/fcntl.h
const ZERO = 0x30; // "0"

export interface Errand {
  /** The data partition's file system. */
  readonly fileSystem: Promise<void>;
  /** Drivers of the disk of a virtual machine. */
  readonly disk: Promise<void>;
  /** What core0 needs. */
  readonly core: Promise<void>;
}

/** `from`: the number of our end of the pipe, as stage0 wrote it; undefined: nobody was sent. */
export function errand(from: string | undefined): Errand {
  const parts = [0, 1, 2].map(() => Promise.withResolvers<void>());
  const [fileSystem, disk, core] = parts.map((part) => part.promise); // in the order of initramfs/manifest.ts
  const done = { fileSystem: fileSystem!, disk: disk!, core: core! };
  if (from === undefined) {
    for (const part of parts) part.resolve();
    return done;
  }
  const pipe = new Fd(Number(from));
  now(fcntl(pipe.n, F_SETFL, O_NONBLOCK));
  const bytes = mem(parts.length);
  const watching = watch(pipe, EPOLLIN, () => {
    const n = attempt(read(pipe.n, bytes));
    for (const digit of bytes.subarray(0, Math.max(n, 0))) parts[digit - ZERO]?.resolve();
    if (n > 0) return;
    for (const part of parts) part.resolve();
    watching[Symbol.dispose]();
    pipe.close();
  });
  return done;
}
