// The folder operatingsystems/: guest operating systems, several versions of each. One is <name>-<version>.conf (with
// .sig and .cert where they are signed), as it was pushed, byte for byte, and a folder <name>-<version>/ with its images.
//
// "Complete" means that every image is there. Quick: it has the size that the configuration says. Thorough: its hash is
// right too, as scd finds it.
//
// A version is there when its .conf is, which comes last and goes first, by a rename each. Meanwhile `.NAME-VERSION.conf.new`
// says that whatever else has that name is not whole: load() removes it all. Images that somebody has put into a folder
// without a .conf are that somebody's, and stay.

import { constants, lstat, mkdir, open, readdir, rename, rm, rmdir, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import * as proto from "../../../proto/gen/proto.js";
import { TEXT_MAX } from "../../lib/text.ts";
import { AT_FDCWD, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, openat } from "../../sys/calls.ts";
import { chain, ENOENT, isErrno } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { readBounded, removeSynced, sweep, synced, writeAtomic } from "../../sys/file.ts";
import { now } from "../../sys/now.ts";
import {
  type ContainerConfig,
  type DeviceConfig,
  type GuestOsConfig,
  type GuestOsMount,
  readGuestOs,
  SHIPPED,
} from "../config.ts";
import type { Scd } from "../scd.ts";
import { download, type Web } from "./download.ts";
import { wrongTree } from "./tree.ts";
import { type Signature, signatureOf, type Trust } from "./trust.ts";

const { ContainerTrust } = proto;
const { COPY, FLASH } = proto.GuestOSMount.Type;

/** Part of a file system that an installation must leave free, as the original. */
const SPARE = 0.2;

/** Names of machines in update URLs, as the original. */
const HARDWARE: Record<string, string> = { x64: "x86", arm64: "arm", riscv64: "riscv" };
const HERE = HARDWARE[process.arch] ?? process.arch;

/** What an unfinished installation or removal leaves: see above. */
const UNFINISHED = /^\.([^.].*-[0-9]+)\.conf\.new$/;
const mark = (title: string): string => `.${title}.conf.new`;
const RAN_MAX = 32;

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
  readonly scd: Pick<Scd, "hash">;
  log(line: string): void;
  /** The images in this folder are going: let go of them. */
  forget(folder: string): void;
  /** Names of the containers that use a version of it, or exactly this one. */
  users(name: string, version?: number): readonly string[];
}

/** Told again and again while an image comes; `of` bytes, if that is known. */
export type Progress = (now: {
  readonly file: string;
  readonly bytes: number;
  readonly of: number | undefined;
}) => void;

/** The root of the container that a client is in: where its relative file:// URLs begin. Throws why there is none. */
export type ClientRoot = () => Fd;

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
  /** What installations under way have asked room for, and what of it has come. */
  readonly #coming = new Set<Coming>();
  /** The newest version of each name that has run here. */
  readonly #newestRun = new Map<string, number>();
  #lastRun: Promise<void> = Promise.resolve();
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
    await this.#collect();
    this.#newestRun.clear();
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
        fits(os);
        if (titleOf(os) !== title) throw new Error(`it describes ${titleOf(os)}`);
        found.push(os);
      } catch (e) {
        log(`${join(folder, file)}: not loaded: ${chain(e)}`);
      }
    }
    this.#all.splice(0, this.#all.length, ...found);
  }

  /** Remove what a power cut has left half there, and signatures of nothing. */
  async #collect(): Promise<void> {
    const { folder, log } = this.#around;
    const names = await readdir(folder);
    const there = new Set(names);
    for (const name of names) {
      const title = UNFINISHED.exec(name)?.[1];
      if (title === undefined || there.has(`${title}.conf`)) continue;
      log(`${title}: removed, it was not whole`);
      await removeSynced(
        folder,
        ["", ".sig", ".cert"].map((end) => title + end),
      );
    }
    const alone = names.filter((n) => /\.(sig|cert)$/.test(n) && !there.has(n.replace(/\w+$/, "conf")));
    if (alone.length > 0) await removeSynced(folder, alone);
    await sweep(folder);
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
      const reason = await this.#wrongImage(os, image);
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
   * The one that a container gets. Signed configurations get exactly the version that they name, if they name one; others
   * the newest complete one, which must not be older than the one they name.
   */
  async select(container: ContainerConfig): Promise<GuestOs> {
    const { guest_os: name, guestos_version: version } = container;
    const known = this.#versions(name);
    if (known.length === 0) throw new Error(`guest_os ${name} is not installed`);
    if (this.#around.device.signed_configs && version !== 0) {
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
    await this.#notOlderThanRun(name, latest.config.version);
    if (latest.config.version < version)
      throw new Error(
        `guest_os ${name}: version ${version} is wanted, ${latest.config.version} is the newest complete one`,
      );
    return latest;
  }

  // --- installation --------------------------------------------------------------------

  /** Accept a configuration; its images are checked, or fetched, after this has resolved. */
  async push(
    source: Uint8Array,
    signed?: Signature,
    progress?: Progress,
    clientRoot?: ClientRoot,
  ): Promise<Installation> {
    const { trust, folder } = this.#around;
    const whose = await trust.guestOs(source, signed);
    const read = readGuestOs(source);
    fits(read);
    const title = titleOf(read);
    if (read.config.mounts.some((m) => m.mount_type === FLASH))
      throw new Error(`${title} has images of type FLASH, which are not written here`);
    const { name, version } = read.config;
    return this.#alone(name, async (release) => {
      const newest = this.#versions(name)[0];
      if (newest && newest.config.version > version)
        throw new Error(`${title} is older than ${titleOf(newest)}, which is installed`);
      await this.#notOlderThanRun(name, version);
      const signedOne = this.#versions(name).find((os) => os.trust === ContainerTrust.SIGNED);
      if (signedOne && whose !== ContainerTrust.SIGNED)
        throw new Error(
          `${title} is locally signed, and does not take the place of ${titleOf(signedOne)}, which is signed`,
        );
      const there = this.find(name, version);
      const had = there && (await readBounded(join(folder, `${title}.conf`), TEXT_MAX));
      if (had && !Buffer.from(had).equals(source))
        throw new Error(
          `${title} is installed with another configuration; what has changed is a new version`,
        );
      const os = there ?? { ...read, folder: join(folder, title), trust: whose };
      const coming = await this.#space(os);
      const counted: Progress = (now) => {
        coming.came.set(now.file, now.bytes);
        progress?.(now);
      };
      const finished = there
        ? this.#fetch(os, [], counted, clientRoot)
        : this.#install(os, source, signed, counted, clientRoot);
      const over = () => {
        this.#coming.delete(coming);
        release();
      };
      return { os, finished: finished.finally(over) };
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

  /** Refuses if what is still to come, images and hash trees, would leave too little room, with what others wait for. */
  async #space(os: GuestOs): Promise<Coming> {
    let need = 0;
    for (const image of images(os.config, [COPY])) {
      if (!(await wrongSize(os, image))) continue;
      need += image.image_size + (image.image_verity_sha256 === "" ? 0 : treeMax(image.image_size));
    }
    const coming: Coming = { need, came: new Map() };
    if (need === 0) return coming;
    const { bavail, blocks, bsize } = await statfs(this.#around.folder);
    const others = [...this.#coming].reduce((sum, c) => sum + outstanding(c), 0);
    if (bavail * bsize - others - need < blocks * bsize * SPARE) {
      const also = others > 0 ? `, ${mib(others)} are for what is being installed` : "";
      throw new Error(
        `${titleOf(os)} needs ${mib(need)} MiB; of ${mib(blocks * bsize)} MiB, ${mib(bavail * bsize)} are free${also} and a fifth must stay so`,
      );
    }
    this.#coming.add(coming);
    return coming;
  }

  /** A version that is not there yet: everything of it, and then its configuration, by which it is there. */
  async #install(
    os: GuestOs,
    source: Uint8Array,
    signed: Signature | undefined,
    progress: Progress | undefined,
    clientRoot: ClientRoot | undefined,
  ): Promise<void> {
    const { folder } = this.#around;
    const title = titleOf(os);
    const at = (name: string) => join(folder, name);
    const brought: string[] = [];
    try {
      if (!(await isThere(os.folder))) {
        await using marked = await open(at(mark(title)), "w", 0o600);
        await marked.sync();
        await synced(folder);
        await mkdir(os.folder, { mode: 0o755 });
      }
      await this.#fetch(os, brought, progress, clientRoot);
      for (const image of images(os.config, [COPY]))
        for (const file of filesOf(image)) await settle(os, file);
      await synced(os.folder);
      if (signed) {
        await writeAtomic(at(`${title}.sig`), signed.signature);
        await writeAtomic(at(`${title}.cert`), signed.certificate);
      }
      await writeAtomic(at(`${title}.conf`), source); // by way of the mark
      this.#all.push(os);
    } catch (cause) {
      for (const file of brought) await rm(join(os.folder, file), { force: true });
      // A configuration that could not be loaded when cmld started has its own.
      if ((await sizeOf(at(`${title}.conf`))) === undefined)
        await removeSynced(folder, [`${title}.sig`, `${title}.cert`]).catch(() => {});
      // What has come so far stays for the next try, and so does somebody else's.
      const empty = await rmdir(os.folder).then(
        () => true,
        () => false,
      );
      if (empty) await rm(at(mark(title)), { force: true });
      throw new Error(`install ${title}`, { cause });
    }
  }

  /** Every image in its folder and right; `brought` gets the names of those that had to come. */
  async #fetch(
    os: GuestOs,
    brought: string[],
    progress: Progress | undefined,
    clientRoot: ClientRoot | undefined,
  ): Promise<void> {
    for (const image of images(os.config, [COPY])) {
      const reason = await this.#wrongImage(os, image);
      if (!reason) continue;
      if (hashOf(image)[1] === "")
        throw new Error(`${image.image_file}.img has no hash in the configuration`);
      const base = os.config.update_base_url || this.#around.device.update_base_url;
      if (base === "") throw new Error(`${reason}, and there is no update_base_url`);
      for (const file of filesOf(image)) {
        const isImage = !file.endsWith(TREE);
        await download(this.#around.web, {
          url: `${base}/operatingsystems/${HERE}/${titleOf(os)}/${file}`,
          path: join(os.folder, file),
          size: isImage ? image.image_size : undefined,
          most: isImage ? image.image_size : treeMax(image.image_size),
          hash: isImage ? hashOf(image) : undefined,
          progress: (bytes) => progress?.({ file, bytes, of: isImage ? image.image_size : undefined }),
          clientRoot,
        });
        brought.push(file);
      }
      const still = (await wrongSize(os, image)) ?? (await treeReason(os, image)); // the hash was looked at on the way
      if (still) throw new Error(still);
    }
  }

  async #wrongImage(os: GuestOs, image: GuestOsMount): Promise<string | undefined> {
    return (
      (await wrongSize(os, image)) ?? (await this.#wrongHash(os, image)) ?? (await treeReason(os, image))
    );
  }

  async #wrongHash(os: GuestOs, image: GuestOsMount): Promise<string | undefined> {
    const [algorithm, wanted] = hashOf(image);
    const file = `${image.image_file}.img`;
    if (wanted === "") return `${file} has no hash in the configuration`;
    if (algorithm === "sha1")
      this.#around.log(`${titleOf(os)}: ${file} is known by a SHA-1 alone, which can be forged`);
    const path = join(os.folder, file);
    using opened = new Fd(now(openat(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)));
    const found = await this.#around.scd.hash(opened, path, algorithm);
    return found === wanted.toLowerCase() ? undefined : `${file} has ${algorithm} ${found}, not ${wanted}`;
  }

  // --- no way back ---------------------------------------------------------------------------

  /** A container of this version runs: nothing older is taken from now on. */
  ran(name: string, version: number): Promise<void> {
    this.#lastRun = this.#lastRun.then(async () => {
      try {
        if (version <= (await this.#run(name))) return;
        await writeAtomic(join(this.#around.folder, `${name}.ran`), `${version}\n`);
        this.#newestRun.set(name, version);
      } catch (e) {
        this.#around.log(`${name}: that version ${version} runs is not kept: ${chain(e)}`);
      }
    });
    return this.#lastRun;
  }

  async #run(name: string): Promise<number> {
    let newest = this.#newestRun.get(name);
    if (newest === undefined) {
      const text = await readBounded(join(this.#around.folder, `${name}.ran`), RAN_MAX);
      newest = Number.parseInt(Buffer.from(text ?? "0").toString(), 10) || 0;
      this.#newestRun.set(name, newest);
    }
    return newest;
  }

  async #notOlderThanRun(name: string, version: number): Promise<void> {
    const newest = await this.#run(name);
    if (version < newest && !this.#around.device.allow_downgrade)
      throw new Error(
        `${name}-${version} is older than version ${newest}, which has run here (device.conf: allow_downgrade)`,
      );
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
    const { log, users } = this.#around;
    for (const name of new Set(this.#all.map((os) => os.config.name))) {
      const latest = await this.latest(name);
      if (!latest || this.#busy.has(name)) continue;
      await this.#alone(name, async (release) => {
        for (const os of this.#versions(name)) {
          const { version } = os.config;
          if (version >= latest.config.version || users(name, version).length > 0) continue;
          log(`${titleOf(os)}: removed, ${titleOf(latest)} is newer and nobody uses it`);
          await this.#delete(os);
        }
        release();
      });
    }
  }

  /** First it is not there any more, then its files go. */
  async #delete(os: GuestOs): Promise<void> {
    const { folder, forget } = this.#around;
    const title = titleOf(os);
    const at = this.#all.indexOf(os);
    if (at >= 0) this.#all.splice(at, 1);
    await rename(join(folder, `${title}.conf`), join(folder, mark(title))).catch((e) => {
      if (!isErrno(e, ENOENT)) throw e;
    });
    await synced(folder);
    forget(os.folder);
    await removeSynced(
      folder,
      ["", ".sig", ".cert"].map((end) => title + end),
    );
    await removeSynced(folder, [mark(title)]);
  }
}

/** Bytes of an installation. */
interface Coming {
  readonly need: number;
  /** By file. */
  readonly came: Map<string, number>;
}

const outstanding = ({ need, came }: Coming): number =>
  Math.max(0, need - [...came.values()].reduce((sum, bytes) => sum + bytes, 0));

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
const hashOf = (image: GuestOsMount): [algorithm: "sha1" | "sha256", digest: string] =>
  image.image_sha2_256 !== "" ? ["sha256", image.image_sha2_256] : ["sha1", image.image_sha1];

/** Bytes of a hash tree: 32 for each 4096 of the image, those again, and the 10 MiB that the original's tool begins with. */
const treeMax = (size: number): number => Math.ceil(size / 64) + 16 * 2 ** 20;

const TREE = ".hash.img";
/** What comes with an image: its hash tree first. */
const filesOf = (image: GuestOsMount): string[] =>
  [...(image.image_verity_sha256 === "" ? [] : [TREE]), ".img"].map((end) => image.image_file + end);

async function treeReason(os: GuestOs, image: GuestOsMount): Promise<string | undefined> {
  if (image.image_verity_sha256 === "") return undefined;
  const file = image.image_file + TREE;
  const reason = await wrongTree(join(os.folder, file), image.image_size, image.image_verity_sha256);
  return reason && `${file}: ${reason}`;
}

async function isThere(path: string): Promise<boolean> {
  try {
    return (await lstat(path)).isDirectory();
  } catch (e) {
    if (isErrno(e, ENOENT)) return false;
    throw e;
  }
}

/** Whoever has put it there: it outlives a power cut. */
async function settle(os: GuestOs, file: string): Promise<void> {
  await using opened = await open(join(os.folder, file), constants.O_RDONLY | constants.O_NOFOLLOW);
  await opened.sync();
}

/** Refuses what was built for a kind of machine that we know and are not. The original never looks. */
function fits({ config }: { readonly config: GuestOsConfig }): void {
  if (config.hardware !== HERE && Object.values(HARDWARE).includes(config.hardware))
    throw new Error(`${titleOf({ config })} is for ${config.hardware}, and this machine is ${HERE}`);
}
