// Named pipes from core0 into containers (container.conf: fifos). What a program of core0 writes to /dev/fifos/NAME is
// what a program of the container reads from its own /dev/fifos/NAME: two pipes, and cmld between them, so that nothing
// ever comes back. On an ordinary host the first of them is /run/cml/fifos/NAME, and root's alone.
//
// Both lie in folders of containers, so they are found and made beneath a /dev that we hold, and no link is followed.
// Bytes are read and written, not spliced: a page of core0's never becomes part of a container's pipe. What does not fit
// waits in one buffer a pipe, and nothing more is read meanwhile: then the writer in core0 waits, never cmld.
//
// A pipe's end is passed on as well. The container's side is closed when all writers in core0 have closed theirs, but
// not before somebody has it open: the kernel would throw away what nobody has read.
import { fstatSync } from "node:fs";
import { C0 } from "../lib/uuid.ts";
import * as sys from "../sys/calls.ts";
import { EAGAIN, EEXIST, EINTR, ENOENT, ENXIO, SysError } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { lasting, mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { EPOLLIN, EPOLLOUT, type Watch, watch } from "../sys/poll.ts";
import { BENEATH, folderOf } from "./devices/nodes.ts";
import { devFolder } from "./modules/devices.ts";

/** Below a container's /dev, or below /run/cml. */
const FOLDER = "fifos";
const [S_IFMT, S_IFIFO] = [0o170000, 0o010000];
/** Bytes that cmld holds of one pipe. */
const CHUNK = 16 * 1024;
/** Pieces of one pipe before others get a turn. */
const PIECES = 16;
/** Between an opening and a look at it: a container may open and close its end without reading, for ever. */
const PAUSE_MS = 50;

/** The end of a pipe that core0, or the host, writes to. */
export interface FifoResource {
  readonly kind: "fifo";
  /** core0's uuid: in its /dev; else a folder of the host. */
  readonly at: string;
  readonly name: string;
}

// --- where they are -----------------------------------------------------------------------

/** Make a pipe, or take the one that is there. It is opened without being used. */
export function makeFifo(base: Fd, name: string, owner: number, mode: number): Fd {
  const path = `${FOLDER}/${name}`;
  const { folder } = folderOf(base, path, owner);
  using _folder = folder;
  const made = attempt(sys.mknodat(folder.n, name, S_IFIFO | 0o600, 0));
  if (made < 0 && made !== -EEXIST) throw new SysError(-made, `mkfifo ${path}`);
  const fifo = find(folder, name);
  if (!fifo) throw new Error(`${path} cannot be made: something else is there`);
  if (made === 0) {
    now(sys.fchownat(fifo.n, "", owner, owner, sys.AT_EMPTY_PATH));
    now(sys.fchmodat(sys.AT_FDCWD, `/proc/self/fd/${fifo.n}`, mode)); // mknod obeys the umask
  }
  return fifo;
}

function find(folder: Fd, name: string): Fd | undefined {
  const n = attempt(sys.openat2(folder.n, name, sys.O_PATH | sys.O_NOFOLLOW, BENEATH));
  if (n < 0) return undefined;
  const fifo = new Fd(n);
  if ((fstatSync(n).mode & S_IFMT) === S_IFIFO) return fifo;
  fifo.close();
  return undefined;
}

const openFolder = (path: string): Fd =>
  new Fd(now(sys.openat(sys.AT_FDCWD, path, sys.O_PATH | sys.O_DIRECTORY)));

/** Names of pipes, and the container that each leads to. */
const taken = new Map<string, string>();

/** Take a name; returns who has it, if not this container. */
export function take(name: string, uuid: string): string | undefined {
  const owner = taken.get(name) ?? uuid;
  taken.set(name, owner);
  return owner === uuid ? undefined : owner;
}

export function giveBack(name: string, uuid: string): void {
  if (taken.get(name) === uuid) taken.delete(name);
}

/** The end that is written to, for a container's pipe; undefined: there is no core0 now. */
export function makeSource({ at, name }: FifoResource, owner: number): Fd | undefined {
  if (at === C0) {
    const dev = devFolder(C0);
    return dev && makeFifo(dev, name, owner, 0o666);
  }
  using base = openFolder(at);
  return makeFifo(base, name, 0, 0o600);
}

/** Remove it, unless another container has the name by now. */
export function removeSource({ at, name }: FifoResource): void {
  if (taken.has(name)) return;
  using own = at === C0 ? undefined : openFolder(at);
  const base = own ?? devFolder(C0);
  if (!base) return; // it went with core0
  const n = attempt(sys.openat2(base.n, FOLDER, sys.O_PATH | sys.O_DIRECTORY, BENEATH));
  if (n < 0) return;
  using folder = new Fd(n);
  using fifo = find(folder, name);
  if (fifo) now({ ...sys.unlinkat(folder.n, name), allow: ENOENT });
}

// --- who opens them -------------------------------------------------------------------------

const IN_OPEN = 0x20; // linux/inotify.h
const EVENT = 16; // struct inotify_event without a name

/** Tells when somebody opens a pipe. One descriptor for all, as long as anybody waits. */
class Openings {
  readonly #waiting = new Map<number, () => void>();
  #fd: Fd | undefined;
  #watch: Watch | undefined;

  wait(fifo: Fd, opened: () => void): Disposable {
    if (!this.#fd) {
      this.#fd = new Fd(now({ call: "inotify_init1", args: [sys.O_NONBLOCK | sys.O_CLOEXEC] }));
      this.#watch = watch(this.#fd, EPOLLIN, () => this.#read());
    }
    const fd = this.#fd;
    const id = now({ call: "inotify_add_watch", args: [fd.n, `/proc/self/fd/${fifo.n}`, IN_OPEN] });
    this.#waiting.set(id, opened);
    return {
      [Symbol.dispose]: () => {
        if (!this.#waiting.delete(id)) return;
        attempt({ call: "inotify_rm_watch", args: [fd.n, id] });
        if (this.#waiting.size === 0) this.#close();
      },
    };
  }

  #read(): void {
    const events = mem(64 * EVENT);
    const n = attempt(sys.read(this.#fd!.n, events));
    const view = new DataView(events.buffer);
    for (let at = 0; at + EVENT <= n; at += EVENT) this.#waiting.get(view.getInt32(at, true))?.();
  }

  #close(): void {
    this.#watch?.[Symbol.dispose]();
    this.#fd?.close();
    this.#watch = this.#fd = undefined;
  }
}
const openings = new Openings();

// --- what passes through them ---------------------------------------------------------------

const again = (fifo: Fd, flags: number): number =>
  attempt(sys.openat(sys.AT_FDCWD, `/proc/self/fd/${fifo.n}`, flags | sys.O_NONBLOCK));

function open(fifo: Fd, flags: number): Fd {
  const n = again(fifo, flags);
  if (n < 0) throw new SysError(-n, "opening a fifo");
  return new Fd(n);
}

const buffer = mem(CHUNK);

/** Passes on what comes out of one pipe into another. Both are given opened with O_PATH, and closed with this.
 *
 * A pipe without a reader takes nothing, so we are one for the time of a write, and never longer: a child that is cloned
 * meanwhile would have it open too, and be taken for a reader of the container. */
export class Forwarder implements Disposable {
  #input: Fd;
  #reading: Watch;
  /** The container's side, while there is something for it. */
  #output: Fd | undefined;
  #rest: Uint8Array | undefined;
  /** What the rest, or the end, waits for. */
  #waiting: Disposable | undefined;

  constructor(
    readonly from: Fd,
    readonly to: Fd,
  ) {
    this.#input = open(from, sys.O_RDONLY);
    this.#reading = watch(this.#input, EPOLLIN, () => this.#pump());
  }

  /** Pass on what there is. */
  #pump(): void {
    this.#waits(undefined);
    for (let piece = 0; piece < PIECES; piece++) {
      if (!this.#flush()) {
        this.#waitForRoom();
        return;
      }
      const n = attempt(sys.read(this.#input.n, buffer));
      if (n === 0) {
        this.#inputEnds();
        return;
      }
      if (n < 0) {
        if (n !== -EAGAIN && n !== -EINTR) throw new SysError(-n, "reading a fifo");
        this.#reading.resume();
        return;
      }
      this.#rest = buffer.subarray(0, n);
      if (!this.#flush()) this.#rest = lasting(this.#rest); // the buffer is everybody's
    }
    this.#later(0); // not when there is more: of the end no event tells when all has been read
  }

  #waits(what: Disposable | undefined): void {
    this.#waiting?.[Symbol.dispose]();
    this.#waiting = what;
  }

  #later(ms: number): void {
    this.#reading.pause();
    const timer = setTimeout(() => this.#pump(), ms);
    this.#waits({ [Symbol.dispose]: () => clearTimeout(timer) });
  }

  /** All is written. */
  #flush(): boolean {
    if (!this.#rest) return true;
    using _reader = open(this.to, sys.O_RDWR);
    this.#output ??= open(this.to, sys.O_WRONLY);
    while (this.#rest) {
      const n = attempt(sys.write(this.#output.n, this.#rest));
      if (n === -EAGAIN || n === -EINTR) return false;
      if (n < 0) throw new SysError(-n, "writing a fifo");
      this.#rest = n < this.#rest.length ? this.#rest.subarray(n) : undefined;
    }
    return true;
  }

  #hasReader(): boolean {
    const n = again(this.to, sys.O_WRONLY);
    if (n >= 0) new Fd(n).close();
    else if (n !== -ENXIO) throw new SysError(-n, "opening a fifo");
    return n >= 0;
  }

  /** For a reader, or until the one that is there has read, or has gone. */
  #waitForRoom(): void {
    this.#reading.pause();
    this.#waits(openings.wait(this.to, () => this.#later(PAUSE_MS)));
    if (this.#hasReader()) this.#waits(watch(this.#output!, EPOLLOUT, () => this.#pump()));
  }

  /** All writers have closed it, and that is said until it is opened anew. */
  #inputEnds(): void {
    const old = this.#input;
    this.#reading[Symbol.dispose]();
    this.#input = open(this.from, sys.O_RDONLY); // before the old one is closed: what comes in between is kept
    this.#reading = watch(this.#input, EPOLLIN, () => this.#pump());
    old.close();
    if (!this.#output) return;
    this.#waits(openings.wait(this.to, () => this.#later(PAUSE_MS)));
    // Closed if whoever reads it has it open, or there is nothing left to read.
    if (!this.#hasReader() && waitingIn(this.#output) > 0) return;
    this.#waits(undefined);
    this.#output.close();
    this.#output = undefined;
  }

  [Symbol.dispose](): void {
    this.#waits(undefined);
    this.#reading[Symbol.dispose]();
    for (const fd of [this.#input, this.#output, this.from, this.to]) fd?.close();
  }
}

const FIONREAD = 0x541b; // asm-generic/ioctls.h

function waitingIn(pipe: Fd): number {
  const count = mem(4);
  now(sys.ioctl(pipe.n, FIONREAD, count));
  return new DataView(count.buffer).getInt32(0, true);
}
