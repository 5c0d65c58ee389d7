// Read-only images of a GuestOS, proven and mounted once and shared: one device per image, one superblock, a fresh mount
// (30 µs instead of 1 ms) for every container that uses it.
//
// An image is opened once, and everything comes from that descriptor: its hash, the loop device, the verity device, the
// mounts. What stands in for the path meanwhile is never looked at. Where the configuration has a root hash, dm-verity
// proves what is read, when it is read; otherwise the whole file is hashed before it is mounted, by scd, once for as long as
// we hold it and it does not change.
import { fstatSync } from "node:fs";
import { idsFrom } from "../../run/ids.ts";
import { type FileSystem, mountHere } from "../../run/mounting.ts";
import {
  AT_FDCWD,
  MOUNT_ATTR_IDMAP,
  MOUNT_ATTR_NOATIME,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_RDONLY,
  mountSetattr,
  O_DIRECTORY,
  O_NOFOLLOW,
  O_PATH,
  O_RDONLY,
  openat,
  openat2,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
} from "../../sys/calls.ts";
import { ENOENT, SysError } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { attachLoop } from "../../sys/loop.ts";
import { attempt, now } from "../../sys/now.ts";
import { ID_RANGE } from "../containers.ts";
import type { Start } from "../module.ts";
import { mountOver, type Range } from "./overlay.ts";
import { mountShifted, type Shifted, shift } from "./ownership.ts";
import { available, Corrupted, deviceName, type Opened, openDevice, watchDevice } from "./verity.ts";

const ATTRIBUTES = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME;

/** An image of a GuestOS, as its configuration describes it. */
export interface Source {
  /** Of the file; the hash tree lies beside it, with .hash.img for .img. */
  readonly path: string;
  /** "debian-1-root": its verity device is called so, if it can be. */
  readonly title: string;
  /** Of its file system, and how that is mounted. */
  readonly type: string;
  readonly data: string;
  /** Bytes. */
  readonly size: number;
  /** Hexadecimal digests, in small letters; "" where the configuration has none. */
  readonly verity: string;
  readonly sha256: string;
  readonly sha1: string;
}

type For = Pick<Start, "uuid" | "host" | "owned" | "log">;

interface Shared {
  /** Grows old when the file changes. */
  readonly identity: string;
  readonly opening: Promise<Image>;
  image?: Image;
  users: number;
}

const shared = new Map<string, Shared>();

/** The image, proven, for this start. Its device stays while a container uses it; a loop device, whose proof was dear, and
 * shifted owners, for as long as we live. */
export async function useImage(source: Source, s: For): Promise<Image> {
  using end = new DisposableStack();
  const file = end.use(new Fd(now(openat(AT_FDCWD, source.path, O_RDONLY | O_NOFOLLOW))));
  const byBlock = source.verity !== "" && (await verityHere(source, s));
  if (byBlock) s.owned.acquire({ kind: "mapper", name: deviceName(source.title) }, () => {});
  const identity = identityOf(file, source);
  let entry = shared.get(source.path);
  if (entry && entry.identity !== identity) forgetImages(source.path);
  entry = shared.get(source.path);
  if (!entry) {
    end.move();
    const opening = opened(file, source, identity, byBlock, s);
    entry = { identity, opening, users: 0 };
    shared.set(source.path, entry);
  }
  const used = entry;
  used.users++;
  s.owned.use({ [Symbol.dispose]: () => left(source.path, used) });
  try {
    used.image = await used.opening;
    return used.image;
  } catch (e) {
    if (shared.get(source.path) === used) shared.delete(source.path);
    throw e;
  }
}

function left(path: string, entry: Shared): void {
  const { image } = entry;
  if (--entry.users > 0 || !image) return; // nobody leaves before it is open
  if (shared.get(path) !== entry) image.close();
  else if (image.byBlock && image.shifts.size === 0) {
    shared.delete(path);
    image.close();
  }
}

/** Let go of images whose path starts with `prefix`: their GuestOS is being removed. Running containers keep theirs. */
export function forgetImages(prefix: string): void {
  for (const [path, entry] of shared) {
    if (!path.startsWith(prefix)) continue;
    shared.delete(path);
    if (entry.users === 0) entry.image?.close();
  }
}

async function verityHere(source: Source, { host }: For): Promise<boolean> {
  if (await available()) return true;
  if (!host.hosted) throw new Error(`${source.title}: this kernel has no device-mapper`);
  host.warnOnce("this kernel has no device-mapper: images are hashed as a whole before they are mounted");
  return false;
}

function identityOf(file: Fd, source: Source): string {
  const s = fstatSync(file.n, { bigint: true });
  const { type, data, size, verity, sha256, sha1 } = source;
  if (!s.isFile()) throw new Error(`${source.path} is no file`);
  return [s.dev, s.ino, s.size, s.mtimeNs, s.ctimeNs, type, data, size, verity, sha256, sha1].join(":");
}

/** `file` is used up. */
async function opened(file: Fd, source: Source, identity: string, byBlock: boolean, s: For): Promise<Image> {
  using _file = file;
  const { path, size, title } = source;
  const is = fstatSync(file.n).size;
  if (is !== size) throw new Error(`${path} has ${is} bytes, not ${size}`);
  const began = performance.now();
  const open = byBlock ? await proven(file, source, s) : await whole(file, source, identity, s);
  const image = new Image(source, open, byBlock);
  const how = byBlock ? `proven block by block, as ${title}` : "its hash is right";
  s.log(`${path}: ${how} (${(performance.now() - began).toFixed(0)} ms)`);
  return image;
}

async function proven(file: Fd, source: Source, s: For): Promise<Opened> {
  const { path, title, verity, size } = source;
  const wanted = { name: deviceName(title), root: verity, image: file, size, path };
  try {
    return await openDevice({ ...wanted, tree: path.replace(/(\.img)?$/, ".hash.img") }, fileSystem(source));
  } catch (e) {
    throw e instanceof Corrupted ? refused(s, title, "a block", e.cause) : e;
  }
}

async function whole(file: Fd, source: Source, identity: string, s: For): Promise<Opened> {
  const { path } = source;
  await hashed(file, source, s);
  if (identityOf(file, source) !== identity) throw new Error(`${path} has changed while it was hashed`);
  using failed = new DisposableStack();
  const device = failed.use(attachLoop(file, true, path).fd);
  const mount = mountHere(device, fileSystem(source));
  failed.move();
  return { device, mount };
}

/** Throws unless the file that is open is the one that the configuration names. */
async function hashed(file: Fd, { path, title, sha256, sha1 }: Source, s: For): Promise<void> {
  const [algorithm, wanted] = sha256 !== "" ? (["sha256", sha256] as const) : (["sha1", sha1] as const);
  if (wanted === "") throw new Error(`${path} has no hash in the configuration`);
  if (algorithm === "sha1")
    s.host.warnOnce(`${title}: its configuration has nothing better than SHA-1, which can be forged`);
  const is = await s.host.hash(file, path, algorithm);
  if (is === wanted) return;
  throw refused(s, title, "it", new Error(`${path} has ${algorithm} ${is}, not ${wanted}`));
}

/** Write it down, and say it. */
function refused(s: Pick<For, "uuid" | "host">, image: string, what: string, cause?: unknown): Error {
  const error = `image ${image}: ${what} is not what was signed`;
  s.host.audit?.record("FSA", "CONTAINER_ISOLATION", "verify-image", s.uuid, { image, error });
  return new Error(error, { cause });
}

/** While a container runs: tell `on` the first time that the kernel refuses a block of one of its images. */
export function watchImages(s: For, on: (error: string) => void): void {
  for (const image of new Set(s.owned.all("mapper").map((r) => r.name)))
    s.owned.use(watchDevice(image, (what) => on(refused(s, image, what).message)));
}

const fileSystem = ({ type, data }: Source): FileSystem => ({
  type,
  data: data === "" ? "ro" : `ro,${data}`,
  attributes: ATTRIBUTES,
});

/** One that is open. */
export class Image {
  /** Where ids cannot be mapped: the owners of its files for each range of ids, by its first. */
  readonly shifts = new Map<number, Promise<Shifted>>();
  /** Whether the log names how its writable layers are mounted. */
  #told = false;

  readonly device: Fd;
  /** Keeps the superblock while no container uses it. */
  readonly #kept: Fd;

  /** `opened` is its own from here on. */
  constructor(
    readonly source: Source,
    opened: Opened,
    readonly byBlock: boolean,
  ) {
    this.device = opened.device;
    this.#kept = opened.mount;
  }

  /** A mount of it, attached nowhere. */
  mount(): Fd {
    return mountHere(this.device, fileSystem(this.source));
  }

  /** The same, with the ids of the range that begins with `uidStart`. */
  async mapped(uidStart: number): Promise<Fd> {
    using ids = await idsFrom(uidStart, ID_RANGE);
    using failed = new DisposableStack();
    const mount = failed.use(this.mount());
    now(mountSetattr(mount.n, MOUNT_ATTR_IDMAP, 0, ids.n));
    failed.move();
    return mount;
  }

  /** The same where ids cannot be mapped: with other owners. `top`: see mountShifted(). */
  async shifted({ uidStart, stage, log }: Range, top?: string): Promise<Fd> {
    const { path, type } = this.source;
    let made = this.shifts.get(uidStart);
    if (!made) {
      const began = performance.now();
      using whole = this.mount();
      made = shift(whole, uidStart, stage);
      this.shifts.set(uidStart, made);
      try {
        const { inodes } = await made;
        const ms = (performance.now() - began).toFixed(0);
        log(`${path}: ${type} cannot map ids here: owners of ${inodes} files shifted in ${ms} ms`);
      } catch (e) {
        this.shifts.delete(uidStart);
        throw e;
      }
    }
    return mountShifted(await made, uidStart, top);
  }

  /** A directory of it, "/" for the whole, with a writable layer in memory whose bounds are `top`: see overlay.ts.
   * `mapped`: whether its ids can be. Undefined if there is no such directory. */
  async writable(
    range: Range,
    { mapped, directory, top }: { mapped: boolean; directory: string; top: string },
  ): Promise<Fd | undefined> {
    using lower = mapped ? await this.mapped(range.uidStart) : await this.shifted(range);
    const opened = attempt(
      openat2(lower.n, directory, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS),
    );
    if (opened === -ENOENT) return undefined;
    if (opened < 0) throw new SysError(-opened, `${directory} of ${this.source.path}`);
    using part = new Fd(opened);
    const began = performance.now();
    const whole = mountOver(lower, part, range, top);
    if (!this.#told) {
      const ms = (performance.now() - began).toFixed(1);
      range.log(
        `${this.source.path}: tmpfs takes no user.* xattrs here: cmld mounts its overlays, in ${ms} ms`,
      );
      this.#told = true;
    }
    return whole;
  }

  close(): void {
    this.#kept.close();
    this.device.close();
    for (const made of this.shifts.values()) void made.then(({ layers }) => layers.close()).catch(() => {});
  }
}
