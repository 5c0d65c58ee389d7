// The folder operatingsystems/: guest operating systems, several versions of each. One is <name>-<version>.conf (with
// .sig and .cert where they are signed), as it was pushed, byte for byte, and a folder <name>-<version>/ with its images.
//
// "Complete" means that every image is there. Quick: it has the size that the configuration says. Thorough: its hash is
// right too; read in pieces, so that containers' events wait a millisecond at most.

import { createHash } from "node:crypto";
import { constants, lstat, mkdir, open, readdir, rm, rmdir, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import * as proto from "../../proto/gen/proto.js";
import { TEXT_MAX } from "../lib/text.ts";
import { chain, ENOENT, isErrno } from "../sys/error.ts";
import { readBounded, removeSynced, sweep, writeAtomic } from "../sys/file.ts";
import {
  type ContainerConfig,
  type DeviceConfig,
  type GuestOsConfig,
  type GuestOsMount,
  readGuestOs,
  SHIPPED,
} from "./config.ts";
import { download, type Web } from "./download.ts";
import { type Signature, signatureOf, type Trust } from "./trust.ts";

const { COPY, FLASH } = proto.GuestOSMount.Type;

/** Bytes hashed or copied at once: a fraction of a millisecond of SHA-256. */
const PIECE = 256 * 1024;

/** Part of a file system that an installation must leave free, as the original. */
const SPARE = 0.2;

/** Names of machines in update URLs, as the original. */
const HARDWARE: Record<string, string> = { x64: "x86", arm64: "arm", riscv64: "riscv" };

export interface GuestOs {
  /** What it says, and what it comes to. */
  readonly message: proto.GuestOSConfig;
  readonly config: GuestOsConfig;
  /** Where its images are. */
  readonly folder: string;
  readonly trust: proto.ContainerTrust;
}

export interface Surroundings {
  /** …/operatingsystems */
  readonly folder: string;
  readonly device: DeviceConfig;
  readonly trust: Pick<Trust, "guestOs">;
  readonly web: Web;
  log(line: string): void;
  /** Names of the containers that use a version of it, or exactly this one. */
  users(name: string, version?: number): readonly string[];
}

/** Told again and again while an image comes; `of` bytes, if that is known. */
export type Progress = (now: {
  readonly file: string;
  readonly bytes: number;
  readonly of: number | undefined;
}) => void;

export interface Installation {
  readonly os: GuestOs;
  /** Resolves once every image is there and right; rejects with the reason why it was not installed. */
  readonly finished: Promise<void>;
}

export const titleOf = (os: {
  readonly config: { readonly name: string; readonly version: number };
}): string => `${os.config.name}-${os.config.version}`;

/** The images that come with it, each once. */
function images(config: GuestOsConfig, also: readonly proto.GuestOSMount.Type[] = []): GuestOsMount[] {
  const byFile = new Map<string, GuestOsMount>();
  for (const m of [...config.mounts, ...config.mounts_setup])
    if (
      SHIPPED.has(m.mount_type) &&
      (m.mount_type !== COPY || also.includes(COPY)) &&
      !byFile.has(m.image_file)
    )
      byFile.set(m.image_file, m);
  return [...byFile.values()];
}

export class GuestOses {
  readonly #around: Surroundings;
  readonly #all: GuestOs[] = [];
  readonly #complete = new WeakSet<GuestOs>();
  /** Names that an installation or removal is at work on. */
  readonly #busy = new Set<string>();
  constructor(around: Surroundings) {
    this.#around = around;
  }

  /** In the order in which they came. */
  all(): readonly GuestOs[] {
    return this.#all;
  }
  find(name: string, version: number): GuestOs | undefined {
    return this.#all.find((os) => os.config.name === name && os.config.version === version);
  }
  #versions(name: string): GuestOs[] {
    return this.#all
      .filter((os) => os.config.name === name)
      .sort((a, b) => b.config.version - a.config.version);
  }

  /** Read the folder. What could not be loaded is in the log. */
  async load(): Promise<void> {
    const { folder, log, trust } = this.#around;
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await sweep(folder);
    const found: GuestOs[] = [];
    for (const file of (await readdir(folder)).sort()) {
      if (!file.endsWith(".conf")) continue;
      const title = file.slice(0, -".conf".length);
      try {
        const images = join(folder, title);
        if (!(await lstat(images)).isDirectory()) throw new Error(`${images} is no folder`);
        await sweep(images);
        const source = await readBounded(join(folder, file), TEXT_MAX);
        if (!source) continue; // removed meanwhile
        const whose = await trust.guestOs(source, await signatureOf(folder, title));
        const os = { ...readGuestOs(source), folder: images, trust: whose };
        if (titleOf(os) !== title) throw new Error(`it describes ${titleOf(os)}`);
        found.push(os);
      } catch (e) {
        log(`${join(folder, file)}: not loaded: ${chain(e)}`);
      }
    }
    this.#all.splice(0, this.#all.length, ...found);
  }

  // --- completeness ------------------------------------------------------------------

  /** Why it is not complete, or undefined. Once complete by size, it stays so. */
  async missing(os: GuestOs): Promise<string | undefined> {
    if (this.#complete.has(os)) return undefined;
    for (const image of images(os.config)) {
      const reason = await wrongSize(os, image);
      if (reason) return reason;
    }
    this.#complete.add(os);
    return undefined;
  }

  /** As missing(), with every hash. */
  async wrong(os: GuestOs): Promise<string | undefined> {
    for (const image of images(os.config)) {
      const reason = (await wrongSize(os, image)) ?? (await wrongHash(os, image));
      if (reason) return reason;
    }
    return undefined;
  }

  // --- choice -----------------------------------------------------------------------

  /** The newest complete version; 0 is never chosen. */
  async latest(name: string): Promise<GuestOs | undefined> {
    for (const os of this.#versions(name)) if (os.config.version > 0 && !(await this.missing(os))) return os;
    return undefined;
  }

  /**
   * The one that a container gets. Signed configurations name exactly one version; others get the newest complete one,
   * which must not be older than the one they name.
   */
  async select(container: ContainerConfig): Promise<GuestOs> {
    const { guest_os: name, guestos_version: version } = container;
    const known = this.#versions(name);
    if (known.length === 0) throw new Error(`guest_os ${name} is not installed`);
    if (this.#around.device.signed_configs) {
      const exact = this.find(name, version);
      if (!exact)
        throw new Error(`guest_os ${name}: version ${version} is not installed, but ${listed(known)}`);
      const reason = await this.missing(exact);
      if (reason) throw new Error(`guest_os ${titleOf(exact)} is not complete: ${reason}`);
      return exact;
    }
    const latest = await this.latest(name);
    if (!latest)
      throw new Error(
        `guest_os ${titleOf(known[0]!)} is not complete: ${(await this.missing(known[0]!)) ?? "its version is 0"}`,
      );
    if (latest.config.version < version)
      throw new Error(
        `guest_os ${name}: version ${version} is wanted, ${latest.config.version} is the newest complete one`,
      );
    return latest;
  }

  // --- installation --------------------------------------------------------------------

  /** Accept a configuration; its images are checked, or fetched, after this has resolved. */
  async push(source: Uint8Array, signed?: Signature, progress?: Progress): Promise<Installation> {
    const { trust, folder } = this.#around;
    const whose = await trust.guestOs(source, signed);
    const read = readGuestOs(source);
    const title = titleOf(read);
    const { name, version } = read.config;
    return this.#alone(name, async (release) => {
      const newest = this.#versions(name)[0];
      if (newest && newest.config.version > version)
        throw new Error(`${title} is older than ${titleOf(newest)}, which is installed`);
      let os = this.find(name, version);
      const isNew = !os;
      if (!os) {
        os = { ...read, folder: join(folder, title), trust: whose };
        await this.#space(os);
        await mkdir(os.folder, { recursive: true, mode: 0o755 });
        if (signed) {
          await writeAtomic(join(folder, `${title}.sig`), signed.signature);
          await writeAtomic(join(folder, `${title}.cert`), signed.certificate);
        }
        await writeAtomic(join(folder, `${title}.conf`), source);
        this.#all.push(os);
      }
      return { os, finished: this.#fetch(os, isNew, progress).finally(release) };
    });
  }

  /** `work` with the name to itself, until it calls `release` or fails. */
  async #alone<T>(name: string, work: (release: () => void) => Promise<T>): Promise<T> {
    if (this.#busy.has(name)) throw new Error(`${name} is being installed or removed`);
    this.#busy.add(name);
    const release = () => this.#busy.delete(name);
    try {
      return await work(release);
    } catch (e) {
      release();
      throw e;
    }
  }

  /** Refuses if the images that are still to come would leave too little room. */
  async #space(os: GuestOs): Promise<void> {
    let need = 0;
    for (const image of images(os.config, [COPY])) if (await wrongSize(os, image)) need += image.image_size;
    if (need === 0) return;
    const { bavail, blocks, bsize } = await statfs(this.#around.folder);
    if (bavail * bsize - need < blocks * bsize * SPARE)
      throw new Error(
        `${titleOf(os)} needs ${mib(need)} MiB; of ${mib(blocks * bsize)} MiB, ${mib(bavail * bsize)} are free and a fifth must stay so`,
      );
  }

  /** Every image in place and right. If one can't be, what this push has brought is removed again. */
  async #fetch(os: GuestOs, isNew: boolean, progress: Progress | undefined): Promise<void> {
    const brought: string[] = [];
    try {
      for (const image of images(os.config, [COPY])) {
        const reason = (await wrongSize(os, image)) ?? (await wrongHash(os, image));
        if (!reason) continue;
        const base = os.config.update_base_url || this.#around.device.update_base_url;
        if (base === "") throw new Error(`${reason}, and there is no update_base_url`);
        const hardware = HARDWARE[process.arch] ?? process.arch;
        const files = image.image_verity_sha256 === "" ? [".img"] : [".hash.img", ".img"];
        for (const suffix of files) {
          const file = image.image_file + suffix;
          const isImage = suffix === ".img";
          await download(this.#around.web, {
            url: `${base}/operatingsystems/${hardware}/${titleOf(os)}/${file}`,
            path: join(os.folder, file),
            size: isImage ? image.image_size : undefined,
            most: isImage ? image.image_size : treeMax(image.image_size),
            hash: isImage ? hashOf(image) : undefined,
            progress: (bytes) => progress?.({ file, bytes, of: isImage ? image.image_size : undefined }),
          });
          brought.push(file);
        }
        const still = await wrongSize(os, image); // the hash was looked at on the way
        if (still) throw new Error(still);
      }
      if (os.config.mounts.some((m) => m.mount_type === FLASH))
        throw new Error("images of type FLASH can't be installed yet");
    } catch (cause) {
      if (isNew) {
        this.#all.splice(this.#all.indexOf(os), 1);
        await removeSynced(
          this.#around.folder,
          [".sig", ".cert", ".conf"].map((s) => titleOf(os) + s),
        ).catch(() => {});
        for (const file of brought) await rm(join(os.folder, file), { force: true });
        await rmdir(os.folder).catch(() => {}); // stays if somebody else's images are in it
      }
      throw new Error(`install ${titleOf(os)}`, { cause });
    }
  }

  // --- removal -----------------------------------------------------------------------------

  /** Every version of it. Refused while a container uses one, naming the containers. */
  async remove(name: string): Promise<void> {
    const versions = this.#versions(name);
    if (versions.length === 0) throw new Error(`guest_os ${name} is not installed`);
    const { device, users } = this.#around;
    if (!device.hostedmode && name === device.c0os) throw new Error(`guest_os ${name} is core0's`);
    const using = users(name);
    if (using.length > 0) throw new Error(`guest_os ${name} is used by ${using.join(", ")}`);
    await this.#alone(name, async (release) => {
      for (const os of versions) await this.#delete(os);
      release();
    });
  }

  /** Remove versions that are older than the newest complete one of their name and used by nobody. */
  async purge(): Promise<void> {
    for (const name of new Set(this.#all.map((os) => os.config.name))) {
      const latest = await this.latest(name);
      if (!latest || this.#busy.has(name)) continue;
      for (const os of this.#versions(name)) {
        if (
          os.config.version >= latest.config.version ||
          this.#around.users(name, os.config.version).length > 0
        )
          continue;
        this.#around.log(`${titleOf(os)}: removed, ${titleOf(latest)} is newer and nobody uses it`);
        await this.#delete(os);
      }
    }
  }

  /** The .conf goes last: a power cut leaves it listed, to be removed again. */
  async #delete(os: GuestOs): Promise<void> {
    const at = this.#all.indexOf(os);
    if (at >= 0) this.#all.splice(at, 1);
    await removeSynced(
      this.#around.folder,
      ["", ".sig", ".cert", ".conf"].map((s) => titleOf(os) + s),
    );
  }
}

const listed = (all: readonly GuestOs[]): string => all.map((os) => os.config.version).join(", ");
const mib = (bytes: number): number => Math.ceil(bytes / 2 ** 20);

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const status = await stat(path);
    return status.isFile() ? status.size : undefined;
  } catch (e) {
    if (isErrno(e, ENOENT)) return undefined;
    throw e;
  }
}

async function wrongSize(os: GuestOs, image: GuestOsMount): Promise<string | undefined> {
  const file = `${image.image_file}.img`;
  const size = await sizeOf(join(os.folder, file));
  if (size === undefined) return `${file} is missing`;
  if (size !== image.image_size) return `${file} has ${size} bytes, not ${image.image_size}`;
  if (image.image_verity_sha256 !== "" && !(await sizeOf(join(os.folder, `${image.image_file}.hash.img`))))
    return `${image.image_file}.hash.img is missing`;
  return undefined;
}

/** SHA-256, or SHA-1 where a configuration is so old that it has nothing else. */
const hashOf = (image: GuestOsMount): [algorithm: string, digest: string] =>
  image.image_sha2_256 !== "" ? ["sha256", image.image_sha2_256] : ["sha1", image.image_sha1];

/** Bytes of a hash tree: 32 for each 4096 of the image, those again, and the 10 MiB that the original's tool begins with. */
const treeMax = (size: number): number => Math.ceil(size / 64) + 16 * 2 ** 20;

async function wrongHash(os: GuestOs, image: GuestOsMount): Promise<string | undefined> {
  const [algorithm, wanted] = hashOf(image);
  const file = `${image.image_file}.img`;
  if (wanted === "") return `${file} has no hash in the configuration`;
  const found = await hashFile(join(os.folder, file), algorithm);
  return found === wanted.toLowerCase() ? undefined : `${file} has ${algorithm} ${found}, not ${wanted}`;
}

/** Hexadecimal digest of a file. */
export async function hashFile(path: string, algorithm: string): Promise<string> {
  const hash = createHash(algorithm);
  await using file = await open(path, constants.O_RDONLY);
  const piece = new Uint8Array(PIECE);
  for (let at = 0; ; ) {
    const { bytesRead } = await file.read(piece, 0, PIECE, at);
    if (bytesRead === 0) return hash.digest("hex");
    hash.update(piece.subarray(0, bytesRead));
    at += bytesRead;
  }
}
