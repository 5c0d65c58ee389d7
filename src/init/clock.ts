// The machine's time and its first random bytes, as far as the data partition can help with them.
import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { AT_FDCWD, ioctl, O_WRONLY, openat } from "../sys/calls.ts";
import { ENOENT, isErrno } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { mem, Struct } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";

/** When this file was written: no machine that runs it lives earlier. 2026-11-21. */
const EARLIEST_MS = 1_795_219_200_000;
/** Files looked at for the newest time. */
const FILES_MAX = 2000;
const CLOCK_REALTIME = 0;

/** The newest time of a file below `directory`, milliseconds since 1970. */
export function newest(directory: string): number {
  let best = 0;
  let left = FILES_MAX;
  const queue = [directory];
  for (let at = queue.shift(); at !== undefined && left > 0; at = queue.shift()) {
    for (const entry of readdirSync(at, { withFileTypes: true })) {
      if (left-- <= 0) break;
      const path = join(at, entry.name);
      best = Math.max(best, statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0);
      if (entry.isDirectory()) queue.push(path);
    }
  }
  return best;
}

/** Set the clock if the machine's own is impossible; returns what was said about it, or undefined. */
export function mendClock(data: string, at = Date.now()): string | undefined {
  if (at >= EARLIEST_MS) return undefined;
  const known = newest(data);
  const to = Math.max(known, EARLIEST_MS);
  now({
    call: "clock_settime",
    args: [CLOCK_REALTIME, new Struct(16).u64(Math.floor(to / 1000)).u64(0).bytes],
  });
  const why =
    known >= EARLIEST_MS ? "the newest file on the data partition" : "the time this system was made";
  return `the clock said ${new Date(at).toISOString()}: set to ${new Date(to).toISOString()}, ${why}`;
}

const SEED = "random-seed";
const SEED_SIZE = 512;
const RNDADDENTROPY = 0x40085203; // linux/random.h
const GRND_NONBLOCK = 1;

/** Give the kernel the seed of the last run and put a new one in its place first, so that none is used twice. It
 * counts as entropy: nobody but us writes it, and only when the kernel's own generator was ready. */
export function seed(directory: string): "seeded" | "no seed yet" {
  const path = join(directory, SEED);
  let old: Buffer | undefined;
  try {
    old = readFileSync(path).subarray(0, SEED_SIZE);
  } catch (e) {
    if (!isErrno(e, ENOENT)) throw e;
  }
  // A new seed is at least as good as the old: should the generator not be ready, it is made from the old one.
  if (!renewSeed(directory) && old)
    write(
      directory,
      new Bun.CryptoHasher("sha512").update(old).update(String(process.hrtime.bigint())).digest(),
    );
  if (!old || old.length < 32) return "no seed yet";
  using random = new Fd(now(openat(AT_FDCWD, "/dev/urandom", O_WRONLY)));
  const bits = Math.min(old.length, 64) * 8;
  now(ioctl(random.n, RNDADDENTROPY, new Struct(8 + old.length).u32(bits).u32(old.length).raw(old).bytes));
  old.fill(0);
  return "seeded";
}

/** Write a seed for the next boot; false while the generator is not ready. */
export function renewSeed(directory: string): boolean {
  const fresh = mem(SEED_SIZE);
  if (attempt({ call: "getrandom", args: [fresh, SEED_SIZE, GRND_NONBLOCK] }) !== SEED_SIZE) return false;
  write(directory, fresh);
  return true;
}

function write(directory: string, bytes: Uint8Array): void {
  const path = join(directory, SEED);
  writeFileSync(`${path}.new`, bytes, { mode: 0o600, flush: true });
  renameSync(`${path}.new`, path);
}
