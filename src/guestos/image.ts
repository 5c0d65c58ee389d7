// A folder or a tar file becomes a GuestOS: OUT/<name>-<version>/root.img, its hash tree root.hash.img for dm-verity, and
// OUT/<name>-<version>.conf, laid out as cmld's operatingsystems/ is, so that copying them there installs them.
//
// Reproducible: the same files give the same bytes. Every file gets the date of the newest one (or SOURCE_DATE_EPOCH),
// the file system's uuid comes from the GuestOS' name, and nothing else of this machine goes in.
//
// Whole or not at all: everything is made in a folder of its own beside the place and moved there at the end, the
// configuration last, because a GuestOS without one does not exist.
import { createHash } from "node:crypto";
import {
  closeSync,
  createReadStream,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { constants } from "node:os";
import { dirname, join, normalize, resolve } from "node:path";
import {
  GuestOSConfig,
  GuestOSMount,
  type IGuestOSConfig,
  type IGuestOSMount,
} from "../../proto/gen/proto.js";
import { print } from "../lib/text.ts";
import { chain } from "../sys/error.ts";
import { BLOCK, checkTree, makeTree, readSuperblock, SUPERBLOCK } from "../sys/verity.ts";

/** As uname(2) says it → as GuestOS configurations say it (spec of the original: core 9.4). */
export const HARDWARE: Readonly<Record<string, string>> = { x86_64: "x86", aarch64: "arm", riscv64: "riscv" };

const ROOT_MOUNTS = {
  shared_rw: GuestOSMount.Type.SHARED_RW,
  shared: GuestOSMount.Type.SHARED,
  overlay_ro: GuestOSMount.Type.OVERLAY_RO,
} as const;
export type RootMount = keyof typeof ROOT_MOUNTS;

export const FILE_SYSTEMS = ["erofs", "squashfs"] as const;
export type FileSystem = (typeof FILE_SYSTEMS)[number];

/** A name is part of paths and of device names. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const CSERVICE = "/sbin/cservice"; // brought by cmld, need not be in the tree
const ENDS = ["SIGINT", "SIGTERM", "SIGHUP"] as const; // the last: the terminal is gone
const LINKS_MAX = 40; // as the kernel: path_resolution(7)

export interface Guest {
  readonly name: string;
  readonly version: number;
  /** A folder, or a tar file (compressed or not). */
  readonly from: string;
  readonly out: string;
  readonly fs: FileSystem;
  readonly root: RootMount;
  readonly hardware: string;
  readonly compress: boolean;
  /** Every file belongs to root, whoever owns it in `from`. */
  readonly allRoot: boolean;
  /** Replace the same version if it is there. */
  readonly force: boolean;
  /** Seconds since 1970; otherwise the newest file's. */
  readonly date?: number | undefined;
  /** Everything that the image does not say: init, volumes, limits, words. Mounts come after the root's. */
  readonly config: Partial<IGuestOSConfig>;
}

export interface Built {
  readonly config: IGuestOSConfig;
  readonly confPath: string;
  readonly imagePath: string;
}

export async function build(guest: Guest, say: (line: string) => void = () => {}): Promise<Built> {
  if (!NAME.test(guest.name)) throw new Error(`name "${guest.name}": 1 to 63 of A-Z a-z 0-9 . _ -`);
  if (!Number.isSafeInteger(guest.version) || guest.version < 1)
    throw new Error(`version ${guest.version}: a whole number from 1`);
  const full = `${guest.name}-${guest.version}`;
  const place = join(guest.out, full);
  if (existsSync(place) && !guest.force) throw new Error(`${place} is there already (--force replaces it)`);

  if (`${resolve(guest.out)}/`.startsWith(`${resolve(guest.from)}/`.replace("//", "/")))
    throw new Error(
      `${guest.out} lies in ${guest.from}, and would become part of the image (--out names another)`,
    );

  mkdirSync(guest.out, { recursive: true });
  const work = mkdtempSync(join(guest.out, `.${full}.`));
  const interrupted = (signal: NodeJS.Signals) => {
    rmSync(work, { recursive: true, force: true });
    process.exit(128 + constants.signals[signal]);
  };
  for (const end of ENDS) process.on(end, interrupted);
  try {
    const folder = statSync(guest.from).isDirectory()
      ? guest.from
      : await unpack(guest, join(work, "tree"), say);
    const init = guest.config.init_path ?? "/init";
    if (init !== CSERVICE && !hasFile(folder, init)) throw new Error(`init ${init} is not in ${guest.from}`);
    const date = guest.date ?? epoch() ?? newest(folder);
    mkdirSync(join(work, "new"));
    const image = join(work, "new/root.img");
    say(`writing ${guest.fs} image of ${guest.from}`);
    await make(guest, folder, image, date);
    say(`hashing ${statSync(image).size} bytes`);
    const hashes = await hashed(image);
    const tree = join(work, "new/root.hash.img");
    const image_verity_sha256 = hashTree(image, tree, hashes);
    const config = describe(guest, { ...hashes, image_verity_sha256 }, date);
    const text = print(GuestOSConfig, config);
    sync(image);
    sync(tree);
    const conf = join(work, "new.conf");
    writeFileSync(conf, text);
    sync(conf);

    if (existsSync(place)) {
      rmSync(`${place}.conf`, { force: true }); // from here on there is no old one
      renameSync(place, join(work, "old"));
    }
    renameSync(join(work, "new"), place);
    renameSync(conf, `${place}.conf`);
    sync(guest.out);
    return { config, confPath: `${place}.conf`, imagePath: join(place, "root.img") };
  } catch (cause) {
    throw new Error(`build ${full}`, { cause });
  } finally {
    for (const end of ENDS) process.off(end, interrupted);
    rmSync(work, { recursive: true, force: true });
  }
}

function sync(path: string): void {
  const fd = openSync(path, "r");
  fsyncSync(fd);
  closeSync(fd);
}

function epoch(): number | undefined {
  const text = process.env.SOURCE_DATE_EPOCH;
  if (text === undefined) return undefined;
  if (!/^[0-9]{1,12}$/.test(text)) throw new Error(`SOURCE_DATE_EPOCH "${text}": not a number of seconds`);
  return Number(text);
}

/** The newest modification in the tree, in seconds since 1970. */
function newest(tree: string): number {
  let most = 0;
  for (const folders = [tree]; folders.length; ) {
    const folder = folders.pop()!;
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      most = Math.max(most, Math.floor(lstatSync(path).mtimeMs / 1000));
      if (entry.isDirectory()) folders.push(path);
    }
  }
  return most;
}

/** Whether `path` is a file in `tree`, its links followed as they would be with `tree` as the root. */
export function hasFile(tree: string, path: string): boolean {
  let todo = normalize(`/${path}`).split("/").filter(Boolean);
  let at = "/";
  for (let links = 0; todo.length; ) {
    const [head, ...rest] = todo as [string, ...string[]];
    const next = normalize(join(at, head));
    if (!statSync(join(tree, at)).isDirectory()) return false;
    const stat = lstatSync(join(tree, next), { throwIfNoEntry: false });
    if (!stat) return false;
    if (stat.isSymbolicLink()) {
      if (++links > LINKS_MAX) return false;
      const target = readlinkSync(join(tree, next));
      if (target.startsWith("/")) at = "/";
      todo = [...target.split("/").filter((part) => part !== "" && part !== "."), ...rest];
      continue;
    }
    at = next;
    todo = rest;
  }
  return statSync(join(tree, at)).isFile();
}

async function unpack(guest: Guest, to: string, say: (line: string) => void): Promise<string> {
  if (process.getuid?.() !== 0 && !guest.allRoot)
    throw new Error(`${guest.from}: only root can unpack a tar file with its owners (or say --all-root)`);
  say(`unpacking ${guest.from}`);
  mkdirSync(to);
  await tool([
    "tar",
    "-x",
    "-p",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "-f",
    resolve(guest.from),
    "-C",
    to,
  ]);
  return to;
}

/** What GNU tar says after the reason. */
const TAR_LAST = /^tar: (Skipping to next header|Exiting with failure status).*$/gm;

/** Run a program of the build host; its last words are the error. */
async function tool(argv: readonly string[]): Promise<void> {
  const { PATH = "/usr/sbin:/usr/bin:/sbin:/bin" } = process.env;
  // An environment of ours: SOURCE_DATE_EPOCH would contradict the dates on the command line.
  const options = { stdout: "ignore", stderr: "pipe", stdin: "ignore", env: { PATH, LC_ALL: "C" } } as const;
  let child: Bun.Subprocess<"ignore", "ignore", "pipe">;
  try {
    child = Bun.spawn([...argv], options);
  } catch (cause) {
    throw new Error(`${argv[0]} does not start (install ${PACKAGES[argv[0]!] ?? argv[0]})`, { cause });
  }
  const end = () => child.kill();
  process.on("exit", end); // it does not outlive us
  const words = await new Response(child.stderr).text();
  const status = await child.exited;
  process.off("exit", end);
  if (status === 0) return;
  throw new Error(
    `${argv[0]}: ${words.replace(TAR_LAST, "").trim().split("\n").at(-1) || `exit status ${child.signalCode ?? status}`}`,
  );
}
const PACKAGES: Record<string, string> = { "mkfs.erofs": "erofs-utils", mksquashfs: "squashfs-tools" };

async function make(guest: Guest, tree: string, image: string, date: number): Promise<void> {
  const owner = guest.allRoot ? [guest.fs === "erofs" ? "--all-root" : "-all-root"] : [];
  if (guest.fs === "erofs") {
    const uuid = uuidFrom(`guestos ${guest.name}-${guest.version}`);
    const compressed = guest.compress ? ["-zlz4hc"] : [];
    await tool(["mkfs.erofs", "--quiet", `-T${date}`, `-U${uuid}`, ...compressed, ...owner, image, tree]);
  } else {
    const compressed = guest.compress
      ? ["-comp", "zstd", "-Xcompression-level", "15"]
      : ["-noI", "-noD", "-noF", "-noX"];
    const dates = ["-mkfs-time", String(date), "-all-time", String(date)];
    await tool([
      "mksquashfs",
      tree,
      image,
      "-noappend",
      "-no-progress",
      "-quiet",
      ...compressed,
      ...dates,
      ...owner,
    ]);
  }
}

export interface Hashes {
  readonly image_size: number;
  readonly image_sha1: string;
  readonly image_sha2_256: string;
}

/** Size and hashes of an image, as a configuration writes them. */
export async function hashed(path: string): Promise<Hashes> {
  const [sha1, sha256] = [createHash("sha1"), createHash("sha256")];
  let size = 0;
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) {
    sha1.update(piece);
    sha256.update(piece);
    size += piece.length;
  }
  return { image_size: size, image_sha1: sha1.digest("hex"), image_sha2_256: sha256.digest("hex") };
}

/** Write the hash tree of an image; its root hash. Salt and uuid come from the image, so that it is reproducible, too. */
export function hashTree(image: string, tree: string, { image_size, image_sha2_256 }: Hashes): string {
  if (image_size % BLOCK !== 0)
    throw new Error(`${image}: ${image_size} bytes are no whole blocks of ${BLOCK}`);
  const salt = createHash("sha256").update(`verity salt ${image_sha2_256}`).digest();
  const uuid = uuidFrom(`verity uuid ${image_sha2_256}`);
  writeFileSync(tree, "");
  return makeTree(image, tree, { uuid, blocks: image_size / BLOCK, salt: new Uint8Array(salt) });
}

/** A uuid that is always the same for the same text. */
function uuidFrom(text: string): string {
  const digest = createHash("sha256").update(text).digest("hex");
  return digest.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*$/, "$1-$2-4$3-8$4-$5");
}

/** "2026-11-21T02:10:59UTC", as the original's build tool writes it. */
const buildDate = (date: number): string => new Date(date * 1000).toISOString().replace(/\.\d+Z$/, "UTC");

function describe(
  guest: Guest,
  image: Hashes & { readonly image_verity_sha256: string },
  date: number,
): IGuestOSConfig {
  const root: IGuestOSMount = {
    image_file: "root",
    mount_point: "/",
    fs_type: guest.fs,
    mount_type: ROOT_MOUNTS[guest.root],
    ...image,
  };
  return {
    description: { en: `${guest.name} ${guest.version}` },
    build_date: buildDate(date),
    ...guest.config,
    name: guest.name,
    hardware: guest.hardware,
    version: guest.version,
    mounts: [root, ...(guest.config.mounts ?? [])],
  };
}

function beginning(path: string, length: number): Uint8Array {
  const fd = openSync(path, "r");
  try {
    const bytes = new Uint8Array(length);
    return bytes.subarray(0, readSync(fd, bytes));
  } finally {
    closeSync(fd);
  }
}

/** What is wrong with the images that a configuration at `confPath` names; nothing if all is well. */
export async function check(config: IGuestOSConfig, confPath: string): Promise<string[]> {
  const { SHARED, FLASH, OVERLAY_RO, SHARED_RW, STORE_ONLY } = GuestOSMount.Type;
  const stored: GuestOSMount.Type[] = [SHARED, FLASH, OVERLAY_RO, SHARED_RW, STORE_ONLY];
  const wrong: string[] = [];
  for (const mount of [...(config.mounts ?? []), ...(config.mounts_setup ?? [])]) {
    if (!stored.includes(mount.mount_type)) continue;
    const path = join(dirname(confPath), `${config.name}-${config.version}`, `${mount.image_file}.img`);
    if (!existsSync(path)) {
      wrong.push(`${path} is missing`);
      continue;
    }
    const is = await hashed(path);
    for (const key of ["image_size", "image_sha1", "image_sha2_256"] as const)
      if (mount[key] !== undefined && mount[key] !== is[key])
        wrong.push(`${path}: ${key} is ${is[key]}, the configuration says ${mount[key]}`);
    if (mount.image_verity_sha256) {
      const tree = path.replace(/\.img$/, ".hash.img");
      try {
        const head = readSuperblock(beginning(tree, SUPERBLOCK));
        if (head.blocks * BLOCK !== is.image_size)
          throw new Error(
            `it is over ${head.blocks} blocks of ${BLOCK} bytes, the image has ${is.image_size} bytes`,
          );
        checkTree(path, tree, head, mount.image_verity_sha256);
      } catch (e) {
        wrong.push(existsSync(tree) ? `${tree}: ${chain(e)}` : `${tree} is missing`);
      }
    }
  }
  return wrong;
}
