// volumes: the container's file tree.
//
// Everything is mounted by descriptor. The parent opens what needs the host (images, data volumes, /dev) as mounts
// that are attached nowhere, maps their ids to the container's range while the child waits, and the child, alone in
// its mount namespace, attaches them. So the host's tree never shows a container's mount, and a crash leaves none.
//
// The order in the child matters, for the image is hostile: (1) the root is assembled on a staging tmpfs, from our
// own paths only; (2) chroot, so that from here on every path, `..` and absolute link resolves inside: pivot_root alone
// would leave the old root stacked on the new one, where `bin/..` leads to it; (3) missing mount points are made and
// targets opened with openat2, one component at a time, following no magic link; (4) what belongs there is mounted by
// descriptor; (5) back to the old root, needed until now because the kernel lets a user namespace mount proc and sysfs
// only where it sees them whole; pivot_root, and the old root is detached.
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { open as openFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import cserviceBytes from "../../../out/cservice" with { type: "file" };
import { ContainerTokenType, GuestOSMount } from "../../../proto/gen/proto.js";
import { must } from "../../run/command.ts";
import { mountBeside } from "../../run/mounting.ts";
import * as sys from "../../sys/calls.ts";
import { EAGAIN, EEXIST, EINVAL, EIO, isErrno, SysError } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { attachLoop } from "../../sys/loop.ts";
import { mountAsFd, mountSteps } from "../../sys/mounts.ts";
import { attempt, now } from "../../sys/now.ts";
import { type Op, Reg } from "../../sys/op.ts";
import type { Secret } from "../../sys/secret.ts";
import { type Image, useImage, watchImages } from "../images/mounted.ts";
import { spare, tmpfsTakesUserXattrs } from "../images/overlay.ts";
import { mapsIds } from "../images/ownership.ts";
import { available, Corrupted, fsck, growMounted, openAlready, openVolume } from "../keys/crypt.ts";
import { heldKey } from "../keys/machine.ts";
import { lockFlags } from "../locked.ts";
import { type Module, Slot, type Start } from "../module.ts";
import { CSERVICE } from "../program.ts";
import { furnishNew } from "./devices.ts";

const T = GuestOSMount.Type;
type Mount = Start["guestos"]["mounts"][number];

/** Where the child assembles its root: an empty directory of the host, used in the child's namespace only. */
const stage = (s: Pick<Start, "host">): string => join(s.host.run, "root");

const { MOUNT_ATTR_NOSUID: NOSUID, MOUNT_ATTR_NODEV: NODEV, MOUNT_ATTR_NOEXEC: NOEXEC } = sys;
/** Bounds of a tmpfs whose configuration names none: a quarter of the machine's memory, and files. */
const TMPFS_BOUNDS = "size=25%,nr_inodes=128k";
const MiB = 1024 * 1024;
/** The original's smallest data image, MiB. */
const IMAGE_MIN = 10;

const LINKS: readonly (readonly [path: string, target: string])[] = [
  ["ptmx", "pts/ptmx"],
  ["fd", "/proc/self/fd"],
  ["stdin", "/proc/self/fd/0"],
  ["stdout", "/proc/self/fd/1"],
  ["stderr", "/proc/self/fd/2"],
  ["core", "/proc/kcore"],
];

interface Volume {
  readonly mount: Mount;
  /** An attached-nowhere mount from the parent; absent for a tmpfs, which the child makes. */
  readonly fd?: Fd;
  /** Its files belong to the container's ids already: the mount needs no map. */
  readonly shifted?: boolean;
  /** SHARED_RW or OVERLAY_RW, and all its layers are in it already. */
  readonly whole?: boolean;
  /** A descriptor number that is the child's to use for the overlay's layers: [lower, upper, work]. */
  readonly slots?: readonly [Fd, Fd, Fd];
}

/** What prepare() has opened. */
export interface Plan {
  readonly volumes: readonly Volume[];
  readonly dev: Fd;
  /** /proc and /sys of a container without its own network namespace cannot be mounted by it. */
  readonly sys?: Fd;
  /** The executable, for core0. */
  readonly executable?: Fd;
  readonly writableRoot: boolean;
  readonly hasCservice: boolean;
}

const plans = new Slot<Plan>();

const isTmpfs = (m: Mount): boolean => m.fs_type.startsWith("tmpfs");
const isOverlay = (m: Mount): boolean =>
  m.mount_type === T.SHARED_RW || m.mount_type === T.OVERLAY_RW || m.mount_type === T.OVERLAY_RO;
const isImage = (m: Mount): boolean => m.mount_type === T.SHARED || m.mount_type === T.SHARED_RW;
const isBind = (m: Mount): boolean => m.mount_type === T.BIND_FILE || m.mount_type === T.BIND_FILE_RW;
/** A volume that is the container's alone. */
const isOwn = (m: Mount): boolean =>
  (m.mount_type === T.EMPTY || m.mount_type === T.OVERLAY_RW) && !isTmpfs(m);
const isRoot = (m: Mount): boolean => /^\/*$/.test(m.mount_point);
const wanted = (s: Start): Mount[] =>
  (s.setup ? setupMounts(s) : s.guestos.mounts).filter(
    (m) => m.mount_type !== T.FLASH && m.mount_type !== T.STORE_ONLY,
  );

/** Where a container in setup mode has its own tree. */
const SETUP = "/setup";

/** In setup mode the root is the GuestOS' tree for it, or a small one in memory; what is mounted else is below it. */
function setupMounts({ guestos }: Start): Mount[] {
  const memory = {
    image_file: "setup",
    mount_point: "/",
    mount_type: T.EMPTY,
    fs_type: "tmpfs",
    mount_data: "size=16m",
  };
  const own = guestos.mounts_setup;
  const first = own.length > 0 ? own : [GuestOSMount.create(memory) as Mount];
  const below = guestos.mounts.map((m): Mount => {
    const value = `${SETUP}/${m.mount_point.replace(/^\/+/, "")}`.replace(/\/+$/, "");
    return Object.create(m, { mount_point: { value } });
  });
  return [...first, ...below];
}

type Sized = Pick<Start["config"], "image_sizes">;
const named = (c: Sized, m: Mount) => c.image_sizes.find((i) => i.image_name === m.image_file);

/** Size of a container's own volume, MiB: what its configuration says, else what the GuestOS does. */
export const volumeSize = (c: Sized, m: Mount): number =>
  Math.max(named(c, m)?.image_size || m.def_size, IMAGE_MIN);

/** The name of its images in the container's folder. */
export const imageName = (c: Sized, m: Mount): string => named(c, m)?.image_file || m.image_file;
/** The file that holds a volume in clear. */
export const volumeFile = (c: Sized, m: Mount): string => `${imageName(c, m)}.plain.img`;

/** Open an image file for this container alone. The lock is the open file's, so the loop device holds it for as long
 * as it lives, whoever has attached it: two file systems on one file would destroy each other. */
function alone(path: string, readOnly: boolean): Fd {
  const LOCK_EX_NB = 6; // asm-generic/fcntl.h
  const file = new Fd(now(sys.openat(sys.AT_FDCWD, path, readOnly ? sys.O_RDONLY : sys.O_RDWR)));
  const result = attempt({ call: "flock", args: [file.n, LOCK_EX_NB] });
  if (result >= 0) return file;
  file.close();
  throw result === -EAGAIN ? new Error(`${path} is in use`) : new SysError(-result, `flock ${path}`);
}

/** The key of a start's own volumes, for as long as prepare() lasts; undefined where they are plain. */
const keys = new Slot<Promise<Secret | undefined>>();

/** What a token protects is never kept in clear; elsewhere it is only on a host without a device-mapper. */
function keyOf(s: Start): Promise<Secret | undefined> {
  let key = keys.get(s);
  if (!key) {
    key = s.key ? Promise.resolve(s.key) : heldHere(s);
    keys.set(s, key);
  }
  return key;
}

async function heldHere(s: Start): Promise<Secret | undefined> {
  const token = s.isC0 ? ContainerTokenType.NONE : s.config.token_type;
  if (token !== ContainerTokenType.NONE)
    throw new Error(`token_type ${ContainerTokenType[token]}: its volumes open with their token only`);
  if (!s.host.hosted || (await available()))
    return await heldKey({ ...s, folder: join(s.host.base, "keys"), images: s.imageDir });
  s.host.warnOnce("this kernel has no device-mapper: volumes are not encrypted");
  return undefined;
}

async function endKey(s: Start): Promise<void> {
  const key = await keys.get(s)?.catch(() => undefined);
  if (key !== s.key) key?.[Symbol.dispose]();
}

/** A volume that was made in clear, on a host that had no device-mapper then. */
function isPlain(s: Start, m: Mount): boolean {
  const image = imageName(s.config, m);
  const has = (suffix: string) => existsSync(join(s.imageDir, `${image}${suffix}`));
  if (!has(".plain.img") || has(".img") || has(".made")) return false;
  if (s.host.hosted && !s.key) return true;
  throw new Error(`${image}.plain.img is in clear, and volumes are sealed here: wipe the container`);
}

async function ownVolume(s: Start, m: Mount): Promise<Fd> {
  if (m.fs_type !== "ext4")
    throw new Error(`${m.image_file}: fs_type ${m.fs_type}: only ext4 and tmpfs can be made here`);
  const place = { folder: s.imageDir, uuid: s.uuid, image: imageName(s.config, m) };
  let opened = openAlready(place, s.owned);
  if (!opened) {
    const key = await keyOf(s);
    if (!key || isPlain(s, m)) return plainVolume(s, m);
    opened = await openVolume({
      place,
      key,
      owned: s.owned,
      bytes: volumeSize(s.config, m) * MiB,
      discard: s.host.device.volume_discard,
      alone: (path) => alone(path, false),
      log: s.log,
    });
  }
  const data = s.host.device.volume_discard ? `discard,${m.mount_data}` : m.mount_data;
  const mount = await mountSealed(opened.path, data);
  try {
    if (opened.blocks !== undefined) await growMounted(mount, opened.blocks);
    return mount;
  } catch (cause) {
    mount.close();
    throw new Error(`growing ${m.image_file}`, { cause });
  }
}

async function mountSealed(path: string, data: string): Promise<Fd> {
  try {
    return await mountBeside("ext4", path, data, NODEV | sys.MOUNT_ATTR_NOATIME);
  } catch (cause) {
    if (isErrno(cause, EIO)) throw new Corrupted(`${path} can't be read`, { cause });
    throw cause;
  }
}

/** A container's own ext4 image in clear, made when it is missing; grown when its configured size has. */
async function plainVolume(s: Start, m: Mount): Promise<Fd> {
  const path = join(s.imageDir, volumeFile(s.config, m));
  const bytes = volumeSize(s.config, m) * MiB;
  mkdirSync(s.imageDir, { recursive: true, mode: 0o755 });
  if (!existsSync(path)) {
    const fresh = `${path}.new`; // renamed only when whole, so a power cut leaves the old state or the new one
    rmSync(fresh, { force: true }); // perhaps the mke2fs of a cmld that was killed still writes to it
    try {
      writeFileSync(fresh, "", { mode: 0o600 });
      truncateSync(fresh, bytes);
      await must(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", fresh]);
      now({ call: "renameat2", args: [sys.AT_FDCWD, fresh, sys.AT_FDCWD, path, 0] });
    } catch (e) {
      rmSync(fresh, { force: true });
      throw e;
    }
    s.log(`made volume ${m.image_file}: ${bytes / MiB} MiB ext4`);
  }
  using file = alone(path, false);
  if (statSync(path).size < bytes) {
    await fsck(path, "-f").catch((e: Error) => {
      throw new Error(`${path}: ${e.message}`);
    });
    truncateSync(path, bytes);
    await must(["/sbin/resize2fs", path]);
    s.log(`grew volume ${m.image_file} to ${bytes / MiB} MiB`);
  }
  const loop = attachLoop(file, false, path);
  using _loop = loop.fd; // the mount keeps it from here on
  return mountAsFd("ext4", loop.path, m.mount_data, NODEV | sys.MOUNT_ATTR_NOATIME);
}

/** A block device's bytes as a file, with holes where they are zero. */
async function copyDevice(device: string, path: string): Promise<void> {
  await using from = await openFile(device, "r");
  if (!(await from.stat()).isBlockDevice()) throw new Error(`${device} is no block device`);
  await using to = await openFile(path, "w", 0o600);
  const chunk = Buffer.alloc(MiB);
  let at = 0;
  for (;;) {
    const { bytesRead } = await from.read(chunk, 0, MiB, at);
    if (bytesRead === 0) break;
    const piece = chunk.subarray(0, bytesRead);
    if (piece.some((b) => b !== 0)) await to.write(piece, 0, bytesRead, at);
    at += bytesRead;
  }
  await to.truncate(at);
  await to.sync();
}

/** DEVICE and DEVICE_RW: a block device of the host, copied to the container's images at its first start. */
async function copiedDevice(s: Start, m: Mount): Promise<Fd> {
  const path = join(s.imageDir, `${m.image_file.replaceAll("/", "_")}.plain.img`);
  if (!existsSync(path)) {
    mkdirSync(s.imageDir, { recursive: true, mode: 0o755 });
    await copyDevice(m.image_file, `${path}.new`);
    now({ call: "renameat2", args: [sys.AT_FDCWD, `${path}.new`, sys.AT_FDCWD, path, 0] });
  }
  const readOnly = m.mount_type === T.DEVICE;
  using file = alone(path, readOnly);
  const loop = attachLoop(file, readOnly, path);
  using _loop = loop.fd;
  const attributes = NODEV | sys.MOUNT_ATTR_NOATIME | (readOnly ? sys.MOUNT_ATTR_RDONLY : 0);
  return mountAsFd(m.fs_type, loop.path, readOnly ? `ro,${m.mount_data}` : m.mount_data, attributes);
}

/** A file that containers share, below files_shared/. */
function sharedFile(s: Start, m: Mount): Fd {
  const path = join(s.host.base, "files_shared", m.image_file);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const flags = sys.O_RDWR | sys.O_CREAT | sys.O_NOFOLLOW;
  new Fd(now(sys.openat(sys.AT_FDCWD, path, flags, 0o644))).close();
  const fd = new Fd(now(sys.openTree(sys.AT_FDCWD, path, sys.OPEN_TREE_CLONE | sys.AT_SYMLINK_NOFOLLOW)));
  const readOnly = m.mount_type === T.BIND_FILE ? sys.MOUNT_ATTR_RDONLY : 0;
  now(sys.mountSetattr(fd.n, NODEV | NOSUID | NOEXEC | readOnly));
  return fd;
}

/** What the running kernel can do; tests pretend. */
export interface Abilities {
  /** Whether mounts of a file system can map ids. `mount`, one of them, is spoilt by the question. */
  mapsIds(type: string, mount: Fd): Promise<boolean>;
  /** Whether the child can keep the writable layer of an overlay in a tmpfs. */
  tmpfsTakesUserXattrs(): boolean;
}

/** The image of the GuestOS that a mount is of, opened and proven. */
const imageFor = (s: Start, m: Mount): Promise<Image> =>
  useImage(
    {
      path: join(s.osDir, `${m.image_file}.img`),
      title: `${s.guestos.name}-${s.guestos.version}-${m.image_file}`,
      type: m.fs_type,
      data: m.mount_data,
      size: m.image_size,
      verity: m.image_verity_sha256.toLowerCase(),
      sha256: m.image_sha2_256.toLowerCase(),
      sha1: m.image_sha1.toLowerCase(),
    },
    s,
  );
const rangeOf = (s: Start) => ({ uidStart: s.uidStart, stage: stage(s), log: s.log });
/** The bounds of a SHARED_RW's writable layer. */
const topOf = (s: Tree, m: Mount): string => tmpfsData(s, { ...m, mount_data: "" });

async function canMap(image: Image, kernel: Abilities): Promise<boolean> {
  using probe = image.mount();
  return await kernel.mapsIds(image.source.type, probe);
}

/** An image of the GuestOS: its ids are mapped when the container's are known, or are right already. */
async function imageOf(s: Start, m: Mount, kernel: Abilities): Promise<Omit<Volume, "mount">> {
  const image = await imageFor(s, m);
  const mapped = await canMap(image, kernel);
  const top = m.mount_type === T.SHARED_RW ? topOf(s, m) : undefined;
  if (!mapped) return { fd: await image.shifted(rangeOf(s), top), shifted: true, whole: top !== undefined };
  const fd =
    top !== undefined && !kernel.tmpfsTakesUserXattrs()
      ? await image.writable(rangeOf(s), { mapped, directory: "/", top })
      : undefined;
  if (fd) return { fd, shifted: true, whole: true };
  return { fd: image.mount() };
}

/** OVERLAY_RW in a tmpfs over a directory of the image `below`, on a kernel where the child cannot make it. */
async function overImage(
  s: Start,
  m: Mount,
  below: Mount,
  kernel: Abilities,
): Promise<Omit<Volume, "mount">> {
  const directory = `/${m.mount_point.slice(below.mount_point.replace(/\/+$/, "").length)}`;
  const image = await imageFor(s, below);
  const mapped = await canMap(image, kernel);
  const fd = await image.writable(rangeOf(s), { mapped, directory, top: tmpfsData(s, m) });
  return fd ? { fd, shifted: true, whole: true } : {};
}

/** The volume that a mount point lies in, of those before it. */
function beneath(list: readonly Volume[], m: Mount): Mount | undefined {
  const folder = (path: string) => path.replace(/\/*$/, "/");
  return list.findLast(({ mount }) => folder(m.mount_point).startsWith(folder(mount.mount_point)))?.mount;
}

async function volume(
  s: Start,
  m: Mount,
  kernel: Abilities,
  list: readonly Volume[],
): Promise<Omit<Volume, "mount">> {
  if (isImage(m) || m.mount_type === T.OVERLAY_RO) {
    if (!isTmpfs(m)) return imageOf(s, m, kernel);
  } else if (m.mount_type === T.OVERLAY_RW && isTmpfs(m) && !kernel.tmpfsTakesUserXattrs()) {
    const below = beneath(list, m);
    if (below && isImage(below) && !isTmpfs(below)) return overImage(s, m, below, kernel);
    s.log(`${m.mount_point}: tmpfs takes no user.* xattrs here: what is below it can't be replaced`);
  }
  const fd = await volumeFd(s, m);
  return fd ? { fd } : {};
}

async function volumeFd(s: Start, m: Mount): Promise<Fd | undefined> {
  switch (m.mount_type) {
    case T.SHARED:
    case T.SHARED_RW:
    case T.OVERLAY_RO:
    case T.EMPTY:
    case T.OVERLAY_RW:
      return undefined; // a tmpfs
    case T.DEVICE:
    case T.DEVICE_RW:
      return copiedDevice(s, m);
    case T.BIND_FILE:
    case T.BIND_FILE_RW:
      return sharedFile(s, m);
    default:
      throw new Error(`mount type ${m.mount_type} cannot be mounted`);
  }
}

/** The container's /dev: a tmpfs of the host's user namespace, so that its nodes work and the container makes none. */
function deviceTree(s: Start): Fd {
  const dev = mountAsFd("tmpfs", "cml-dev", "mode=0755,size=1m,nr_inodes=4k", NOSUID | NOEXEC);
  const own = (path: string) => now(sys.fchownat(dev.n, path, s.uidStart, s.uidStart));
  const directory = (path: string, mode: number) => {
    now(sys.mkdirat(dev.n, path, mode));
    own(path);
  };
  now({ call: "fchownat", args: [dev.n, "", s.uidStart, s.uidStart, sys.AT_EMPTY_PATH] });
  directory("pts", 0o755);
  directory("shm", 0o1777);
  directory("mqueue", 0o755);
  for (const [path, target] of LINKS) {
    now(sys.symlinkat(target, dev.n, path));
    own(path);
  }
  furnishNew(s, dev);
  return dev;
}

/** Registers of this module's part of the program. */
const [OLD, FS, MNT, TARGET, SERVICE, DIR, ROOT] = [0, 1, 2, 3, 4, 5, 6].map((n) => new Reg(n)) as [
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
];

const inside = (path: string, flags: number, resolve: number): Op =>
  sys.openat2(sys.AT_FDCWD, path, sys.O_PATH | flags, resolve, 0, TARGET);
/** The configuration's targets may be links, but lead nowhere outside. */
const LINKED = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS;

/** Attach the mount in MNT at `path`, one of ours: no link on the way. */
const attachAt = (path: string): Op[] => [
  inside(path, sys.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS),
  sys.moveMount(MNT, TARGET, ""),
  sys.close(TARGET),
  sys.close(MNT),
];

type Tree = Pick<Start, "host" | "config">;

const tmpfsBounds = (s: Tree): string =>
  s.config.tmpfs_size > 0 ? `size=${s.config.tmpfs_size}m,nr_inodes=128k` : TMPFS_BOUNDS;

const tmpfsData = (s: Tree, m: Mount): string =>
  ["mode=0755", tmpfsBounds(s), m.mount_data].filter(Boolean).join(",");

/** Everything in here and in layerSteps() is relative to the staging tmpfs, the working directory: what a container
 * reads in its mountinfo names nothing of the host. */
function rootSteps(s: Tree, plan: Plan): { steps: Op[]; root: string } {
  const steps: Op[] = [];
  let root = "";
  plan.volumes.forEach(({ mount: m, fd, whole }, i) => {
    if (!isRoot(m)) return;
    const here = `${i}`;
    const attach = (path: string): Op[] => [
      sys.mkdir(path, 0o755),
      fd
        ? sys.moveMount(fd.n, sys.AT_FDCWD, path)
        : sys.mount("tmpfs", path, "tmpfs", sys.MS_NODEV, tmpfsData(s, m)),
    ];
    if (!isOverlay(m) || whole) {
      steps.push(...attach(here));
      root = here;
      return;
    }
    const layer = `${here}.layer`;
    steps.push(...attach(layer), sys.mkdir(here, 0o755));
    const [lower, upper] = m.mount_type === T.SHARED_RW ? [layer, `${here}.top`] : [root, layer];
    if (lower === "") throw new Error(`${m.image_file}: an overlay on / needs a root before it`);
    if (m.mount_type === T.OVERLAY_RO) {
      steps.push(
        ...ownDirectory(`${upper}/upper`),
        sys.mount(
          "overlay",
          here,
          "overlay",
          sys.MS_RDONLY | sys.MS_NODEV,
          `lowerdir=${upper}/upper:${lower},userxattr`,
        ),
      );
    } else {
      if (m.mount_type === T.SHARED_RW)
        steps.push(sys.mkdir(upper, 0o755), sys.mount("tmpfs", upper, "tmpfs", sys.MS_NODEV, topOf(s, m)));
      steps.push(sys.mkdir(`${upper}/upper`, 0o755), sys.mkdir(`${upper}/work`, 0o755));
      for (const name of ["upper", "work"]) steps.push(...ownDirectory(`${upper}/${name}`));
      steps.push(
        sys.mount(
          "overlay",
          here,
          "overlay",
          sys.MS_NODEV,
          `lowerdir=${lower},upperdir=${upper}/upper,workdir=${upper}/work,userxattr`,
        ),
      );
    }
    root = here;
  });
  if (root === "") throw new Error("the GuestOS mounts nothing on /");
  return { steps, root };
}

/** Fails unless `path` is a directory reached without a link: a restored volume may hold anything. */
const ownDirectory = (path: string): Op[] => [
  sys.openat2(sys.AT_FDCWD, path, sys.O_PATH | sys.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS, 0, DIR),
  sys.close(DIR),
];

/** Layers of overlays that are not the root, attached to the staging tree while it can be named. */
function layerSteps(s: Tree, plan: Plan): Op[] {
  return plan.volumes.flatMap(({ mount: m, fd, slots }, i) => {
    if (isRoot(m) || !slots) return [];
    const layer = `${i}.layer`;
    const steps: Op[] = [
      sys.mkdir(layer, 0o755),
      fd
        ? sys.moveMount(fd.n, sys.AT_FDCWD, layer)
        : sys.mount("tmpfs", layer, "tmpfs", sys.MS_NODEV, tmpfsData(s, m)),
    ];
    const open = (path: string, slot: Fd): Op[] => [
      sys.openat2(sys.AT_FDCWD, path, sys.O_PATH | sys.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS, 0, DIR),
      sys.dup3(DIR, slot.n),
      sys.close(DIR),
    ];
    if (m.mount_type === T.OVERLAY_RO) return [...steps, ...open(`${layer}/upper`, slots[1])];
    let top = layer;
    if (m.mount_type === T.SHARED_RW) {
      top = `${i}.top`;
      steps.push(sys.mkdir(top, 0o755), sys.mount("tmpfs", top, "tmpfs", sys.MS_NODEV, topOf(s, m)));
      steps.push(...open(layer, slots[0]));
    }
    steps.push(sys.mkdir(`${top}/upper`, 0o755), sys.mkdir(`${top}/work`, 0o755));
    return [...steps, ...open(`${top}/upper`, slots[1]), ...open(`${top}/work`, slots[2])];
  });
}

/** Make a mount point and the directories above it where they are missing. Each is made beneath its parent's
 * descriptor, for any of them may be a link that a guest has put there. */
function made(path: string, last: "directory" | "file"): Op[] {
  const S_IFREG = 0o100000;
  const parts = path.split("/").filter(Boolean);
  return parts.flatMap((name, i): Op[] => {
    const isFile = last === "file" && i === parts.length - 1;
    return [
      sys.openat2(
        sys.AT_FDCWD,
        `/${parts.slice(0, i).join("/")}`,
        sys.O_PATH | sys.O_DIRECTORY,
        LINKED,
        0,
        DIR,
      ),
      isFile
        ? { ...sys.mknodat(DIR, name, S_IFREG | 0o755, 0), allow: EEXIST }
        : sys.mkdirat(DIR, name, 0o755),
      sys.close(DIR),
    ];
  });
}

/** Attach a mount to a file or directory that may be a link. `make`: what to make if there is nothing. */
export const place = (path: string, from: Reg | number, make?: "directory" | "file"): Op[] => [
  ...(make ? made(path, make) : []),
  inside(path, 0, LINKED),
  sys.moveMount(from, TARGET, ""),
  sys.close(TARGET),
];

function ownFileSystems(s: Tree, plan: Plan): Op[] {
  return [
    ...["/proc", "/sys", "/dev", "/run"].map((path) => sys.mkdir(path, 0o755)),
    ...mountSteps("proc", "", NOSUID | NODEV | NOEXEC, FS, MNT),
    ...attachAt("/proc"),
    ...(plan.sys
      ? [
          inside("/sys", sys.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS),
          sys.moveMount(plan.sys.n, TARGET, ""),
          sys.close(TARGET),
        ]
      : [
          ...mountSteps("sysfs", "", sys.MOUNT_ATTR_RDONLY | NOSUID | NODEV | NOEXEC, FS, MNT),
          ...attachAt("/sys"),
        ]),
    ...mountSteps("cgroup2", "", NOSUID | NODEV | NOEXEC, FS, MNT),
    ...attachAt("/sys/fs/cgroup"),
    inside("/dev", sys.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS),
    sys.moveMount(plan.dev.n, TARGET, ""),
    sys.close(TARGET),
    ...mountSteps("devpts", "mode=0620,gid=5,ptmxmode=0666,max=1024", NOSUID | NOEXEC, FS, MNT),
    ...attachAt("/dev/pts"),
    ...mountSteps("tmpfs", `mode=1777,${tmpfsBounds(s)}`, NOSUID | NODEV, FS, MNT),
    ...attachAt("/dev/shm"),
    ...mountSteps("mqueue", "", NOSUID | NODEV | NOEXEC, FS, MNT),
    ...attachAt("/dev/mqueue"),
    ...mountSteps("tmpfs", `mode=0755,${tmpfsBounds(s)}`, NOSUID | NODEV, FS, MNT),
    ...attachAt("/run"),
    sys.mkdir("/run/socket", 0o755),
  ];
}

function configuredMounts(s: Tree, plan: Plan): Op[] {
  return plan.volumes.flatMap(({ mount: m, fd, slots }) => {
    if (isRoot(m)) return [];
    if (!slots) {
      if (fd) return place(m.mount_point, fd.n, isBind(m) ? "file" : "directory");
      return [
        ...mountSteps("tmpfs", tmpfsData(s, m), NOSUID | NODEV, FS, MNT),
        ...place(m.mount_point, MNT, "directory"),
        sys.close(MNT),
      ];
    }
    const held = (slot: Fd) => `/proc/self/fd/${slot.n}`;
    const [lower, upper, work] = slots;
    const layers =
      m.mount_type === T.OVERLAY_RO
        ? `lowerdir=${held(upper)}:${held(lower)}`
        : `lowerdir=${held(lower)},upperdir=${held(upper)},workdir=${held(work)}`;
    const attributes = NODEV | (m.mount_type === T.OVERLAY_RO ? sys.MOUNT_ATTR_RDONLY : 0);
    return [
      ...made(m.mount_point, "directory"),
      inside(m.mount_point, sys.O_DIRECTORY, LINKED),
      ...(m.mount_type === T.SHARED_RW ? [] : [sys.dup3(TARGET, lower.n)]),
      ...mountSteps("overlay", `${layers},userxattr`, attributes, FS, MNT),
      sys.moveMount(MNT, TARGET, ""),
      sys.close(TARGET),
      sys.close(MNT),
    ];
  });
}

/** Where core0 finds the executable; /usr/sbin/control is a link to it there. */
const EXECUTABLE = "/usr/sbin/cml";

/** The child's way from the host's tree to its own. */
export function tree(s: Tree, plan: Plan): Op[] {
  const { steps, root } = rootSteps(s, plan);
  const cservice = plan.writableRoot || plan.hasCservice;
  return [
    sys.mount("none", "/", "none", sys.MS_REC | sys.MS_PRIVATE),
    sys.openat(sys.AT_FDCWD, "/", sys.O_PATH | sys.O_DIRECTORY, 0, OLD),
    sys.mount("tmpfs", stage(s), "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=0755,size=1m,nr_inodes=1k"),
    sys.chdir(stage(s)),
    ...steps,
    ...layerSteps(s, plan),
    ...(cservice ? helperSteps("cservice") : []),
    sys.openat(sys.AT_FDCWD, root, sys.O_PATH | sys.O_DIRECTORY, 0, ROOT),
    sys.fchdir(ROOT),
    sys.chroot("."),
    ...ownFileSystems(s, plan),
    ...configuredMounts(s, plan),
    ...(cservice
      ? [...place(CSERVICE, SERVICE, plan.hasCservice ? undefined : "file"), sys.close(SERVICE)]
      : []),
    ...(plan.executable ? place(EXECUTABLE, plan.executable.n, plan.writableRoot ? "file" : undefined) : []),
    sys.fchdir(OLD),
    sys.chroot("."),
    sys.fchdir(ROOT),
    sys.pivotRoot(".", "."),
    sys.umount2(".", sys.MNT_DETACH),
    sys.close(OLD),
    sys.close(ROOT),
    sys.chdir("/"),
    ...plan.volumes.flatMap(({ slots }) => (slots ?? []).map((slot) => sys.close(slot.n))),
  ];
}

const watched = new WeakSet<Start>();

/** An image that is not what was signed ends whoever runs on it, or is about to. */
function watch(s: Start): void {
  if (watched.has(s)) return;
  watched.add(s);
  watchImages(s, (error) => {
    if (s.isC0) s.log(`${error}; core0 goes on, since the machine ends with it`);
    else s.end(error);
  });
}

export const volumesWith = (kernel: Abilities): Module => ({
  name: "volumes",
  namespaces: (s) => sys.CLONE_NEWNS | sys.CLONE_NEWPID | (s.config.netns ? sys.CLONE_NEWNET : 0n),

  async prepare(s) {
    const list: Volume[] = [];
    const ownSpare = (): Fd => s.owned.use(spare());
    await using _key = { [Symbol.asyncDispose]: () => endKey(s) };
    const mounts = wanted(s);
    // The kernel has much to wait for at a sealed volume: all of them open while the root is made ready.
    const opening = new Map(mounts.filter(isOwn).map((m) => [m, ownVolume(s, m)]));
    for (const fd of opening.values()) fd.catch(() => {}); // judged below, where it is awaited
    await using _rest = {
      async [Symbol.asyncDispose]() {
        for (const made of opening.values()) await made.then((fd) => fd.close()).catch(() => {});
      },
    };
    for (const mount of mounts) {
      try {
        const begun = opening.get(mount);
        const made = begun ? { fd: await begun } : await volume(s, mount, kernel, list);
        opening.delete(mount);
        if (made.fd) s.owned.use(made.fd);
        const stacked = isOverlay(mount) && !isRoot(mount) && !made.whole;
        const slots = stacked ? ([ownSpare(), ownSpare(), ownSpare()] as const) : undefined;
        list.push({ mount, ...made, ...(slots && { slots }) });
      } catch (cause) {
        const Kind = cause instanceof Corrupted ? Corrupted : Error;
        throw new Kind(`volume ${mount.image_file} on ${mount.mount_point}`, { cause });
      }
    }
    watch(s);
    const roots = list.filter((v) => isRoot(v.mount));
    const last = roots.at(-1)?.mount;
    const writableRoot =
      last !== undefined &&
      last.mount_type !== T.SHARED &&
      last.mount_type !== T.OVERLAY_RO &&
      last.mount_type !== T.DEVICE;
    const hasCservice = roots.some(({ fd }) => {
      if (!fd) return false;
      const n = attempt(sys.openat2(fd.n, CSERVICE, sys.O_PATH, sys.RESOLVE_IN_ROOT));
      if (n >= 0) now(sys.close(n));
      return n >= 0;
    });
    const dev = s.owned.use(deviceTree(s));
    let sysTree: Fd | undefined;
    if (!s.config.netns) {
      sysTree = s.owned.use(new Fd(now(sys.openTree(sys.AT_FDCWD, "/sys", sys.OPEN_TREE_CLONE))));
      now(sys.mountSetattr(sysTree.n, sys.MOUNT_ATTR_RDONLY | NOSUID | NODEV | NOEXEC));
    }
    let executable: Fd | undefined;
    if (s.isC0) {
      executable = s.owned.use(
        new Fd(now(sys.openTree(sys.AT_FDCWD, process.execPath, sys.OPEN_TREE_CLONE))),
      );
      now(sys.mountSetattr(executable.n, sys.MOUNT_ATTR_RDONLY | NOSUID | NODEV));
    }
    const given = list.flatMap(({ mount, fd }) => (fd ? [{ fd, isFile: isBind(mount) }] : []));
    lockFlags([...given, ...(executable ? [{ fd: executable, isFile: true }] : [])], stage(s));
    plans.set(s, {
      volumes: list,
      dev,
      ...(sysTree && { sys: sysTree }),
      ...(executable && { executable }),
      writableRoot,
      hasCservice,
    });
  },

  attach(s, p) {
    using userns = new Fd(now(sys.openat(sys.AT_FDCWD, `/proc/${p.pid}/ns/user`, sys.O_RDONLY)));
    for (const { mount, fd, shifted } of plans.need(s).volumes) {
      if (!fd || shifted) continue;
      try {
        now(sys.mountSetattr(fd.n, sys.MOUNT_ATTR_IDMAP, 0, userns.n));
      } catch (cause) {
        if (!isErrno(cause, EINVAL)) throw cause;
        const type = isBind(mount) ? "the file system below files_shared" : mount.fs_type;
        throw new Error(`${mount.image_file}: this kernel cannot map the ids of ${type}`, { cause });
      }
    }
  },

  child: (s) => tree(s, plans.need(s)),

  started: watch,
});

export const volumes = volumesWith({ mapsIds, tmpfsTakesUserXattrs });

let helperBytes: Uint8Array | undefined;
const helper = (): Uint8Array => {
  helperBytes ??= readFileSync(cserviceBytes);
  return helperBytes;
};

/** Write the helper to the staging tmpfs and open it as a read-only mount of its own. */
const helperSteps = (path: string, bytes = helper()): Op[] => [
  sys.openat(sys.AT_FDCWD, path, sys.O_WRONLY | sys.O_CREAT | sys.O_EXCL, 0o755, DIR),
  { call: "write", args: [DIR, { data: bytes, text: "cservice" }, bytes.length], want: bytes.length },
  { call: "fchmod", args: [DIR, 0o755] },
  sys.close(DIR),
  sys.openTree(sys.AT_FDCWD, path, sys.OPEN_TREE_CLONE, SERVICE),
  sys.mountSetattr(SERVICE, sys.MOUNT_ATTR_RDONLY | NOSUID | NODEV),
];
