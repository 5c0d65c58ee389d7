// The device-mapper (linux/dm-ioctl.h): block devices made of others by a table of targets. A request is a value, its
// bytes are what the kernel reads and where it writes its answer: done here (ask) when it is quick, by a child
// (run/mapper.ts) when it may wait for a disk. Bytes of a request, not a string, carry a key: whoever made them wipes them.
//
// The device's node is ours to make, by the number the kernel gives: there is no udev.
import { readFileSync } from "node:fs";
import { AT_FDCWD, type At, ioctl, mknodat, O_RDWR, openat } from "./calls.ts";
import { EEXIST, ENOENT, ENXIO, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Op } from "./op.ts";

const MISC_MAJOR = 10; // linux/major.h
export const CONTROL = "/dev/mapper/control";

const COMMANDS = {
  version: 0,
  list: 2,
  create: 3,
  remove: 4,
  suspend: 6,
  status: 7,
  load: 9,
  table: 12,
  targets: 13,
  message: 14,
} as const;
type Command = keyof typeof COMMANDS;

/** sizeof(struct dm_ioctl) and where its fields are. */
const HEAD = 312;
const [VERSION, SIZE, START, COUNT, OPEN, FLAGS, EVENT, DEV, NAME, UUID] = [
  0, 12, 16, 20, 24, 28, 32, 40, 48, 176,
];
/** DM_NAME_LEN and DM_UUID_LEN, with their final NUL. */
export const [NAME_LENGTH, UUID_LENGTH] = [128, 129];
/** sizeof(struct dm_target_spec). */
const SPEC = 40;
const TYPE_LENGTH = 16;
/** What an answer may take; the kernel says so when it is too small. */
const ANSWER = 16 * 1024;

const READONLY = 1 << 0;
const SUSPEND = 1 << 1;
const STATUS_TABLE = 1 << 4;
const ACTIVE = 1 << 5;
const BUFFER_FULL = 1 << 8;
const NOFLUSH = 1 << 11;
const SECURE_DATA = 1 << 15;
const DEFERRED_REMOVE = 1 << 17;

/** _IOWR(0xfd, command, struct dm_ioctl) */
const number = (c: Command): number => ((3 << 30) | (HEAD << 16) | (0xfd << 8) | COMMANDS[c]) >>> 0;

export interface Request {
  readonly command: Command;
  readonly name: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** A line of a table: `sectors` of 512 bytes from `start` on are of this kind. Parameters with a key are bytes. */
export interface Target {
  readonly start?: number;
  readonly sectors: number;
  readonly type: string;
  readonly parameters: string | Uint8Array;
}

const align = (n: number): number => (n + 7) & ~7;

function text(bytes: Uint8Array, at: number, value: string, length: number, what: string): void {
  const encoded = Buffer.from(value);
  if (encoded.length >= length || encoded.includes(0))
    throw new Error(
      `device-mapper: ${what} ${JSON.stringify(value)}: at most ${length - 1} bytes, none zero`,
    );
  bytes.set(encoded, at);
}

function request(command: Command, name: string, size = HEAD, flags = 0): Request & { view: DataView } {
  const bytes = mem(size);
  const view = new DataView(bytes.buffer);
  view.setUint32(VERSION, 4, true); // 4.0.0: what the kernel has had since 2.6
  view.setUint32(SIZE, size, true);
  view.setUint32(START, HEAD, true);
  view.setUint32(FLAGS, flags, true);
  if (name.includes("/")) throw new Error(`device-mapper: name ${JSON.stringify(name)} contains "/"`);
  text(bytes, NAME, name, NAME_LENGTH, "name");
  return { command, name, bytes, view };
}

const plain = ({ command, name, bytes }: Request): Request => ({ command, name, bytes });

/** A device without a table; its answer has the number. */
export function create(name: string, uuid = ""): Request {
  const r = request("create", name);
  text(r.bytes, UUID, uuid, UUID_LENGTH, "uuid");
  return plain(r);
}

/** A table, not in effect until resume(). `secret`: the kernel wipes its copies, and these bytes as well. */
export function load(
  name: string,
  targets: readonly Target[],
  how: { readOnly?: boolean; secret?: boolean } = {},
): Request {
  const all = targets.map((t) => ({
    ...t,
    bytes: typeof t.parameters === "string" ? Buffer.from(t.parameters) : t.parameters,
  }));
  const size = all.reduce((sum, t) => sum + SPEC + align(t.bytes.length + 1), HEAD);
  const flags = (how.readOnly ? READONLY : 0) | (how.secret ? SECURE_DATA : 0);
  const r = request("load", name, size, flags);
  r.view.setUint32(COUNT, all.length, true);
  let at = HEAD;
  for (const t of all) {
    const next = SPEC + align(t.bytes.length + 1);
    if (t.bytes.includes(0)) throw new Error(`device-mapper: ${name}: parameters with a zero byte`);
    r.view.setBigUint64(at, BigInt(t.start ?? 0), true);
    r.view.setBigUint64(at + 8, BigInt(t.sectors), true);
    r.view.setUint32(at + 20, next, true);
    text(r.bytes, at + 24, t.type, TYPE_LENGTH, "target");
    r.bytes.set(t.bytes, at + SPEC);
    at += next;
  }
  return plain(r);
}

/** Put the loaded table into effect. */
export const resume = (name: string): Request => plain(request("suspend", name));
/** Hold new requests back; with `flush` until what is under way is done. */
export const suspend = (name: string, flush = true): Request =>
  plain(request("suspend", name, HEAD, SUSPEND | (flush ? 0 : NOFLUSH)));
/** `deferred`: as soon as nobody has it open, if somebody has now. */
export const remove = (name: string, deferred = false): Request =>
  plain(request("remove", name, HEAD, deferred ? DEFERRED_REMOVE : 0));
export const status = (name: string): Request => plain(request("status", name));
/** What its targets say about themselves ("V" of a verity); with `table`, what was loaded, keys included. */
export const tableStatus = (name: string, table = false): Request =>
  plain(request("table", name, ANSWER, (table ? STATUS_TABLE : 0) | NOFLUSH | (table ? SECURE_DATA : 0)));
export const list = (): Request => plain(request("list", "", ANSWER));
export const version = (): Request => plain(request("version", ""));
/** The kinds of target that the kernel knows now: modules bring them. */
export const targets = (): Request => plain(request("targets", "", ANSWER));

/** Say something to the target at `sector`. */
export function message(name: string, words: string, sector = 0): Request {
  const encoded = Buffer.from(words);
  const r = request("message", name, HEAD + 8 + align(encoded.length + 1));
  r.view.setBigUint64(HEAD, BigInt(sector), true);
  r.bytes.set(encoded, HEAD + 8);
  return plain(r);
}

/** The request as a system call on an open control node. */
export const toKernel = (control: At, r: Request): Op => ioctl(control, number(r.command), r.bytes);

export interface Answer {
  readonly version: readonly [number, number, number];
  /** As mknod(2) and st_rdev have it. */
  readonly device: number;
  readonly opened: number;
  readonly targets: number;
  readonly events: number;
  readonly readOnly: boolean;
  readonly suspended: boolean;
  /** It has a table in effect. */
  readonly active: boolean;
  readonly uuid: string;
}

const string = (bytes: Uint8Array, at: number, end: number): string => {
  const stop = bytes.subarray(at, end).indexOf(0);
  return Buffer.from(bytes.subarray(at, stop < 0 ? end : at + stop)).toString();
};

/** What the kernel wrote into the request. */
export function answer(r: Request): Answer {
  const view = new DataView(r.bytes.buffer);
  const flags = view.getUint32(FLAGS, true);
  if (flags & BUFFER_FULL)
    throw new Error(
      `device-mapper: ${r.command} ${r.name}: the answer is longer than ${r.bytes.length} bytes`,
    );
  return {
    version: [0, 4, 8].map((at) => view.getUint32(at, true)) as [number, number, number],
    device: Number(view.getBigUint64(DEV, true)),
    opened: view.getInt32(OPEN, true),
    targets: view.getUint32(COUNT, true),
    events: view.getUint32(EVENT, true),
    readOnly: (flags & READONLY) !== 0,
    suspended: (flags & SUSPEND) !== 0,
    active: (flags & ACTIVE) !== 0,
    uuid: string(r.bytes, UUID, UUID + UUID_LENGTH),
  };
}

export interface Line {
  readonly start: number;
  readonly sectors: number;
  readonly type: string;
  readonly text: string;
}

/** Lines of a tableStatus(). */
export function lines(r: Request): Line[] {
  const { targets: count } = answer(r);
  const view = new DataView(r.bytes.buffer);
  const first = view.getUint32(START, true);
  const all: Line[] = [];
  let at = first;
  for (let i = 0; i < count; i++) {
    if (at + SPEC > r.bytes.length)
      throw new Error(`device-mapper: ${r.name}: target ${i} is past the answer`);
    all.push({
      start: Number(view.getBigUint64(at, true)),
      sectors: Number(view.getBigUint64(at + 8, true)),
      type: string(r.bytes, at + 24, at + SPEC),
      text: string(r.bytes, at + SPEC, r.bytes.length),
    });
    at = first + view.getUint32(at + 20, true); // from the first on, unlike a request's
  }
  return all;
}

/** Devices of a list(): name and number. */
export function names(r: Request): { name: string; device: number }[] {
  answer(r);
  const view = new DataView(r.bytes.buffer);
  const all: { name: string; device: number }[] = [];
  let at = view.getUint32(START, true);
  while (at + 12 < r.bytes.length) {
    const device = Number(view.getBigUint64(at, true));
    if (device !== 0) all.push({ name: string(r.bytes, at + 12, r.bytes.length), device });
    const next = view.getUint32(at + 8, true);
    if (next === 0) break;
    at += next;
  }
  return all;
}

/** Kinds of target of a targets(): "crypt", "integrity", "linear" … */
export function kinds(r: Request): string[] {
  answer(r);
  const view = new DataView(r.bytes.buffer);
  const all: string[] = [];
  let at = view.getUint32(START, true);
  while (at + 16 < r.bytes.length) {
    const name = string(r.bytes, at + 16, r.bytes.length); // struct dm_target_versions: next, version[3], name
    if (name !== "") all.push(name);
    const next = view.getUint32(at, true);
    if (next === 0) break;
    at += next;
  }
  return all;
}

/** The control node, made if nobody has; ENOENT where the kernel has no device-mapper. */
export function control(): Fd {
  const open = openat(AT_FDCWD, CONTROL, O_RDWR);
  const n = attempt(open);
  if (n >= 0) return new Fd(n);
  const minor = /^\s*(\d+) device-mapper$/m.exec(readFileSync("/proc/misc", "utf8"))?.[1];
  if (n !== -ENOENT || minor === undefined) throw new SysError(-n, CONTROL);
  now({ call: "mkdirat", args: [AT_FDCWD, "/dev/mapper", 0o755], allow: EEXIST });
  const S_IFCHR = 0o020000;
  now({ ...mknodat(AT_FDCWD, CONTROL, S_IFCHR | 0o600, (MISC_MAJOR << 8) | Number(minor)), allow: EEXIST });
  return new Fd(now(open));
}

/** For requests that the kernel answers at once: create, status, list, version, deps. */
export function ask(r: Request): Answer {
  using fd = control();
  const result = attempt(toKernel(fd.n, r));
  if (result < 0) throw refusal(r, -result);
  return answer(r);
}

export const refusal = (r: Request, errno: number): SysError =>
  new SysError(errno, `device-mapper: ${r.command} ${r.name}`.trim());

/** Whether a device has this name. */
export function exists(name: string): boolean {
  using fd = control();
  const result = attempt(toKernel(fd.n, status(name)));
  if (result < 0 && result !== -ENXIO) throw refusal(status(name), -result);
  return result >= 0;
}

export const devicePath = (name: string): string => `/dev/mapper/${name}`;
