// How often a PIN was guessed. Each try is counted on the disk before it is made, so that neither a crash nor a restart
// of scd forgets one; success forgets them all. Three in one boot lock the token until the next. After that boot there
// is one try at once, and then each one waits twice as long as the one before.
import { readFileSync } from "node:fs";
import { uptime } from "node:os";
import { basename, dirname } from "node:path";
import { chain } from "../sys/error.ts";
import { readBounded, removeSynced, writeAtomic } from "../sys/file.ts";

/** In one boot. */
const TRIES_MAX = 3;
const WAIT_MAX_S = 3600;
const FILE_MAX = 256;
const FORMAT = /^boot ([0-9a-f-]{36})\nhere ([0-9]{1,9})\nall ([0-9]{1,9})\nlast ([0-9]{1,12})\n$/;

export class LockedTillReboot extends Error {
  override readonly name = "LockedTillReboot";
}

/** The clocks of this machine; tests have others. */
export interface Moment {
  /** Of the kernel: another in each boot. */
  readonly boot: string;
  /** Seconds since then. */
  readonly seconds: number;
}

export const present = (): Moment => ({
  boot: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
  seconds: Math.floor(uptime()),
});

interface Count {
  /** The boot of the last try. */
  readonly boot: string;
  /** Wrong ones in it. */
  readonly here: number;
  /** Wrong ones since the last success. */
  readonly all: number;
  /** When the last one was, in seconds of its boot. */
  readonly last: number;
}

export class Tries {
  /** Before the try that was begun last. */
  #before: Count | undefined;
  constructor(
    readonly file: string,
    readonly moment: () => Moment = present,
  ) {}

  async #read(at: Moment): Promise<Count> {
    const bytes = await readBounded(this.file, FILE_MAX);
    if (!bytes) return { boot: at.boot, here: 0, all: 0, last: 0 };
    const found = FORMAT.exec(Buffer.from(bytes).toString("latin1"));
    if (found) {
      const [, boot = "", ...numbers] = found;
      const [here = 0, all = 0, last = 0] = numbers.map(Number);
      if (boot !== at.boot || last <= at.seconds) return { boot, here, all, last };
    }
    // Nothing of ours writes half a file, or what is yet to come: somebody else did. It counts as locked, for this boot alone.
    const locked = { boot: at.boot, here: TRIES_MAX, all: TRIES_MAX, last: at.seconds };
    await this.#write(locked);
    return locked;
  }

  /** To be called before a PIN is tried: it counts as wrong until succeeded() says otherwise. Throws if none may be. */
  async begin(): Promise<void> {
    const at = this.moment();
    const count = await this.#read(at);
    const same = count.boot === at.boot;
    const here = same ? count.here : 0;
    if (here >= TRIES_MAX) throw new LockedTillReboot(`${here} wrong PINs: locked until the next boot`);
    const earlier = count.all - here;
    if (here > 0 && earlier > 0) {
      const wait = Math.min(2 ** count.all, WAIT_MAX_S) - (at.seconds - count.last);
      if (wait > 0) throw new Error(`${count.all} wrong PINs: the next is taken in ${wait} s`);
    }
    this.#before = count;
    await this.#write({ boot: at.boot, here: here + 1, all: count.all + 1, last: at.seconds });
  }

  async #write({ boot, here, all, last }: Count): Promise<void> {
    await writeAtomic(this.file, `boot ${boot}\nhere ${here}\nall ${all}\nlast ${last}\n`);
  }

  /** The PIN was neither right nor wrong: the try does not count, those before it do. */
  async undone(): Promise<void> {
    if (!this.#before || this.#before.all === 0) await this.succeeded();
    else await this.#write(this.#before);
  }

  async succeeded(): Promise<void> {
    await removeSynced(dirname(this.file), [basename(this.file)]);
  }

  /** For people: what is left after a wrong one. */
  async left(): Promise<string> {
    try {
      const { here } = await this.#read(this.moment());
      const left = TRIES_MAX - here;
      return left > 0 ? `${left} more in this boot` : "locked until the next boot";
    } catch (e) {
      return chain(e);
    }
  }
}
