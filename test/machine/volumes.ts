// Works on sealed volumes inside a machine, with the product's own code and without a container: run by the product's
// executable as the test agent is (/test/volumes.js COMMAND …). One line of JSON is the answer. The volume is "data" in a
// folder, its key bytes 0 to 95 (of INTEGRITY_ONLY: 64 to 95).
import { spawnSync } from "node:child_process";
import { createHmac } from "node:crypto";
import {
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import {
  cryptTable,
  growMounted,
  integrityTable,
  isVolumeFile,
  labels,
  type Opened,
  openVolume,
  STACKED,
} from "../../src/cmld/keys/crypt.ts";
import type { Owned } from "../../src/cmld/ledger.ts";
import { must } from "../../src/run/command.ts";
import { modules } from "../../src/run/kmod.ts";
import { activate, deactivate } from "../../src/run/mapper.ts";
import { mountBeside } from "../../src/run/mounting.ts";
import * as sys from "../../src/sys/calls.ts";
import { numbered } from "../../src/sys/devnum.ts";
import * as dm from "../../src/sys/dm.ts";
import { address } from "../../src/sys/encode.ts";
import { chain } from "../../src/sys/error.ts";
import { Fd } from "../../src/sys/fd.ts";
import { addLogon } from "../../src/sys/keyring.ts";
import { attachLoop } from "../../src/sys/loop.ts";
import { lasting, mem } from "../../src/sys/mem.ts";
import { attempt, now } from "../../src/sys/now.ts";
import { Secret } from "../../src/sys/secret.ts";
import { Chance } from "../chance.ts";

const UUID = "22222222-2222-4222-8222-222222222222";
const KEY = Uint8Array.from({ length: 96 }, (_, i) => i);
const HEX = Buffer.from(KEY).toString("hex");
const SECTOR = 512;
export type Kind = "INTEGRITY_ENCRYPT" | "INTEGRITY_ONLY" | "AUTHENC";

/** Nothing is kept: who runs this removes the devices. */
const owned: Owned = { acquire: (_, how) => how(), use: (v) => v, forget() {}, all: () => [] };
const place = (folder: string) => ({ folder, uuid: UUID, image: "data" });
const NAMES = labels(place(""));
const file = (path: string) => new Fd(now(sys.openat(sys.AT_FDCWD, path, sys.O_RDWR)));
/** Through a mount that is attached nowhere. */
const at = (mount: Fd): string => `/proc/self/fd/${mount.n}`;

/** Open it with the product's code, do something with its device, and leave none. */
async function opened<T>(
  folder: string,
  mib: number,
  visit: (v: Opened) => T | Promise<T>,
  bytes = KEY,
): Promise<T> {
  try {
    using key = Secret.take(bytes.slice());
    const volume = await openVolume({
      place: place(folder),
      key,
      owned,
      bytes: mib << 20,
      discard: false,
      alone: file,
      log: (line) => console.error(line),
    });
    return await visit(volume);
  } finally {
    for (const name of [NAMES.crypt, NAMES.integrity]) await deactivate(name);
  }
}

/** The same with its files. */
const visited = <T>(folder: string, mib: number, visit: (at: string) => T, bytes = KEY): Promise<T> =>
  opened(
    folder,
    mib,
    async (volume) => {
      using mount = await mountBeside("ext4", volume.path, "", 0);
      if (volume.blocks !== undefined) await growMounted(mount, volume.blocks);
      return visit(at(mount));
    },
    bytes,
  );

/** Memory for O_DIRECT. */
function aligned(bytes: number): Uint8Array<ArrayBuffer> {
  const all = mem(bytes + 4096);
  const skip = Number(-address(all) & 4095n);
  return all.subarray(skip, skip + bytes);
}

/** Files and what is in them; reading all is the point. */
const whole = (at: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(at)
      .sort()
      .filter((name) => name !== "lost+found")
      .map((name) => [name, Bun.hash(readFileSync(`${at}/${name}`)).toString(16)]),
  );

function wrote(at: string, texts: readonly string[]): Record<string, string> {
  for (const text of texts) {
    const fd = openSync(`${at}/${text}`, "w");
    writeSync(fd, text.repeat(10_000));
    fsyncSync(fd);
    closeSync(fd);
  }
  synced(at);
  return whole(at);
}

function synced(folder: string): void {
  const fd = openSync(folder, "r");
  fsyncSync(fd);
  closeSync(fd);
}

// --- as the original does it, by dmsetup(8) and its table strings

function dmsetup(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync("/test/dmsetup", ["--noudevsync", "--noudevrules", ...args], {
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`dmsetup ${args.join(" ")}: ${stderr}`);
  return stdout;
}

/** The stack by dmsetup, with the strings of the specification. */
function original(kind: Kind, data: string, meta: string, sectors: number): string {
  const tail =
    kind === "AUTHENC"
      ? `1 meta_device:${meta}`
      : `3 meta_device:${meta} internal_hash:hmac(sha256):${HEX.slice(128)} allow_discards`;
  dmsetup("create", NAMES.integrity, "--table", `0 ${sectors} integrity ${data} 0 32 J ${tail}`);
  const integrity = nodeOf(NAMES.integrity);
  if (kind === "INTEGRITY_ONLY") return integrity;
  const crypt =
    kind === "AUTHENC"
      ? `capi:authenc(hmac(sha256),xts(aes))-random ${HEX} 0 ${integrity} 0 1 integrity:32:aead`
      : `aes-xts-plain64 ${HEX.slice(0, 128)} 0 ${integrity} 0 1 allow_discards`;
  dmsetup("create", NAMES.crypt, "--table", `0 ${sectors} crypt ${crypt}`);
  return nodeOf(NAMES.crypt);
}

/** The kernel's own: dmsetup leaves the others to a udev that is not there. */
const nodeOf = (name: string): string => `/dev/dm-${numbered(dm.ask(dm.status(name)).device).split(":")[1]}`;

async function byOriginal<T>(folder: string, kind: Kind, visit: (device: string) => Promise<T>): Promise<T> {
  await modules(["dm-mod", "dm-crypt", "dm-integrity", "xts", "ecb", "authenc"]);
  using data = file(`${folder}/data.img`);
  using meta = file(`${folder}/data.meta.img`);
  const below = attachLoop(data, false, "data");
  using _below = below.fd;
  const beside = attachLoop(meta, false, "meta");
  using _beside = beside.fd;
  try {
    return await visit(original(kind, below.path, beside.path, statSync(`${folder}/data.img`).size / SECTOR));
  } finally {
    for (const name of [NAMES.crypt, NAMES.integrity])
      if (dm.exists(name)) dmsetup("remove", "--retry", name);
  }
}

/** A volume as the original makes it: zeros over the whole device, then mkfs. */
async function asOriginal(folder: string, mib: number, kind: Kind, texts: string[]): Promise<unknown> {
  mkdirSync(folder, { recursive: true });
  if (kind !== "AUTHENC") writeFileSync(`${folder}/${STACKED}`, "");
  for (const [name, part] of [
    ["data.img", 1],
    ["data.meta.img", 0.1],
  ] as const) {
    writeFileSync(`${folder}/${name}`, "");
    truncateSync(`${folder}/${name}`, Math.ceil((mib * part * 2 ** 20) / 4096) * 4096);
  }
  return byOriginal(folder, kind, async (device) => {
    zeros(device, mib);
    await must(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", device]);
    using mount = await mountBeside("ext4", device, "", 0);
    return wrote(at(mount), texts);
  });
}

/** All of the device, as the original writes it at its first start. */
function zeros(device: string, mib: number): void {
  const fd = openSync(device, "r+");
  const piece = Buffer.alloc(1 << 20);
  for (let i = 0; i < mib; i++) writeSync(fd, piece, 0, piece.length, i * piece.length);
  fsyncSync(fd);
  closeSync(fd);
}

// --- somebody has the disk in his hands

/** Sectors of the data image that something was written to: what was not is a hole. */
function written(image: Buffer): number[] {
  const all: number[] = [];
  for (let s = 0; s < image.length / SECTOR; s++)
    if (image.subarray(s * SECTOR, (s + 1) * SECTOR).some((b) => b !== 0)) all.push(s);
  return all;
}

/** The tag of a sector: HMAC-SHA256 of its number and its bytes. */
function tag(image: Buffer, sector: number): Buffer {
  const number = Buffer.alloc(8);
  number.writeBigUInt64LE(BigInt(sector));
  const bytes = image.subarray(sector * SECTOR, (sector + 1) * SECTOR);
  return createHmac("sha256", KEY.subarray(64)).update(number).update(bytes).digest();
}

/** Change `count` written sectors, and a few more whose tags become 0xf6 bytes, and say what reading them gives. */
async function tampered(folder: string, _mib: number, count: number, seed: number): Promise<unknown> {
  const random = new Chance(seed);
  const [path, metaPath] = [`${folder}/data.img`, `${folder}/data.meta.img`];
  const image = readFileSync(path);
  const meta = readFileSync(metaPath);
  const candidates = written(image);
  const chosen = new Set<number>();
  while (chosen.size < count + FORGED + INTACT) chosen.add(random.of(candidates));
  const all = [...chosen];
  const forged = all.splice(0, FORGED);
  const intact = all.splice(0, INTACT);
  const device = `/dev/mapper/${NAMES.crypt}`;
  const into = aligned(SECTOR);
  const reads = async (): Promise<Map<number, string>> => {
    const found = new Map<number, string>();
    // Not the product's way in: that judges the file system first, and may find a changed sector there.
    await byTable(folder, () => {
      const fd = openSync(device, constants.O_RDONLY | constants.O_DIRECT);
      for (const s of chosen) {
        const n = attempt(sys.pread64(fd, into, s * SECTOR));
        found.set(s, n === SECTOR ? Bun.hash(into).toString(16) : `errno ${-n}`);
      }
      closeSync(fd);
    });
    return found;
  };
  const truth = await reads();
  const tags = forged.map((s) => meta.indexOf(tag(image, s)));
  for (const s of [...all, ...forged]) image[s * SECTOR + random.below(SECTOR)]! ^= 1 << random.below(8);
  for (const where of tags) if (where >= 0) meta.fill(0xf6, where, where + 32);
  writeFileSync(path, image, { flush: true });
  writeFileSync(metaPath, meta, { flush: true });
  const after = await reads();
  const told = (which: readonly number[]) => {
    const sums = { right: 0, refused: 0, wrong: 0 };
    for (const s of which) {
      const now = after.get(s)!;
      sums[REFUSED.has(now) ? "refused" : now === truth.get(s) ? "right" : "wrong"]++;
    }
    return sums;
  };
  return {
    unreadable: [...truth.values()].filter((v) => v.startsWith("errno")).length,
    tags: tags.filter((where) => where >= 0).length,
    changed: told(all),
    forged: told(forged),
    intact: told(intact),
  };
}
const [FORGED, INTACT] = [8, 32];
/** How a read ends whose tag is not the data's: EILSEQ, which a file system makes EIO (BLK_STS_PROTECTION, block/blk-core.c). */
const REFUSED = new Set(["errno 84", "errno 5"]);

/** The product's own tables, without a look at what is inside. */
async function byTable(folder: string, visit: () => void): Promise<void> {
  using data = file(`${folder}/data.img`);
  using meta = file(`${folder}/data.meta.img`);
  const below = attachLoop(data, false, "data");
  using _below = below.fd;
  const beside = attachLoop(meta, false, "meta");
  using _beside = beside.fd;
  const sectors = statSync(`${folder}/data.img`).size / SECTOR;
  const devices = { data: below.path, meta: beside.path };
  const table = integrityTable("INTEGRITY_ENCRYPT", devices, KEY.subarray(64), false);
  const name = "cml:test";
  try {
    const under = await activate({
      name: NAMES.integrity,
      targets: [{ sectors, type: "integrity", parameters: table }],
      secret: true,
    });
    const line = cryptTable("INTEGRITY_ENCRYPT", name, under, false);
    await activate({
      name: NAMES.crypt,
      targets: [{ sectors, type: "crypt", parameters: line }],
      before: [addLogon(name, lasting(KEY.subarray(0, 64)))],
    });
    visit();
  } finally {
    for (const n of [NAMES.crypt, NAMES.integrity]) await deactivate(n);
  }
}

// --- many disks on one

/** Each disk of a row on one big disk, as a power cut left it: mount it, open its volume, say what is there. */
async function recovered(disk: string, diskMiB: number, count: number, mib: number): Promise<unknown> {
  await modules(["dm-mod"]);
  const sectors = (diskMiB << 20) / SECTOR;
  const target = "/run/cut";
  mkdirSync(target, { recursive: true });
  const results: unknown[] = [];
  for (let i = 0; i < count; i++) {
    const line = { sectors, type: "linear", parameters: `${disk} ${i * sectors}` };
    now(sys.mount(await activate({ name: "cut", targets: [line] }), target, "ext4", 0));
    const folder = `${target}/web`;
    const there = existsSync(folder) ? readdirSync(folder).filter(isVolumeFile).sort() : [];
    try {
      const made = there.some((name) => name === "data.img" || name === "data.made");
      results.push({ there, files: made ? await visited(folder, mib, whole) : {} });
    } catch (e) {
      results.push({ there, error: chain(e) });
    }
    now(sys.umount2(target, 0));
    await deactivate("cut");
  }
  return results;
}

// --- numbers

/** MiB/s of writing and reading the device, past every cache. */
function sequential(device: string, mib: number): { write: number; read: number } {
  const fd = openSync(device, constants.O_RDWR | constants.O_DIRECT);
  const piece = aligned(1 << 20).fill(0x5a);
  const began = performance.now();
  for (let i = 0; i < mib; i++) now(sys.pwrite64(fd, piece, i << 20));
  fsyncSync(fd);
  const between = performance.now();
  for (let i = 0; i < mib; i++) now(sys.pread64(fd, piece, i << 20));
  const end = performance.now();
  closeSync(fd);
  return { write: (mib * 1000) / (between - began), read: (mib * 1000) / (end - between) };
}

/** Ours and dmsetup's, alternating, over the same images; the file system on them is lost. */
async function throughput(folder: string, mib: number, rounds: number): Promise<unknown> {
  mkdirSync(folder, { recursive: true });
  const [ours, theirs]: [unknown[], unknown[]] = [[], []];
  await visited(folder, mib, () => {});
  for (let i = 0; i < rounds; i++) {
    await byTable(folder, () => void ours.push(sequential(`/dev/mapper/${NAMES.crypt}`, mib)));
    await byOriginal(
      folder,
      "INTEGRITY_ENCRYPT",
      async (device) => void theirs.push(sequential(device, mib)),
    );
  }
  rmSync(folder, { recursive: true });
  return { ours, theirs };
}

async function first(folder: string, mib: number): Promise<unknown> {
  for (const name of ["ours", "theirs"]) mkdirSync(`${folder}/${name}`, { recursive: true });
  const began = performance.now();
  await visited(`${folder}/ours`, mib, () => {});
  const between = performance.now();
  await asOriginal(`${folder}/theirs`, mib, "INTEGRITY_ENCRYPT", []);
  const end = performance.now();
  for (const name of ["ours", "theirs"]) rmSync(`${folder}/${name}`, { recursive: true });
  return { ours: between - began, theirs: end - between };
}

async function main([command, folder = "", mib = "0", ...rest]: string[]): Promise<unknown> {
  const size = Number(mib);
  switch (command) {
    case "write":
      return visited(folder, size, (at) => wrote(at, rest));
    case "read":
      return visited(folder, size, whole, rest[0] === "INTEGRITY_ONLY" ? KEY.slice(64) : KEY);
    case "with-another-key":
      return visited(folder, size, whole, KEY.toReversed());
    case "as-original":
      return asOriginal(folder, size, rest[0] as Kind, rest.slice(1));
    case "by-original":
      return byOriginal(folder, rest[0] as Kind, async (device) => {
        using mount = await mountBeside("ext4", device, "", 0);
        return whole(at(mount));
      });
    case "tamper":
      return tampered(folder, size, Number(rest[0]), Number(rest[1]));
    case "mount":
      mkdirSync("/run/disk", { recursive: true });
      return now(sys.mount(folder, "/run/disk", "ext4", 0));
    case "unmount":
      return now(sys.umount2("/run/disk", 0));
    case "wipe":
      for (const name of readdirSync(folder).filter(isVolumeFile)) rmSync(`${folder}/${name}`);
      synced(folder);
      return null;
    case "recover":
      return recovered(folder, size, Number(rest[0]), Number(rest[1]));
    case "throughput":
      return throughput(folder, size, Number(rest[0]));
    case "first":
      return first(folder, size);
  }
  throw new Error(`${command}: not a command`);
}

try {
  console.log(JSON.stringify({ answer: (await main(process.argv.slice(2))) ?? null }));
  process.exit(0);
} catch (e) {
  console.log(JSON.stringify({ error: chain(e) }));
  process.exit(1);
}
