// Terminals: a new pair of ends, the window's size, and the settings (termios) of one that somebody types at.
// Numbers from asm-generic/ioctls.h and asm-generic/termbits.h, the same on x86-64 and arm64.
import { fstatSync } from "node:fs";
import { AT_FDCWD, type At, dup3, ioctl, O_NOCTTY, O_NONBLOCK, O_RDWR, openat, setsid } from "./calls.ts";
import { Fd } from "./fd.ts";
import { mem, Struct } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Op } from "./op.ts";

const TCGETS = 0x5401;
const TCSETSF = 0x5404; // what was typed before and not read yet is thrown away
const TCSETSW = 0x5403;
const TIOCSCTTY = 0x540e;
const TIOCGWINSZ = 0x5413;
const TIOCSWINSZ = 0x5414;
const TIOCSPTLCK = 0x40045431;
const TIOCGPTPEER = 0x5441;

/** linux/major.h, Documentation/admin-guide/devices.txt: "Pseudo-TTY master multiplex". */
const PTMX = 0x502;

export interface WindowSize {
  readonly rows: number;
  readonly columns: number;
}

export interface Pty {
  /** Ours, non-blocking: watch() it, read and write it. Reading ends with EIO when nobody holds the other end. */
  readonly master: Fd;
  /** The terminal; to be closed here once the child has it. */
  readonly slave: Fd;
}

/**
 * A new terminal. `path` beneath `dir` names a multiplexer, a container's own /dev/pts/ptmx for example: opening it
 * can neither block nor give us a controlling terminal, and what was opened is checked. The other end is opened through
 * the first, so no name in anybody's /dev/pts is trusted.
 */
export function openpty(size?: WindowSize, dir: At = AT_FDCWD, path = "/dev/ptmx"): Pty {
  return ptyOf(new Fd(now(openat(dir, path, O_RDWR | O_NOCTTY | O_NONBLOCK))), size);
}

/** As openpty(), of a multiplexer that the caller has opened with O_RDWR|O_NOCTTY|O_NONBLOCK. */
export function ptyOf(master: Fd, size?: WindowSize): Pty {
  using undo = new DisposableStack();
  undo.use(master);
  if (fstatSync(master.n).rdev !== PTMX) throw new Error("not the multiplexer of pseudo-terminals");
  now(ioctl(master.n, TIOCSPTLCK, mem(4))); // 0: unlock
  const O_CLOEXEC = 0o2000000;
  const slave = new Fd(now(ioctl(master.n, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)));
  undo.use(slave);
  if (size) now(setWindow(master.n, size));
  undo.move();
  return { master, slave };
}

/** struct winsize: rows, columns, and pixels, which nobody uses. Whoever runs there gets SIGWINCH. */
export const setWindow = (fd: At, { rows, columns }: WindowSize): Op =>
  ioctl(fd, TIOCSWINSZ, {
    data: new Struct(8).u16(rows).u16(columns).bytes,
    text: `{rows=${rows}, columns=${columns}}`,
  });

/** Undefined if `fd` is no terminal, or one without a size. */
export function getWindow(fd: number): WindowSize | undefined {
  const size = mem(8);
  if (attempt(ioctl(fd, TIOCGWINSZ, size)) < 0) return undefined;
  const view = new DataView(size.buffer);
  const [rows, columns] = [view.getUint16(0, true), view.getUint16(2, true)];
  return rows > 0 && columns > 0 ? { rows, columns } : undefined;
}

/** In a child: a session of its own with `slave` as controlling terminal and as standard input, output and error. */
export const onTerminal = (slave: At): Op[] => [
  setsid(),
  ioctl(slave, TIOCSCTTY, 0),
  ...[0, 1, 2].map((n) => dup3(slave, n)),
];

// --- settings --------------------------------------------------------------------

/** struct termios: four words of flags, a line discipline, 19 control characters. */
export type Settings = Uint8Array<ArrayBuffer>;
const SIZE = 36;
const [INPUT, OUTPUT, CONTROL, LOCAL] = [0, 4, 8, 12];
const CHARACTERS = 17;
const [VTIME, VMIN] = [5, 6];

const [IGNBRK, BRKINT, PARMRK, ISTRIP, INLCR, IGNCR, ICRNL, IXON] = [1, 2, 8, 0x20, 0x40, 0x80, 0x100, 0x400];
const OPOST = 1;
const [CSIZE, CS8, PARENB] = [0x30, 0x30, 0x100];
const [ISIG, ICANON, ECHO, ECHONL, IEXTEN] = [1, 2, 8, 0x40, 0x8000];

/** Undefined if `fd` is no terminal. */
export function getSettings(fd: number): Settings | undefined {
  const settings = mem(SIZE);
  return attempt(ioctl(fd, TCGETS, settings)) < 0 ? undefined : settings;
}

/** Once what was written has gone out; `discard`: what was typed before it is not for whoever reads next. */
export const setSettings = (fd: number, settings: Settings, discard = false): Op =>
  ioctl(fd, discard ? TCSETSF : TCSETSW, settings);

function changed(from: Settings, word: number, clear: number, set = 0): Settings {
  const to = mem(SIZE);
  to.set(from);
  const view = new DataView(to.buffer);
  view.setUint32(word, ((view.getUint32(word, true) & ~clear) | set) >>> 0, true);
  return to;
}

/** Every byte as it is typed, nothing interpreted, as cfmakeraw(3). */
export function raw(from: Settings): Settings {
  let to = changed(from, INPUT, IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
  to = changed(to, OUTPUT, OPOST);
  to = changed(to, CONTROL, CSIZE | PARENB, CS8);
  to = changed(to, LOCAL, ECHO | ECHONL | ICANON | ISIG | IEXTEN);
  to[CHARACTERS + VMIN] = 1;
  to[CHARACTERS + VTIME] = 0;
  return to;
}

/** For a secret: nothing that is typed is shown, except the end of the line. */
export const silent = (from: Settings): Settings => changed(from, LOCAL, ECHO, ECHONL | ICANON | ISIG);
