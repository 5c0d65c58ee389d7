// Overlays whose writable layer lies in memory.
//
// An overlay marks in xattrs of its upper layer what it hides of the lower ones. A container's child mounts overlays in
// its own user namespace, where the marks are user.* xattrs; a tmpfs takes those since Linux 6.6. Before, a directory
// of the image could not be replaced there, so on such kernels these overlays are mounted by us, in the initial user
// namespace: then the marks are trusted.* xattrs, which every tmpfs takes and no container can read or write. The
// overlay reads and copies with our rights what the container's own rights allowed it to (docs/decisions/overlay.md).
//
// The kernel wants the layers attached somewhere: a mount namespace that ends with the child that makes it. The overlay
// keeps them; it ends, with all that was written, when the container's mount namespace does.
import { elsewhere } from "../../run/launch.ts";
import * as sys from "../../sys/calls.ts";
import { EOPNOTSUPP, SysError } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { mountAsFd, mountSteps } from "../../sys/mounts.ts";
import { attempt, now } from "../../sys/now.ts";
import { type Op, Reg } from "../../sys/op.ts";

/** The ids of a container, and an empty directory to assemble its mounts on. */
export interface Range {
  readonly uidStart: number;
  readonly stage: string;
  log(line: string): void;
}

/** What every overlay of ours is mounted with, besides its layers. */
export const ATTRIBUTES = sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOATIME;

let takes: boolean | undefined;

/** Whether a tmpfs takes user.* xattrs; the kernel is asked once. */
export function tmpfsTakesUserXattrs(): boolean {
  if (takes !== undefined) return takes;
  using probe = mountAsFd("tmpfs", undefined, "size=64k,nr_inodes=16", ATTRIBUTES);
  const set: Op = { call: "lsetxattr", args: [`/proc/self/fd/${probe.n}/.`, "user.cml", null, 0, 0] };
  const result = attempt(set);
  if (result < 0 && result !== -EOPNOTSUPP) throw new SysError(-result, "a user.* xattr on a tmpfs");
  takes = result >= 0;
  return takes;
}

const [FS, MNT] = [new Reg(0), new Reg(1)];

/** A descriptor for a child that shares our table to put another one over. */
export const spare = (): Fd => new Fd(now(sys.fcntl(2, sys.F_DUPFD_CLOEXEC, 0)));
export const deliver = (from: Reg, to: Fd): Op[] => [sys.dup3(from, to.n, sys.O_CLOEXEC), sys.close(from)];

/** An overlay over `lower`, options of it, with a new tmpfs on ./top that belongs to the container's root; `bounds`
 * are that tmpfs' options. */
export const writableSteps = (lower: string, uidStart: number, bounds: string, place: Fd): Op[] => [
  sys.mount("tmpfs", "top", "tmpfs", sys.MS_NODEV, bounds),
  sys.mkdir("top/upper", 0o755),
  sys.mkdir("top/work", 0o755),
  sys.fchownat(sys.AT_FDCWD, "top/upper", uidStart, uidStart),
  ...mountSteps("overlay", `${lower},upperdir=top/upper,workdir=top/work`, ATTRIBUTES, FS, MNT),
  ...deliver(MNT, place),
];

/** The program that puts a writable layer over `directory` of `image`, a mount with the container's ids that is attached
 * nowhere, and the overlay into `place`. */
export const overSteps = (
  image: Fd,
  directory: Fd,
  { uidStart, stage }: Pick<Range, "uidStart" | "stage">,
  bounds: string,
  place: Fd,
): Op[] => [
  sys.unshare(sys.CLONE_NEWNS),
  sys.mount("none", "/", "none", sys.MS_REC | sys.MS_PRIVATE),
  sys.mount("tmpfs", stage, "tmpfs", 0, "mode=0700,size=64k,nr_inodes=64"),
  sys.chdir(stage),
  ...["lower", "top"].map((name) => sys.mkdir(name, 0o700)),
  sys.moveMount(image.n, sys.AT_FDCWD, "lower"),
  ...writableSteps(`lowerdir=/proc/self/fd/${directory.n}`, uidStart, bounds, place),
];

/** Do that; `image` is used up. */
export function mountOver(
  image: Fd,
  directory: Fd,
  range: Pick<Range, "uidStart" | "stage">,
  bounds: string,
): Fd {
  using failed = new DisposableStack();
  const place = failed.use(spare());
  elsewhere(overSteps(image, directory, range, bounds, place));
  failed.move();
  return place;
}
