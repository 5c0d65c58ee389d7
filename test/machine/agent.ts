// The test agent: the way into a machine that has no shell. It is in the test ramdisk only, run by the product's own
// executable; requests and answers are JSON, one a line, on a virtio-serial port.
import { spawn } from "node:child_process";
import {
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { connect } from "node:net";
import { dirname, join } from "node:path";

export const PORT = "cml.agent";

/** What can be asked, and what comes back. */
export interface Calls {
  read: { ask: { path: string }; answer: string };
  list: { ask: { path: string }; answer: string[] };
  /** What a process has open, as /proc shows it. */
  descriptors: { ask: { pid: number }; answer: string[] };
  /** Folders that are missing are made. */
  write: { ask: { path: string; text: string }; answer: null };
  stat: {
    ask: { path: string };
    answer: { size: number; blocks: number; mode: number; uid: number; mtimeMs: number };
  };
  hash: { ask: { path: string }; answer: string };
  kill: { ask: { pid: number; signal: string }; answer: null };
  /** What the kernel has said so far. */
  kernel: { ask: object; answer: { seconds: number; text: string }[] };
  /** Connect to a socket, send bytes (base64), and wait for so many frames (4 bytes of length, then the message). */
  exchange: {
    ask: { socket: string; send: string; frames: number };
    answer: { received: string; ms: number };
  };
  /** The same again and again, each on a connection of its own; the milliseconds of each. */
  exchanges: {
    ask: { socket: string; send: string; frames: number; times: number };
    answer: number[];
  };
  run: {
    ask: { argv: string[]; stdin?: string; env?: Record<string, string> };
    answer: { status: number | null; signal: string | null; stdout: string; stderr: string; ms: number };
  };
}
export type Request = { [K in keyof Calls]: { id: number; call: K } & Calls[K]["ask"] }[keyof Calls];

async function answer(r: Request): Promise<unknown> {
  switch (r.call) {
    case "read":
      return readFileSync(r.path, "utf8");
    case "list":
      return readdirSync(r.path).sort();
    case "descriptors":
      return descriptors(`/proc/${r.pid}/fd`);
    case "write":
      mkdirSync(dirname(r.path), { recursive: true });
      writeFileSync(r.path, r.text);
      return null;
    case "stat": {
      const { size, blocks, mode, uid, mtimeMs } = statSync(r.path);
      return { size, blocks, mode, uid, mtimeMs };
    }
    case "hash":
      return Bun.hash(readFileSync(r.path)).toString(16);
    case "kill":
      process.kill(r.pid, r.signal as NodeJS.Signals);
      return null;
    case "kernel":
      return kernel();
    case "exchange":
      return await exchange(r.socket, Buffer.from(r.send, "base64"), r.frames);
    case "exchanges": {
      const times: number[] = [];
      for (let i = 0; i < r.times; i++)
        times.push((await exchange(r.socket, Buffer.from(r.send, "base64"), r.frames)).ms);
      return times;
    }
    case "run":
      return await run(r.argv, r.stdin ?? "", r.env ?? {});
  }
}

function descriptors(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    try {
      return [readlinkSync(join(folder, name))];
    } catch (e) {
      if ((e as NodeJS.ErrnoException).code !== "ENOENT") throw e; // closed meanwhile
      return [];
    }
  });
}

/** /dev/kmsg gives one record a read (Documentation/ABI/testing/dev-kmsg): level, number, microseconds; text. */
function kernel(): Calls["kernel"]["answer"] {
  const fd = openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK);
  const record = Buffer.alloc(8192);
  const all: Calls["kernel"]["answer"] = [];
  try {
    for (;;) {
      const text = record.toString("utf8", 0, readSync(fd, record));
      const [, microseconds, first] = /^\d+,\d+,(\d+)[^;]*;(.*)/.exec(text) ?? [];
      all.push({ seconds: Number(microseconds) / 1e6, text: first ?? "" });
    }
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== "EAGAIN") throw e; // no more
  } finally {
    closeSync(fd);
  }
  return all;
}

const EXCHANGE_MS = 60_000;
function exchange(path: string, bytes: Buffer, frames: number): Promise<Calls["exchange"]["answer"]> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const socket = connect({ path });
    let got: Buffer = Buffer.alloc(0);
    const whole = (): boolean => {
      let at = 0;
      for (let n = 0; n < frames; n++) {
        if (got.length < at + 4) return false;
        at += 4 + got.readUInt32BE(at);
      }
      return got.length >= at;
    };
    const done = (): void => {
      socket.destroy();
      resolve({ received: got.toString("base64"), ms: performance.now() - began });
    };
    socket.setTimeout(EXCHANGE_MS, done);
    socket.on("connect", () => socket.write(bytes));
    socket.on("data", (piece: Buffer) => {
      got = Buffer.concat([got, piece]);
      if (whole()) done();
    });
    socket.on("close", done);
    socket.on("error", reject);
  });
}

function run(
  [file, ...args]: string[],
  stdin: string,
  env: Record<string, string>,
): Promise<Calls["run"]["answer"]> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = spawn(file!, args, { env: { PATH: "/usr/sbin:/usr/bin", LC_ALL: "C.UTF-8", ...env } });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (d) => {
      stdout += d;
    });
    child.stderr.on("data", (d) => {
      stderr += d;
    });
    child.on("error", reject);
    child.on("close", (status, signal) =>
      resolve({ status, signal, stdout, stderr, ms: performance.now() - began }),
    );
    child.stdin.end(stdin);
  });
}

function port(): string {
  for (const name of readdirSync("/sys/class/virtio-ports"))
    try {
      if (readFileSync(`/sys/class/virtio-ports/${name}/name`, "utf8").trim() === PORT) return `/dev/${name}`;
    } catch {
      // a port without a name
    }
  throw new Error(`no virtio port ${PORT}`);
}

if (import.meta.main) {
  const path = port();
  const out = openSync(path, "r+");
  // The port takes at most 32 KiB at once (port_fops_write of virtio_console).
  const tell = (line: object) => {
    const bytes = Buffer.from(`${JSON.stringify(line)}\n`);
    for (let at = 0; at < bytes.length; ) at += writeSync(out, bytes, at);
  };
  tell({ id: 0, answer: "agent" });
  let rest = "";
  const decoder = new TextDecoder();
  // One descriptor for both directions: the port can be opened once.
  for await (const chunk of (await import("node:fs")).createReadStream(path, { fd: out, autoClose: false })) {
    const lines = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      const request = JSON.parse(line) as Request;
      answer(request).then(
        (value) => tell({ id: request.id, answer: value }),
        (e) => tell({ id: request.id, error: e instanceof Error ? e.message : String(e) }),
      );
    }
  }
  closeSync(out);
}
