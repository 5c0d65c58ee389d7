// A virtual machine for the length of an `await using` block: boot this, say that, see this. What it prints, and
// what it printed last when it ends too early, is the error.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Calls } from "./agent.ts";

export interface Machine {
  readonly kernel?: string;
  readonly initramfs?: string;
  /** MiB */
  readonly memory?: number;
  /** Disk images, written to. Which is /dev/vda is the kernel's affair: disk("disk0") tells. */
  readonly disks?: readonly string[];
  /** For the kernel's command line, in place of "quiet". */
  readonly append?: string;
  /** More arguments for QEMU. */
  readonly more?: readonly string[];
  /** One processor whose time is counted in instructions, 1 ns each: what is measured inside does not depend on what else
   * this host does. When it has nothing to do its time goes on to the next timer at once. */
  readonly counted?: boolean;
  /** Let the machine start again by itself instead of ending. */
  readonly reboots?: boolean;
}

const LAST_WORDS = 4000;

/** What QEMU is told in every case. KVM is never used: it may exist and not work. */
export const base = (m: Machine): string[] => [
  ...(m.counted
    ? ["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1"]
    : ["-accel", "tcg,thread=multi", "-smp", "2"]),
  ...["-cpu", "max,la57=off", "-m", String(m.memory ?? 512)],
  ...["-nodefaults", "-display", "none", ...(m.reboots ? [] : ["-no-reboot"])],
  ...["-kernel", m.kernel ?? "out/kernel/vmlinuz", "-initrd", m.initramfs ?? "out/test/initramfs.cpio"],
  ...["-append", `console=ttyS0 ${m.append ?? "quiet"}`],
  ...["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"],
  ...(m.disks ?? []).flatMap((file, n) => [
    ...["-drive", `if=none,id=disk${n},format=raw,file=${file}`],
    ...["-device", `virtio-blk-pci,drive=disk${n},serial=disk${n}`],
  ]),
  ...(m.more ?? []),
];

/** Text that grows, and people who wait for words in it. */
class Screen {
  #text = "";
  #from = 0;
  #over = false;
  #waiting: (() => void)[] = [];

  async read(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      this.#text += decoder.decode(chunk, { stream: true });
      this.#wake();
    }
    this.#over = true;
    this.#wake();
  }

  get text(): string {
    return this.#text;
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async sees(words: string | RegExp, what: string): Promise<string> {
    for (;;) {
      const unseen = this.#text.slice(this.#from);
      const found = typeof words === "string" ? unseen.indexOf(words) : unseen.search(words);
      if (found >= 0) {
        const match = typeof words === "string" ? words : words.exec(unseen)![0];
        this.#from += found + match.length;
        return match;
      }
      if (this.#over)
        throw new Error(`${what} ended before ${words}; its last words:\n${this.#text.slice(-LAST_WORDS)}`);
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }
}

type Socket = Awaited<ReturnType<typeof Bun.connect>>;

export class Vm implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #folder: string;
  readonly #console = new Screen();
  readonly #errors = new Screen();
  #agent: Promise<Agent> | undefined;
  #shell: { screen: Screen; socket: Promise<Socket> } | undefined;
  #monitor: Promise<Monitor> | undefined;

  constructor(machine: Machine) {
    this.#folder = mkdtempSync(join(tmpdir(), "machine-"));
    const socket = (id: string) => `socket,id=${id},path=${this.#folder}/${id},server=on,wait=off`;
    this.#process = Bun.spawn(
      [
        // A test that is killed must not leave its machine running: setpriv(1).
        ...["setpriv", "--pdeathsig", "KILL"],
        "qemu-system-x86_64",
        ...base(machine),
        ...["-serial", "stdio"],
        ...["-chardev", socket("agent"), "-device", "virtserialport,chardev=agent,name=cml.agent"],
        ...["-chardev", socket("shell"), "-device", "virtconsole,chardev=shell"],
        ...["-qmp", `unix:${this.#folder}/monitor,server=on,wait=off`],
      ],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    );
    void this.#console.read(this.#process.stdout);
    void this.#errors.read(this.#process.stderr);
  }

  static boot(machine: Machine = {}): Vm {
    return new Vm(machine);
  }

  /** Wait for words on the first serial port, where the kernel and the CML talk. The test's timeout is the limit. Words arrive in
   * pieces: a pattern whose match is read says what comes behind it. */
  async sees(words: string | RegExp): Promise<string> {
    try {
      return await this.#console.sees(words, "machine");
    } catch (e) {
      throw new Error(`${(e as Error).message}\n${this.#errors.text}`);
    }
  }

  /** Everything that was said there. */
  get said(): string {
    return this.#console.text;
  }

  /** Resolves when the machine has switched itself off (or started again, unless it may). */
  async ended(): Promise<void> {
    await this.#process.exited;
  }

  /** Cut the power. */
  kill(): void {
    this.#process.kill(9);
  }

  /** Ask the test agent inside. */
  async ask<K extends keyof Calls>(call: K, ask: Calls[K]["ask"]): Promise<Calls[K]["answer"]> {
    this.#agent ??= Agent.connect(`${this.#folder}/agent`, this.#process.exited);
    return (await this.#agent).ask(call, ask);
  }

  /** "vda" for the serial number of a disk: "disk0" is the first of those it was booted with. */
  async disk(serial: string): Promise<string> {
    for (const name of await this.ask("list", { path: "/sys/block" })) {
      if (!name.startsWith("vd")) continue;
      if ((await this.ask("read", { path: `/sys/block/${name}/serial` })).trim() === serial) return name;
    }
    throw new Error(`the machine has no disk ${serial}`);
  }

  /** The second console, core0's. */
  #core0(): { screen: Screen; socket: Promise<Socket> } {
    if (this.#shell) return this.#shell;
    const screen = new Screen();
    const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
    const writer = writable.getWriter();
    void screen.read(readable);
    const socket = Bun.connect({
      unix: `${this.#folder}/shell`,
      socket: {
        data: (_s, bytes) => void writer.write(new Uint8Array(bytes)),
        close: () => void writer.close(),
      },
    });
    this.#shell = { screen, socket };
    return this.#shell;
  }

  /** Wait for words on core0's console. */
  async seesInCore0(words: string | RegExp): Promise<string> {
    return await this.#core0().screen.sees(words, "core0's console");
  }

  /** Type a line at core0's console. */
  async type(line: string): Promise<void> {
    (await this.#core0().socket).write(`${line}\n`);
  }

  /** A command of QEMU's monitor protocol: "system_powerdown" presses the power button. */
  async monitor(execute: string, args: object = {}): Promise<unknown> {
    this.#monitor ??= Monitor.connect(`${this.#folder}/monitor`);
    return (await this.#monitor).execute(execute, args);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill(9);
    await this.#process.exited;
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Lines of JSON over a socket that QEMU listens on. */
async function lines(path: string, on: (value: Record<string, unknown>) => void): Promise<Socket> {
  let rest = "";
  const decoder = new TextDecoder();
  const connect = () =>
    Bun.connect({
      unix: path,
      socket: {
        data(_socket, bytes) {
          const all = (rest + decoder.decode(bytes, { stream: true })).split("\n");
          rest = all.pop()!;
          for (const line of all) if (line.trim() !== "") on(JSON.parse(line));
        },
      },
    });
  // QEMU makes its sockets before it runs the machine; until then there is nothing to connect to.
  for (let left = 100; ; left--) {
    try {
      return await connect();
    } catch (e) {
      if (left === 0) throw e;
      await Bun.sleep(50);
    }
  }
}

interface Waiting {
  resolve(value: unknown): void;
  reject(e: Error): void;
}

class Agent {
  readonly #socket: Socket;
  readonly #waiting: Map<number, Waiting>;
  readonly #ready: Promise<void>;
  #next = 1;

  private constructor(socket: Socket, waiting: Map<number, Waiting>, ready: Promise<void>) {
    this.#socket = socket;
    this.#waiting = waiting;
    this.#ready = ready;
  }

  static async connect(path: string, exited: Promise<number>): Promise<Agent> {
    const waiting = new Map<number, Waiting>();
    const { promise: ready, resolve } = Promise.withResolvers<void>();
    const socket = await lines(path, (value) => {
      const id = value.id as number;
      if (id === 0) return resolve();
      const w = waiting.get(id);
      waiting.delete(id);
      if (typeof value.error === "string") w?.reject(new Error(`in the machine: ${value.error}`));
      else w?.resolve(value.answer);
    });
    void exited.then(() => {
      for (const w of waiting.values()) w.reject(new Error("the machine has ended"));
    });
    return new Agent(socket, waiting, ready);
  }

  async ask<K extends keyof Calls>(call: K, ask: Calls[K]["ask"]): Promise<Calls[K]["answer"]> {
    await this.#ready;
    const id = this.#next++;
    const answer = new Promise<unknown>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    this.#socket.write(JSON.stringify({ id, call, ...ask }) + "\n");
    return (await answer) as Calls[K]["answer"];
  }
}

class Monitor {
  readonly #socket: Socket;
  readonly #answers: Waiting[];
  private constructor(socket: Socket, answers: Waiting[]) {
    this.#socket = socket;
    this.#answers = answers;
  }

  static async connect(path: string): Promise<Monitor> {
    const answers: Waiting[] = [];
    const socket = await lines(path, (value) => {
      if ("return" in value) answers.shift()?.resolve(value.return);
      else if ("error" in value) answers.shift()?.reject(new Error(JSON.stringify(value.error)));
    });
    const monitor = new Monitor(socket, answers);
    await monitor.execute("qmp_capabilities", {});
    return monitor;
  }

  execute(command: string, args: object): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#answers.push({ resolve, reject });
      this.#socket.write(JSON.stringify({ execute: command, arguments: args }) + "\n");
    });
  }
}
