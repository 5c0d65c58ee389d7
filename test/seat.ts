// Somebody at a terminal: a program started on a real one, with what it shows, what is typed, and how it ends.
import { type Child, type Ended, launch, reap } from "../src/run/launch.ts";
import { execve, pidfdSendSignal, read, writeText } from "../src/sys/calls.ts";
import type { Fd } from "../src/sys/fd.ts";
import { mem } from "../src/sys/mem.ts";
import { attempt, now } from "../src/sys/now.ts";
import { EPOLLIN, ended, type Watch, watch } from "../src/sys/poll.ts";
import {
  getSettings,
  onTerminal,
  openpty,
  type Settings,
  setWindow,
  type WindowSize,
} from "../src/sys/pty.ts";

export class Seat implements AsyncDisposable {
  readonly master: Fd;
  readonly #slave: Fd; // kept: its settings are looked at when the program is gone
  readonly #child: Child;
  readonly #watch: Watch;
  readonly #over: Promise<Ended>;
  #text = "";
  #changed = Promise.withResolvers<void>();

  constructor(argv: readonly string[], env: readonly string[], size: WindowSize) {
    const { master, slave } = openpty(size);
    [this.master, this.#slave] = [master, slave];
    this.#watch = watch(master, EPOLLIN, () => this.#read());
    this.#child = launch([...onTerminal(slave.n), execve(argv[0]!, argv, env)]);
    this.#over = ended(this.#child.pidfd).then(() => {
      this.#read();
      return reap(this.#child.pidfd)!;
    });
  }
  /** All that there is: our own slave keeps the terminal open, so its end is never seen here. */
  #read(): void {
    const into = mem(65536);
    for (;;) {
      const n = attempt(read(this.master.n, into));
      if (n <= 0) break;
      this.#text += Buffer.from(into.subarray(0, n)).toString();
    }
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
  get pid(): number {
    return this.#child.pid;
  }
  /** Everything shown so far. */
  get text(): string {
    return this.#text;
  }
  get settings(): Settings {
    return getSettings(this.#slave.n)!;
  }
  async sees(words: string): Promise<void> {
    while (!this.#text.includes(words)) {
      const end = await Promise.race([this.#changed.promise, this.#over]);
      if (end && !this.#text.includes(words))
        throw new Error(`ended with ${JSON.stringify(end)} before "${words}": ${JSON.stringify(this.#text)}`);
    }
  }
  type(keys: string): void {
    now(writeText(this.master.n, keys));
  }
  resize(size: WindowSize): void {
    now(setWindow(this.master.n, size));
  }
  /** Look away: the terminal takes what it holds, and no more. */
  lookAway(): void {
    this.#watch.pause();
  }
  lookAgain(): void {
    this.#watch.resume();
  }
  ended(): Promise<Ended> {
    return this.#over;
  }
  async [Symbol.asyncDispose](): Promise<void> {
    attempt(pidfdSendSignal(this.#child.pidfd.n, 9));
    await this.#over;
    this.#watch[Symbol.dispose]();
    this.master.close();
    this.#slave.close();
    this.#child.pidfd.close();
  }
}
