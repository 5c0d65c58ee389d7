// A verity device for an image of a GuestOS: what is read of it is what was signed, block by block, or an I/O error.
//
// Nobody has to remember to remove one: as soon as it is open here it is marked for removal with its last user, as loop
// devices are. So it outlives us under the containers that use it, the kernel counts them, and whoever comes next finds it
// by its name and believes it only if its table proves the same root hash. A ledger names it for the moment before.
import { fstatSync, read as readAt, rmSync } from "node:fs";
import { promisify } from "node:util";
import { nodeCrypto } from "../../lib/ondemand.ts";
import { create, deactivate, mapperWith, node } from "../../run/mapper.ts";
import { type FileSystem, mountHere, mountMapped } from "../../run/mounting.ts";
import { AT_FDCWD, O_NOFOLLOW, O_RDONLY, openat } from "../../sys/calls.ts";
import { packed } from "../../sys/devnum.ts";
import * as dm from "../../sys/dm.ts";
import { ENXIO, isErrno } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { attachLoop } from "../../sys/loop.ts";
import { mem } from "../../sys/mem.ts";
import { now } from "../../sys/now.ts";
import { numberOf } from "../../sys/sysfs.ts";
import { type Uevent, ueventSocket, uevents } from "../../sys/uevent.ts";
import {
  BLOCK,
  deviceUuid,
  isTable,
  readSuperblock,
  SUPERBLOCK,
  type Superblock,
  target,
  UUID_PREFIX,
} from "../../sys/verity.ts";

/** Its processor's own SHA-256, where it has one. */
const FASTER = process.arch === "x64" ? ["sha256-ssse3"] : [];

/** Whether the kernel has a device-mapper; its modules are loaded when it is first asked. */
export const available = (): Promise<boolean> => mapperWith(["verity"], ["dm-verity"], FASTER);

/** The name of the device for an image that is called so: as it is, where device-mapper and its library take it. */
export const deviceName = (title: string): string =>
  /^[A-Za-z0-9._+-]{1,127}$/.test(title)
    ? title
    : `verity-${nodeCrypto().createHash("sha256").update(title).digest("hex").slice(0, 32)}`;

export interface Wanted {
  /** Of the device: one for all containers of this image. */
  readonly name: string;
  /** The root hash, hexadecimal, in small letters. */
  readonly root: string;
  readonly image: Fd;
  /** Bytes, as signed. */
  readonly size: number;
  /** What losetup(8) shows for it. */
  readonly path: string;
  /** Where the hash tree is. */
  readonly tree: string;
}

/** The kernel has refused a block of it. */
export class Corrupted extends Error {
  override readonly name = "Corrupted";
}

export interface Opened {
  readonly device: Fd;
  /** Of the file system on it, attached nowhere. */
  readonly mount: Fd;
}

/** The device, opened and mounted; made if it is not there, by a child beside the event loop. It stays as long as anybody has it
 * open. */
export async function openDevice(w: Wanted, fs: FileSystem): Promise<Opened> {
  using tree = new Fd(now(openat(AT_FDCWD, w.tree, O_RDONLY | O_NOFOLLOW)));
  const head = await headOf(tree, w);
  if (dm.exists(w.name)) {
    const there = adopted(w, head);
    if (there) return mounted(there, fs);
  }
  const image = attachLoop(w.image, true, w.path);
  using _image = image.fd; // the device keeps both
  const hashes = attachLoop(tree, true, w.tree);
  using _hashes = hashes.fd;
  const uuid = deviceUuid(w.name, head);
  const targets = [target(head, w.root, image.device, hashes.device)];
  const number = create(w.name, uuid);
  try {
    const made = await mountMapped({ name: w.name, uuid, number, targets, readOnly: true }, fs);
    dm.ask(dm.remove(w.name, true));
    return made;
  } catch (cause) {
    const corrupted = isCorrupted(w.name);
    await deactivate(w.name);
    throw corrupted ? new Corrupted(w.name, { cause }) : cause;
  }
}

/** The superblock of a device that is there is in memory: its containers have it. */
function mounted(device: Fd, fs: FileSystem): Opened {
  try {
    return { device, mount: mountHere(device, fs) };
  } catch (e) {
    device.close();
    throw e;
  }
}

const read = promisify(readAt);

async function headOf(tree: Fd, w: Wanted): Promise<Superblock> {
  const bytes = mem(SUPERBLOCK);
  const { bytesRead: length } = await read(tree.n, bytes, 0, SUPERBLOCK, 0);
  let head: Superblock;
  try {
    head = readSuperblock(bytes.subarray(0, length));
  } catch (cause) {
    throw new Error(w.tree, { cause });
  }
  if (head.blocks * BLOCK === w.size) return head;
  throw new Error(`${w.tree} is over ${head.blocks} blocks of ${BLOCK} bytes, the image has ${w.size} bytes`);
}

/** One that an earlier cmld has made, or another path to the same image; undefined if it has gone meanwhile. */
function adopted(w: Wanted, head: Superblock): Fd | undefined {
  let device: Fd;
  const table = dm.tableStatus(w.name, true);
  try {
    device = opened(w.name);
    dm.ask(table);
  } catch (e) {
    if (isErrno(e, ENXIO)) return undefined;
    throw e;
  }
  const [line, ...more] = dm.lines(table);
  if (line?.type === "verity" && more.length === 0 && isTable(line.text, head, w.root)) {
    if (!isCorrupted(w.name)) return device;
    device.close();
    throw new Error(`device ${w.name} has met a corrupted block, and containers still use it`);
  }
  device.close();
  throw new Error(`a device ${w.name} exists, and is not over this image`);
}

/** Open a device by a node that is there for this moment only. */
function opened(name: string): Fd {
  const { device } = dm.ask(dm.status(name));
  const path = node(name, device);
  try {
    const fd = new Fd(now(openat(AT_FDCWD, path, O_RDONLY)));
    if (fstatSync(fd.n).rdev === device) return fd;
    fd.close();
    throw new Error(`${path} is another device`);
  } finally {
    rmSync(path, { force: true });
  }
}

/** Whether it has met a block that was not the one that was signed, since it was made. */
export function isCorrupted(name: string): boolean {
  const status = dm.tableStatus(name);
  dm.ask(status);
  return dm.lines(status).some((line) => line.text.startsWith("C"));
}

// --- corrupted blocks ------------------------------------------------------------------------

/** What the kernel adds to the event of a device: which kind of block, and its number (drivers/md/dm-verity-target.c). */
const CORRUPTED = "DM_VERITY_ERR_BLOCK_NR";

interface Watched {
  readonly name: string;
  readonly device: number;
  readonly on: (what: string) => void;
}

const watched = new Set<Watched>();
let listening: Disposable | undefined;

/** Call `on`, once, when the kernel has refused a block of the device `name`: before, from now on, or until the end of
 * this. Nothing happens if it is no verity device. */
export function watchDevice(name: string, on: (what: string) => void): Disposable {
  if (!dm.exists(name)) return { [Symbol.dispose]() {} };
  const { uuid, device } = dm.ask(dm.status(name));
  const w: Watched = { name, device, on };
  if (!uuid.startsWith(UUID_PREFIX)) return { [Symbol.dispose]() {} };
  watched.add(w);
  listening ??= listen();
  if (isCorrupted(name)) tell(w, "a block");
  return {
    [Symbol.dispose]() {
      if (watched.has(w)) check(w, "a block"); // its event may be on the way
      watched.delete(w);
      if (watched.size > 0) return;
      listening?.[Symbol.dispose]();
      listening = undefined;
    },
  };
}

function tell(w: Watched, what: string): void {
  if (watched.delete(w)) w.on(what);
}

function listen(): Disposable {
  const end = new DisposableStack();
  const socket = end.adopt(ueventSocket(), (fd) => fd.close());
  end.use(uevents(socket, heard, lookAround));
  return end;
}

function heard(e: Uevent): void {
  const [where, number] = [e.values.get(CORRUPTED), numberOf(e)];
  if (e.action !== "change" || where === undefined || number?.kind !== "b") return;
  const { major, minor } = number;
  const device = packed(major, minor);
  for (const w of [...watched]) if (w.device === device) check(w, words(where));
}

/** "1,42": struct verity_block_type and the number. */
function words(where: string): string {
  const [kind, block] = where.split(",");
  return `${kind === "1" ? "block of hashes" : "block"} ${block}`;
}

/** Events were lost: ask. */
function lookAround(): void {
  for (const w of [...watched]) check(w, "a block");
}

function check(w: Watched, what: string): void {
  if (!dm.exists(w.name)) watched.delete(w);
  else if (isCorrupted(w.name)) tell(w, what);
}
