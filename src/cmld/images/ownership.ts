// Images of file systems that the kernel cannot map ids for (squashfs before Linux 6.2): an overlay over the image whose
// upper layer holds every inode with its owner shifted into the container's range, and no data (metacopy). It is made in
// one pass, lies in memory and is kept while cmld lives: nothing on a disk can stand between a verified image and what
// is mounted of it, and there is nothing to mend after a power cut.
//
// On these kernels the layers of an overlay must be attached somewhere, so they are in a mount namespace of their own,
// which a descriptor keeps alive. A container gets a mount of a new overlay, made there, attached nowhere. Its writable
// layer is part of the same overlay, since the kernel stacks two overlays at most and a guest brings its own.
import { chmod, lchown, lstat, readdir } from "node:fs/promises";
import { idsFrom } from "../../run/ids.ts";
import { elsewhere } from "../../run/launch.ts";
import * as sys from "../../sys/calls.ts";
import { EINVAL, ENODATA, EOPNOTSUPP, SysError } from "../../sys/error.ts";
import type { Fd } from "../../sys/fd.ts";
import { mem, Struct } from "../../sys/mem.ts";
import { mountSteps } from "../../sys/mounts.ts";
import { attempt, now } from "../../sys/now.ts";
import { type Op, Reg } from "../../sys/op.ts";
import { ID_RANGE } from "../containers.ts";
import { ATTRIBUTES, deliver, spare, writableSteps } from "./overlay.ts";

/** What an image has beyond a container's ids belongs to nobody. */
const NOBODY = 65534;
/** Inodes of the layer with the owners: a bound on the kernel memory that an image can take, about 1 KiB each. */
const INODES = "1m";
/** Files that are looked at or changed at a time, by the runtime's own threads. */
const AT_ONCE = 64;

const known = new Map<string, boolean>();

/** Whether the kernel maps ids for this file system; it is asked once, with `mount`, which is spoilt by it. */
export async function mapsIds(type: string, mount: Fd): Promise<boolean> {
  const answer = known.get(type) ?? (await ask(mount));
  known.set(type, answer);
  return answer;
}

async function ask(mount: Fd): Promise<boolean> {
  using ids = await idsFrom(1, ID_RANGE);
  const result = attempt(sys.mountSetattr(mount.n, sys.MOUNT_ATTR_IDMAP, 0, ids.n));
  if (result < 0 && result !== -EINVAL) throw new SysError(-result, "mapping the ids of a mount");
  return result >= 0;
}

const [FS, MNT] = [new Reg(0), new Reg(1)];

export interface Shifted {
  /** The mount namespace with the image on /lower and the owners on /shift. */
  readonly layers: Fd;
  readonly inodes: number;
}

/** The pass. `image`: a mount of it that is attached nowhere; it is used up. `stage`: an empty directory. */
export async function shift(image: Fd, uidStart: number, stage: string): Promise<Shifted> {
  using failed = new DisposableStack();
  const layers = failed.use(spare());
  using whole = spare();
  elsewhere([
    sys.unshare(sys.CLONE_NEWNS),
    sys.mount("none", "/", "none", sys.MS_REC | sys.MS_PRIVATE),
    sys.mount("tmpfs", stage, "tmpfs", 0, "mode=0700,size=64k,nr_inodes=64"),
    sys.chdir(stage),
    ...["lower", "shift", "top"].map((name) => sys.mkdir(name, 0o700)),
    sys.moveMount(image.n, sys.AT_FDCWD, "lower"),
    sys.mount("tmpfs", "shift", "tmpfs", 0, `mode=0755,size=25%,nr_inodes=${INODES}`),
    sys.mkdir("shift/upper", 0o755),
    sys.mkdir("shift/work", 0o755),
    ...mountSteps(
      "overlay",
      "lowerdir=lower,upperdir=shift/upper,workdir=shift/work,metacopy=on",
      ATTRIBUTES,
      FS,
      MNT,
    ),
    ...deliver(MNT, whole),
    sys.openat(sys.AT_FDCWD, "/proc/self/ns/mnt", sys.O_RDONLY, 0, FS),
    ...deliver(FS, layers),
    // Of the machine's own mounts nothing stays in here.
    sys.pivotRoot(".", "."),
    sys.umount2(".", sys.MNT_DETACH),
  ]);
  const inodes = await chownAll(`/proc/self/fd/${whole.n}`, uidStart);
  failed.move();
  return { layers, inodes };
}

/** A mount for one container. `top`: the bounds of a tmpfs that takes what it writes; undefined: read-only. */
export function mountShifted({ layers }: Shifted, uidStart: number, top?: string): Fd {
  using failed = new DisposableStack();
  const place = failed.use(spare());
  const lower = "lowerdir=shift/upper:lower,metacopy=on";
  elsewhere([
    sys.setns(layers.n, sys.CLONE_NEWNS),
    sys.unshare(sys.CLONE_NEWNS), // a copy, that ends with this child
    ...(top === undefined
      ? [
          ...mountSteps("overlay", `${lower},ro`, ATTRIBUTES | sys.MOUNT_ATTR_RDONLY, FS, MNT),
          ...deliver(MNT, place),
        ]
      : writableSteps(lower, uidStart, top, place)),
  ]);
  failed.move();
  return place;
}

interface Inode {
  readonly path: string;
  readonly uid: number;
  readonly gid: number;
  /** With the bits that a change of owner clears. */
  readonly mode: number;
  readonly capability: Uint8Array<ArrayBuffer> | undefined;
}

/** Shift the owner of everything below `root`. Nobody else has this tree, and links are not followed. */
async function chownAll(root: string, uidStart: number): Promise<number> {
  const S_IFMT = 0o170000;
  const S_IFREG = 0o100000;
  const SPECIAL = 0o6000; // S_ISUID | S_ISGID
  const found: Inode[] = [];
  // All is read before anything is changed: an inode with two names is two inodes as soon as one of them is.
  const read = async (path: string): Promise<void> => {
    const { uid, gid, mode } = await lstat(path);
    const capability = (mode & S_IFMT) === S_IFREG && mode & 0o111 ? capabilityOf(path) : undefined;
    found.push({ path, uid, gid, mode, capability });
  };
  const folders = [`${root}/.`];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    await read(folder);
    const entries = await readdir(folder, { withFileTypes: true });
    for (const e of entries) if (e.isDirectory()) folders.push(`${folder}/${e.name}`);
    const files = entries.filter((e) => !e.isDirectory()).map((e) => `${folder}/${e.name}`);
    await inParallel(files, read);
  }
  const mapped = (id: number) => uidStart + (id < ID_RANGE ? id : NOBODY);
  await inParallel(found, async ({ path, uid, gid, mode, capability }) => {
    await lchown(path, mapped(uid), mapped(gid));
    if ((mode & S_IFMT) === S_IFREG && mode & SPECIAL) await chmod(path, mode & 0o7777);
    if (capability) setCapability(path, capability, uidStart);
  });
  return found.length;
}

async function inParallel<T>(list: readonly T[], act: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < list.length) await act(list[next++]!);
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, list.length) }, worker));
}

// linux/capability.h: struct vfs_ns_cap_data is vfs_cap_data and the root's id; the revision is in the top byte.
const NAME = "security.capability";
const [REVISION_2, REVISION_3, REVISION_MASK] = [0x02000000, 0x03000000, 0xff000000];
const [SIZE_2, SIZE_3] = [20, 24];

/** A file's capabilities, in the form that means root of the initial user namespace. */
function capabilityOf(path: string): Uint8Array<ArrayBuffer> | undefined {
  const value = mem(SIZE_3);
  const get: Op = { call: "lgetxattr", args: [path, NAME, value, value.length] };
  const result = attempt(get);
  if (result === -ENODATA || result === -EOPNOTSUPP) return undefined;
  if (result < 0) throw new SysError(-result, `${NAME} of ${path}`);
  const revision = new DataView(value.buffer).getUint32(0, true) & REVISION_MASK;
  return result === SIZE_2 && revision === REVISION_2 ? value : undefined;
}

/** The same capabilities, for root of the container alone. */
function setCapability(path: string, value: Uint8Array<ArrayBuffer>, uidStart: number): void {
  const flags = (new DataView(value.buffer).getUint32(0, true) & ~REVISION_MASK) | REVISION_3;
  const data = new Struct(SIZE_3).u32(flags).raw(value.subarray(4, SIZE_2)).u32(uidStart).bytes;
  now({ call: "lsetxattr", args: [path, NAME, data, data.length, 0] });
}
