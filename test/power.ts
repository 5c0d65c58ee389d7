// Power cuts, many from one run: QEMU writes everything that happens to a disk into a second file as well
// (driver blklogwrites), in the form of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst).
// From it the disk is made as it was at any moment: what a flush has confirmed, and of what came after it any part, for
// a disk may write in any order until it is told to flush.
//
//   Vm.boot({ more: logged(disk, file) })         // a machine's disk, or one that this host mounts:
//   await using disk = await LoggedDisk.mount(base)
//   const log = new WriteLog(file);               // meanwhile log.length says how far it is
//   await replayed(base, log, cuts(log, 200, seed), (image) => mounted(image, check));
//
// A test that wants to know whether something was confirmed before a cut notes log.length when it sees the
// confirmation: a cut with a longer prefix must have it.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmdirSync,
  rmSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [MAGIC, VERSION, SECTOR] = [0x6a736677736872n, 1n, 512];
const [FLUSH, FUA, DISCARD] = [1, 2, 4];
const PIECE = 1 << 20;
/** Where the data partition begins: initramfs/image.ts. */
const PARTITION = 1 << 20;
/** Bytes of a sparse file for the log; QEMU does not let it grow by itself. */
const LOG_BYTES = 16 * 2 ** 30;

interface Entry {
  /** Bytes on the disk. */
  readonly at: number;
  readonly length: number;
  readonly flags: number;
  /** Where its bytes are in the log. */
  readonly data: number;
}

/** What QEMU is told to log the writes to `disk` into `log`, which is made anew: the node "logged". */
function nodes(disk: string, log: string): string[] {
  rmSync(log, { force: true });
  const fd = openSync(log, "wx");
  ftruncateSync(fd, LOG_BYTES);
  closeSync(fd);
  const file = (name: string, path: string) => [
    "--blockdev", // both of QEMU's programs take it so
    JSON.stringify({ driver: "raw", "node-name": name, file: { driver: "file", filename: path } }),
  ];
  const node = {
    driver: "blklogwrites",
    "node-name": "logged",
    file: "disk",
    log: "log",
    "log-sector-size": SECTOR,
  };
  return [...file("disk", disk), ...file("log", log), ...["--blockdev", JSON.stringify(node)]];
}

/** A machine's disk whose writes are logged: for `more` of a Vm, in place of `disks`. */
export const logged = (disk: string, log: string): string[] => [
  ...nodes(disk, log),
  ...["-device", "virtio-blk-pci,drive=logged,serial=logged"],
];

/** A disk that this host has mounted, its writes logged: the kernel's ext4 on a loop device on a file of QEMU's
 * (FUSE), which passes every write and every flush on. */
export class LoggedDisk implements AsyncDisposable {
  /** The data partition's files. */
  readonly folder: string;
  readonly log: string;
  readonly #files: string;
  readonly #daemon: Bun.Subprocess;
  private constructor(files: string, daemon: Bun.Subprocess) {
    this.#files = files;
    this.#daemon = daemon;
    this.folder = join(files, "mounted");
    this.log = join(files, "log");
  }

  /** A copy of the image `base`, below `under`. */
  static async mount(base: string, under = tmpdir()): Promise<LoggedDisk> {
    const files = mkdtempSync(join(under, "logged-"));
    chmodSync(files, 0o755);
    const at = (name: string) => join(files, name);
    copy(base, at("disk"));
    closeSync(openSync(at("exported"), "wx"));
    mkdirSync(at("mounted"));
    const fuse = {
      type: "fuse",
      id: "exported",
      "node-name": "logged",
      mountpoint: at("exported"),
      writable: true,
    };
    const daemon = Bun.spawn(
      [
        "qemu-storage-daemon",
        ...nodes(at("disk"), at("log")),
        ...["--export", JSON.stringify(fuse), "--pidfile", at("ready")],
      ],
      { stdin: "ignore", stdout: "inherit", stderr: "inherit" },
    );
    while (!existsSync(at("ready"))) {
      if (daemon.exitCode !== null) throw new Error(`qemu-storage-daemon has ended: ${daemon.exitCode}`);
      await Bun.sleep(5); // it writes the file when it serves; nothing tells
    }
    attach(at("exported"), at("mounted"));
    return new LoggedDisk(files, daemon);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    spawnSync("umount", [this.folder]);
    this.#daemon.kill("SIGTERM");
    await this.#daemon.exited;
    rmSync(this.#files, { recursive: true, force: true });
  }
}

function attach(image: string, folder: string): void {
  const mount = spawnSync("mount", ["-t", "ext4", "-o", `loop,offset=${PARTITION}`, image, folder]);
  if (mount.status !== 0) throw new Error(`mount: ${mount.stderr}`);
}

export class WriteLog implements Disposable {
  readonly #fd: number;
  readonly #entries: Entry[] = [];
  #next = SECTOR;

  constructor(path: string) {
    this.#fd = openSync(path, "r");
  }

  /** Entries that are there by now. */
  get length(): number {
    const head = Buffer.alloc(32);
    const { size } = fstatSync(this.#fd);
    while (this.#next + SECTOR <= size) {
      readSync(this.#fd, head, 0, head.length, this.#next);
      const [sector, count, flags] = [
        head.readBigUInt64LE(0),
        head.readBigUInt64LE(8),
        head.readBigUInt64LE(16),
      ];
      if (count === 0n && flags === 0n) break; // not written yet
      const entry = {
        at: Number(sector) * SECTOR,
        length: Number(count) * SECTOR,
        flags: Number(flags),
        data: this.#next + SECTOR,
      };
      this.#entries.push(entry);
      this.#next = entry.data + (entry.flags & DISCARD ? 0 : entry.length);
    }
    return this.#entries.length;
  }

  /** Numbers of entries up to which everything was on the disk: a flush had been asked for and answered. */
  flushes(): number[] {
    const all: number[] = [];
    for (let i = 0; i < this.length; i++) if (this.#entries[i]!.flags & (FLUSH | FUA)) all.push(i + 1);
    return all;
  }

  /** Do the write number `i` to an image. */
  replay(i: number, image: number): void {
    const e = this.#entries[i]!;
    if (e.flags & DISCARD) {
      const zeros = Buffer.alloc(Math.min(PIECE, e.length));
      for (let done = 0; done < e.length; done += zeros.length)
        writeSync(image, zeros, 0, Math.min(zeros.length, e.length - done), e.at + done);
      return;
    }
    const bytes = Buffer.alloc(e.length);
    readSync(this.#fd, bytes, 0, e.length, e.data);
    writeSync(image, bytes, 0, e.length, e.at);
  }

  /** The log's own words about itself; throws if it is none. */
  check(): void {
    const head = Buffer.alloc(32);
    readSync(this.#fd, head, 0, head.length, 0);
    if (
      head.readBigUInt64LE(0) !== MAGIC ||
      head.readBigUInt64LE(8) !== VERSION ||
      head.readUInt32LE(24) !== SECTOR
    )
      throw new Error(`no log of writes with sectors of ${SECTOR} bytes`);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/** One moment: the first `prefix` writes have reached the disk, and those of `beyond`, which came after the last flush. */
export interface Cut {
  readonly prefix: number;
  readonly beyond: readonly number[];
}

/** A generator of numbers below n, the same for the same seed (mulberry32). */
export function chance(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** `count` moments, in order, after the first `from` writes and until the first `to`: half at flushes, half between two, where
 * some of the later writes are there and some earlier ones are not. The last is the end. */
export function cuts(log: WriteLog, count: number, seed: number, from = 0, to = log.length): Cut[] {
  const random = chance(seed);
  const flushes = [from, ...log.flushes().filter((n) => n > from && n < to)];
  const all: Cut[] = [{ prefix: to, beyond: [] }];
  while (all.length < count) {
    const i = random(flushes.length);
    const prefix = flushes[i]!;
    const end = flushes[i + 1] ?? to;
    const later = Array.from({ length: end - prefix }, (_, n) => prefix + n);
    all.push({ prefix, beyond: all.length % 2 === 0 ? [] : later.filter(() => random(2) === 0) });
  }
  return all.toSorted((a, b) => a.prefix - b.prefix);
}

function copy(from: string, to: string): void {
  const p = spawnSync("cp", ["--sparse=always", "--reflink=auto", from, to]);
  if (p.status !== 0) throw new Error(`cp: ${p.stderr}`);
}

/** Disks at one cut after the other; `cuts` in order. `each` gets an image that it may write to. */
export async function replayed(
  base: string,
  log: WriteLog,
  at: readonly Cut[],
  each: (image: string, cut: Cut) => Promise<void>,
  under = tmpdir(),
): Promise<void> {
  const folder = mkdtempSync(join(under, "power-"));
  const [sofar, image] = [join(folder, "sofar.img"), join(folder, "cut.img")];
  try {
    copy(base, sofar);
    let done = 0;
    for (const cut of at) {
      const fd = openSync(sofar, "r+");
      for (; done < cut.prefix; done++) log.replay(done, fd);
      closeSync(fd);
      // Another file each time: mount(8) takes a loop device that still has the last one, with what it remembers of it,
      // and loop devices are let go of later than their mounts.
      rmSync(image, { force: true });
      copy(sofar, image);
      const cutFd = openSync(image, "r+");
      for (const i of cut.beyond) log.replay(i, cutFd);
      closeSync(cutFd);
      await each(image, cut);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Mount the data partition of an image as the kernel does after a power cut, journal and all, for one visit. */
export async function mounted<T>(image: string, visit: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), "disk-"));
  attach(image, folder);
  using after = new DisposableStack();
  after.defer(() => rmdirSync(folder)); // fails, and says so, if it is still mounted
  after.defer(() => spawnSync("umount", [folder]));
  return await visit(folder);
}
