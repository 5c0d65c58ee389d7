// Sealed volumes: an image in the container's folder behind dm-integrity and dm-crypt, in the original's three modes, so
// that its volumes open here and ours there (security.md 3).
//
//   <image>.img  <image>.meta.img   data, and dm-integrity's superblock, journal and tags
//   not-stacked                     the original's marker: INTEGRITY_ENCRYPT (or INTEGRITY_ONLY), not AUTHENC
//   <image>.made                    ours: the volume has been made, so an image that is missing is an error
//
// A volume is formatted once, under names that end in ".new", when neither its images nor its .made are there; the images
// get their names when it is whole. Everything that is there is opened or refused, never formatted.
//
// A first start has no zeros to write: with allow_discards, BLKDISCARD makes every tag valid at once. But with those words
// a tag of 0xf6 bytes makes any data valid without a key, so they are in the tables only while the volume is made, before
// it has a name (or where device.conf says volume_discard: true). dm-crypt gets its key through the kernel's keyring;
// dm-integrity takes none from there, so its table is bytes that are wiped, here and in the kernel.
import { existsSync, readdirSync } from "node:fs";
import { constants, mkdir, open, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { Turns } from "../../lib/turns.ts";
import { command, must } from "../../run/command.ts";
import { errand } from "../../run/hand.ts";
import { type Created, create, deactivate, establish, mapperWith } from "../../run/mapper.ts";
import { AT_FDCWD, ioctl, O_DIRECTORY, O_RDONLY, O_RDWR, openat, pwrite64 } from "../../sys/calls.ts";
import { numbered } from "../../sys/devnum.ts";
import * as dm from "../../sys/dm.ts";
import { EIO, isErrno } from "../../sys/error.ts";
import type { Fd } from "../../sys/fd.ts";
import { synced, writeAtomic } from "../../sys/file.ts";
import { addLogon } from "../../sys/keyring.ts";
import { attachLoop, type Loop } from "../../sys/loop.ts";
import { lasting, mem, Struct } from "../../sys/mem.ts";
import { Reg } from "../../sys/op.ts";
import type { Secret } from "../../sys/secret.ts";
import type { Owned, Resource } from "../ledger.ts";

/** Numbers of the original's enum, which `control` shows (security.md 3.1). */
export type Mode = "AUTHENC" | "INTEGRITY_ENCRYPT" | "INTEGRITY_ONLY";

const SECTOR = 512;
/** Bytes of a key: AES-256-XTS, then HMAC-SHA256. */
const [XTS, HMAC] = [64, 32];
export const KEY_BYTES = XTS + HMAC;
/** dm-integrity's tags: HMAC-SHA256, or what the AEAD stores. */
const TAG = 32;
/** Size of the metadata beside the data's: 32 bytes a sector, and a journal. */
const META_PART = 0.1;
export const STACKED = "not-stacked";

const MODULES = ["dm-mod", "dm-crypt", "dm-integrity", "xts", "ecb", "authenc"];
/** The processor's own AES and SHA, where it has them. */
const FASTER = ["aesni-intel", "sha256-ssse3", "aes-arm64", "sha2-ce"];

/** A volume whose data can't be trusted or reached any more; the container can only be wiped. */
export class Corrupted extends Error {
  override readonly name = "Corrupted";
}

export const isCorrupted = (e: unknown): boolean =>
  e instanceof Error && (e instanceof Corrupted || isCorrupted(e.cause));

export interface Place {
  /** The container's folder of images. */
  readonly folder: string;
  readonly uuid: string;
  readonly image: string;
}

const files = (p: Place) => ({
  data: join(p.folder, `${p.image}.img`),
  meta: join(p.folder, `${p.image}.meta.img`),
  made: join(p.folder, `${p.image}.made`),
});

/** Whether a file of the container's folder belongs to a volume, sealed or plain: what a wipe removes. */
export const isVolumeFile = (name: string): boolean => /\.(img(\.new)?|made)$/.test(name) || name === STACKED;

/** Names of the devices; the original's. */
export const labels = (p: Pick<Place, "uuid" | "image">): { crypt: string; integrity: string } => ({
  crypt: `${p.uuid}-${p.image}`,
  integrity: `${p.uuid}-${p.image}-integrity`,
});

/** Images in a container's folder that are not in clear. */
export const sealedImages = (folder: string): string[] =>
  existsSync(folder)
    ? readdirSync(folder).filter((name) => name.endsWith(".img") && !name.endsWith(".plain.img"))
    : [];

/** The mode of a container's volumes, by what is in its folder. */
export function modeOf(folder: string, keyBytes: number): Mode {
  if (!existsSync(join(folder, STACKED)) && sealedImages(folder).length > 0) return "AUTHENC";
  return keyBytes === HMAC ? "INTEGRITY_ONLY" : "INTEGRITY_ENCRYPT";
}

const HEX = Buffer.from("0123456789abcdef");

/** Pieces of a table's parameters, one of them maybe a key as hex digits: bytes, because a string can't be wiped. */
function parameters(...pieces: readonly (string | { hex: Uint8Array })[]): Uint8Array<ArrayBuffer> {
  const bytes = mem(pieces.reduce((n, p) => n + (typeof p === "string" ? p.length : 2 * p.hex.length), 0));
  let at = 0;
  for (const piece of pieces) {
    if (typeof piece === "string") at += Buffer.from(bytes.buffer).write(piece, at, "latin1");
    else
      for (const b of piece.hex) {
        bytes[at++] = HEX[b >> 4]!;
        bytes[at++] = HEX[b & 15]!;
      }
  }
  return bytes;
}

/** The parameters of dm-integrity's table. */
export function integrityTable(
  mode: Mode,
  devices: { data: string; meta: string },
  hmac: Uint8Array,
  discard: boolean,
): Uint8Array<ArrayBuffer> {
  const head = `${devices.data} 0 ${TAG} J`;
  const meta = `meta_device:${devices.meta}`;
  if (mode === "AUTHENC") return parameters(`${head} 1 ${meta}`);
  return parameters(
    `${head} ${discard ? 3 : 2} ${meta} internal_hash:hmac(sha256):`,
    { hex: hmac },
    discard ? " allow_discards" : "",
  );
}

/** The parameters of dm-crypt's table; its key is named, not said. */
export const cryptTable = (mode: Mode, key: string, device: string, discard: boolean): string =>
  mode === "AUTHENC"
    ? `capi:authenc(hmac(sha256),xts(aes))-random :${KEY_BYTES}:logon:${key} 0 ${device} 0 1 integrity:${TAG}:aead`
    : `aes-xts-plain64 :${XTS}:logon:${key} 0 ${device} 0${discard ? " 1 allow_discards" : ""}`;

/** For one thing asked of a device, on a slow card. */
const LIMIT_MS = 120_000;

const MAGIC = "integrt\0";
/** Flags of dm-integrity's superblock (drivers/md/dm-integrity.c): tags being recalculated, or kept as a bitmap, mean
 * that data is accepted unchecked. Nobody but us opens these volumes, and we never ask for either. */
const UNCHECKED = 2 | 4;

/** Judge the first bytes of a metadata image: how many sectors of data it has tags for. Throws what is wrong with it. */
export function judged(superblock: Uint8Array, mode: Mode): number {
  const view = new DataView(superblock.buffer, superblock.byteOffset, superblock.length);
  const bad = (why: string) => new Corrupted(`dm-integrity's superblock is damaged: ${why}`);
  if (superblock.length < SECTOR) throw bad("it is cut short");
  const magic = Buffer.from(superblock.subarray(0, 8)).toString("latin1");
  if (magic !== MAGIC) throw bad(`no magic, but ${JSON.stringify(magic)}`);
  if (view.getUint16(10, true) !== TAG) throw bad(`tags of ${view.getUint16(10, true)} bytes`);
  if (superblock[28] !== 0) throw bad(`blocks of ${SECTOR << superblock[28]!} bytes`);
  if (mode !== "AUTHENC" && view.getUint32(24, true) & UNCHECKED) throw bad("it asks for unchecked data");
  const sectors = Number(view.getBigUint64(16, true));
  if (!Number.isSafeInteger(sectors) || sectors === 0) throw bad(`${sectors} sectors`);
  return sectors;
}

async function first(path: string, bytes: number, at = 0): Promise<Uint8Array> {
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK); // what is a fifo now is not waited for
  const { buffer, bytesRead } = await file.read(Buffer.alloc(bytes), 0, bytes, at);
  return buffer.subarray(0, bytesRead);
}

/** Where the kernel keeps what we ask it: asked once in a daemon's life, and loaded then. */
export const available = (): Promise<boolean> => mapperWith(["crypt", "integrity"], MODULES, FASTER);

interface Images {
  readonly data: Loop;
  readonly meta: Loop;
  readonly sectors: number;
}

interface Stack {
  /** The device that holds the file system. */
  readonly path: string;
  close(): Promise<void>;
}

/** Put the devices on top of each other. What is acquired is in the ledger first. */
async function stacked(
  p: Place,
  images: Images,
  mode: Mode,
  key: Secret,
  owned: Owned,
  discard: boolean,
): Promise<Stack> {
  const { crypt, integrity } = labels(p);
  const made: Resource[] = [];
  const take = (name: string): number => {
    const resource: Resource = { kind: "mapper", name };
    made.push(resource);
    return owned.acquire(resource, () => create(name));
  };
  const below = take(integrity);
  const above = mode === "INTEGRITY_ONLY" ? undefined : take(crypt);
  const paths = await key.lend((bytes) => {
    const hmac = mode === "INTEGRITY_ONLY" ? bytes : bytes.subarray(XTS, KEY_BYTES);
    const table = integrityTable(mode, { data: images.data.path, meta: images.meta.path }, hmac, discard);
    const targets = [{ sectors: images.sectors, type: "integrity", parameters: table }];
    const devices: Created[] = [{ name: integrity, number: below, targets, secret: true }];
    const name = `cml:${crypt}`;
    const payload = lasting(bytes.subarray(0, mode === "AUTHENC" ? KEY_BYTES : XTS));
    if (above !== undefined) {
      const parameters = cryptTable(mode, name, numbered(below), discard);
      devices.push({
        name: crypt,
        number: above,
        targets: [{ sectors: images.sectors, type: "crypt", parameters }],
        before: [addLogon(name, payload)],
      });
    }
    return establish(devices).finally(() => {
      table.fill(0);
      payload.fill(0);
    });
  });
  const path = paths.at(-1)!;
  return {
    path,
    async close() {
      for (const resource of made.toReversed()) {
        if (resource.kind !== "mapper") continue;
        await deactivate(resource.name);
        if (dm.exists(resource.name)) throw new Error(`${resource.name} is still in use`);
        owned.forget(resource);
      }
    },
  };
}

/** BLKDISCARD of linux/fs.h, from a sector to the end. */
function discarded(path: string, from: number, sectors: number): Promise<void> {
  const BLKDISCARD = 0x1277;
  const range = new Struct(16).u64(from * SECTOR).u64((sectors - from) * SECTOR).bytes;
  const device = new Reg(0);
  return errand([], [openat(AT_FDCWD, path, O_RDWR, 0, device), ioctl(device, BLKDISCARD, range)], LIMIT_MS);
}

/** The kernel reads a file system's last block before it grows to it. */
const zeroed = (path: string, at: number, bytes: number): Promise<void> => {
  const device = new Reg(0);
  const zeros = mem(bytes);
  return errand(
    [],
    [
      openat(AT_FDCWD, path, O_RDWR, 0, device),
      pwrite64(device, zeros, at),
      { call: "fsync", args: [device] },
    ],
    LIMIT_MS,
  );
};

const loops = (data: Fd, meta: Fd, names: { data: string; meta: string }, bytes: number) => {
  using failed = new DisposableStack();
  const one = attachLoop(data, false, names.data);
  failed.use(one.fd);
  const two = attachLoop(meta, false, names.meta);
  failed.move();
  return {
    data: one,
    meta: two,
    sectors: Math.floor(bytes / SECTOR),
    [Symbol.dispose]() {
      one.fd.close();
      two.fd.close();
    },
  };
};

/** Of the file systems we make, also small ones: a block is a page, eight sectors with their tags. */
const BLOCK = 4096;

const metaBytes = (bytes: number): number => Math.ceil((bytes * META_PART) / 4096) * 4096;

/** What every read says when the key is another, or somebody has changed the image. */
function unreadable(cause: unknown): never {
  if (isErrno(cause, EIO)) throw new Corrupted("its first sectors can't be read", { cause });
  throw cause;
}

/** ext4 as the kernel left it (fs/ext4/ext4.h: struct ext4_super_block, 1024 bytes from the start). */
async function fileSystem(path: string): Promise<{ dirty: boolean; bytes: number; block: number }> {
  const s = Buffer.from(await first(path, 1024, 1024).catch(unreadable));
  if (s.length < 1024 || s.readUInt16LE(0x38) !== 0xef53) throw new Corrupted("there is no ext4 on it");
  const [VALID, RECOVER, WIDE] = [1, 4, 0x80]; // s_state; s_feature_incompat
  const incompat = s.readUInt32LE(0x60);
  const blocks = s.readUInt32LE(4) + (incompat & WIDE ? s.readUInt32LE(0x150) * 2 ** 32 : 0);
  const block = 1024 << s.readUInt32LE(0x18);
  return {
    dirty: s.readUInt16LE(0x3a) !== VALID || (incompat & RECOVER) !== 0,
    bytes: blocks * block,
    block,
  };
}

/** Check a file system that was not left in order, or with "-f" any. Throws e2fsck's last words; what was mended: undefined,
 * or its last words. */
export async function fsck(path: string, ...options: readonly "-f"[]): Promise<string | undefined> {
  const { status, said } = await command(["/sbin/e2fsck", ...options, "-y", path]);
  const MENDED = 1; // e2fsck(8)
  const words = `e2fsck: ${said.trim().split("\n").at(-1)}`;
  if (status === undefined || status > MENDED) throw new Corrupted(words);
  return status === MENDED ? words : undefined;
}

export interface Asked {
  readonly place: Place;
  readonly key: Secret;
  readonly owned: Owned;
  /** What the configuration wants; a volume never shrinks. */
  readonly bytes: number;
  /** device.conf: volume_discard. */
  readonly discard: boolean;
  /** Open an image for this container alone. */
  alone(path: string): Fd;
  log(line: string): void;
}

export interface Opened {
  readonly path: string;
  readonly mode: Mode;
  /** Blocks that its file system is to have, if it has fewer. */
  readonly blocks: number | undefined;
}

/** A volume whose devices stayed open while its container rebooted, and are the new start's already: no key is needed. What
 * its file system wants, the kernel does at the mount; it may have been unmounted a moment ago. */
export function openAlready(place: Place, owned: Owned): Opened | undefined {
  const { crypt, integrity } = labels(place);
  const has = (name: string) => owned.all("mapper").some((r) => r.name === name);
  if (!has(integrity)) return undefined;
  const [top, bytes] = has(crypt) ? [crypt, KEY_BYTES] : [integrity, HMAC];
  return { path: dm.devicePath(top), mode: modeOf(place.folder, bytes), blocks: undefined };
}

/** Whether a resource is a device of a container's own volumes. */
export const isVolumeOf = (uuid: string, r: Resource): boolean =>
  r.kind === "mapper" && r.name.startsWith(`${uuid}-`);

/** Open a container's volume; made if it is new. */
export async function openVolume(a: Asked): Promise<Opened> {
  const { place } = a;
  try {
    if (!(await available()))
      throw new Error("this kernel has no device-mapper, and a sealed volume is not opened without");
    const { data, meta, made } = files(place);
    const there = { data: existsSync(data), meta: existsSync(meta), made: existsSync(made) };
    if (!there.data && !there.made) return await makeVolume(a);
    if (!there.data) throw new Corrupted(`${data} is missing`);
    if (!there.meta) throw new Corrupted(`${meta} is missing`);
    return await openMade(a);
  } catch (cause) {
    const Kind = cause instanceof Corrupted ? Corrupted : Error;
    throw new Kind(`volume ${place.image}`, { cause });
  }
}

/** A container's volumes are opened side by side. */
const marking = new Turns();

async function makeVolume(a: Asked): Promise<Opened> {
  const { place, log } = a;
  const began = performance.now();
  const mode = modeOf(place.folder, a.key.length);
  if (mode === "AUTHENC") throw new Error(`${place.folder} has volumes of the old kind only: none is added`);
  await mkdir(place.folder, { recursive: true, mode: 0o755 });
  await marking.take(place.folder, async () => {
    if (!existsSync(join(place.folder, STACKED))) await writeAtomic(join(place.folder, STACKED), "");
  });
  const names = files(place);
  const fresh = { data: `${names.data}.new`, meta: `${names.meta}.new` };
  const clear = async () => {
    for (const path of [fresh.data, fresh.meta, names.meta]) await rm(path, { force: true });
  };
  await clear(); // what an interrupted making left
  try {
    const path = await formatted(a, mode, fresh);
    await rename(fresh.meta, names.meta);
    await rename(fresh.data, names.data);
    await synced(place.folder);
    await writeAtomic(names.made, "");
    const ms = Math.round(performance.now() - began);
    log(`made volume ${place.image}: ${a.bytes >> 20} MiB, ${mode}, ${ms} ms`);
    return { path, mode, blocks: undefined };
  } catch (e) {
    if (!existsSync(names.data)) await clear();
    throw e;
  }
}

/** Two images, and an empty file system in them, open without `allow_discards`. */
async function formatted(a: Asked, mode: Mode, fresh: { data: string; meta: string }): Promise<string> {
  const { place, owned } = a;
  const bytes = Math.floor(a.bytes / SECTOR) * SECTOR;
  for (const [path, size] of [
    [fresh.data, bytes],
    [fresh.meta, metaBytes(bytes)],
  ] as const) {
    await using file = await open(path, "wx", 0o600);
    await file.truncate(size);
    await file.sync();
  }
  using dataFile = a.alone(fresh.data);
  using metaFile = a.alone(fresh.meta);
  using images = loops(dataFile, metaFile, fresh, bytes);
  const making = await stacked(place, images, mode, a.key, owned, true);
  await discarded(making.path, 0, images.sectors);
  // Nothing lazy: what is not written now could not be read later. The device was discarded, and must not be again.
  const extended = "root_owner=0:0,nodiscard,lazy_itable_init=0,lazy_journal_init=0";
  const layout = ["-b", String(BLOCK), "-i", "16384", "-m", "0", "-O", "metadata_csum,64bit"];
  await must(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", ...layout, "-E", extended, making.path]);
  await making.close();
  const stack = await stacked(place, images, mode, a.key, owned, a.discard);
  const { dirty } = await fileSystem(stack.path);
  if (dirty) throw new Error("the file system that was made is not in order");
  for (const path of [fresh.data, fresh.meta]) {
    await using file = await open(path, "r");
    await file.sync();
  }
  return stack.path;
}

async function openMade(a: Asked): Promise<Opened> {
  const { place, owned, log } = a;
  const names = files(place);
  const mode = modeOf(place.folder, a.key.length);
  if (a.key.length !== (mode === "INTEGRITY_ONLY" ? HMAC : KEY_BYTES))
    throw new Error(
      `${mode} with a key of ${a.key.length} bytes: a volume of an older system, not opened here`,
    );
  const has = judged(await first(names.meta, SECTOR), mode) * SECTOR;
  const { size } = await stat(names.data);
  const wanted = Math.floor(a.bytes / SECTOR) * SECTOR;
  const bytes = mode === "AUTHENC" ? size : Math.max(size, wanted);
  if (has > size) throw new Corrupted(`${names.data} has ${size} bytes, its metadata is for ${has}`);
  if (mode !== "AUTHENC" && has < bytes)
    for (const [path, to] of [
      [names.data, bytes],
      [names.meta, metaBytes(bytes)],
    ] as const) {
      await using file = await open(path, "r+");
      if ((await file.stat()).size < to) await file.truncate(to);
      await file.sync();
    }
  using dataFile = a.alone(names.data);
  using metaFile = a.alone(names.meta);
  using images = loops(dataFile, metaFile, names, bytes);
  let stack = await stacked(place, images, mode, a.key, owned, a.discard);
  let system = await fileSystem(stack.path);
  if (system.dirty) {
    const mended = await fsck(stack.path);
    if (mended) log(mended);
    system = await fileSystem(stack.path); // its journal may have changed its size
  }
  // What lies behind the file system has no valid tags, and nothing is lost there: a power cut while growing is mended so.
  const gap = mode === "AUTHENC" ? 0 : bytes - system.bytes;
  const smaller = gap > 0 && (has < bytes || gap >= NO_GROUP);
  if (smaller) {
    await stack.close();
    const session = await stacked(place, images, mode, a.key, owned, true);
    await discarded(session.path, system.bytes / SECTOR, images.sectors);
    await zeroed(session.path, (Math.floor(bytes / system.block) - 1) * system.block, system.block);
    await session.close();
    stack = await stacked(place, images, mode, a.key, owned, a.discard);
    log(`volume ${place.image} grows to ${bytes >> 20} MiB`);
  }
  if (!existsSync(names.made)) await writeAtomic(names.made, "");
  return { path: stack.path, mode, blocks: smaller ? Math.floor(bytes / system.block) : undefined };
}

/** So much at a device's end may be too little for a block group, and stay unused for good (ext4_resize_fs of
 * fs/ext4/resize.c); its inode table alone has 2 MiB. */
const NO_GROUP = 8 << 20;

/** Grow the mounted file system: the kernel does it in transactions, so that a power cut leaves one of the old size or of
 * the new (EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h). */
export async function growMounted(mount: Fd, blocks: number): Promise<void> {
  const EXT4_IOC_RESIZE_FS = 0x40086610;
  const root = new Reg(0);
  const count = new Struct(8).u64(blocks).bytes;
  await errand(
    [mount.n],
    [openat(mount.n, ".", O_RDONLY | O_DIRECTORY, 0, root), ioctl(root, EXT4_IOC_RESIZE_FS, count)],
    LIMIT_MS,
  );
}
