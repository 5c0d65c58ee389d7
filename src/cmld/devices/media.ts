// Removable media in a container: /media/external/<node>, as the original has it.
//
// What a stick says is hostile. The kernel is never asked to try: we look at the first blocks ourselves and mount exactly
// one of three file systems, or nothing. Mounting reads from hardware that may be slow or broken, so a child does it and
// hands us the mount; nosuid, nodev and noexec are locked before the container gets it (locked.ts). It is attached by a
// second child that has become the container's root in its namespaces: whatever lies on the way there can lead it only
// to what the container has anyway, and keep it from us for as long as its time allows.
import { constants, type FileHandle, open } from "node:fs/promises";
import { errand } from "../../run/hand.ts";
import * as sys from "../../sys/calls.ts";
import { EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENXIO, EROFS, isErrno } from "../../sys/error.ts";
import { Fd, pair } from "../../sys/fd.ts";
import { mem } from "../../sys/mem.ts";
import { options } from "../../sys/mounts.ts";
import { now } from "../../sys/now.ts";
import { type Op, Reg } from "../../sys/op.ts";
import { handOver, receiveMessage } from "../../sys/scm.ts";
import type { Numbered } from "../../sys/sysfs.ts";
import { lockFlags } from "../locked.ts";
import { deviceOf } from "./nodes.ts";

export type FileSystem = "vfat" | "exfat" | "ext4";

/** A disk that spins up, or a file system whose journal is replayed. */
const MOUNT_MS = 30_000;
/** What a container's own file systems may take. */
const ATTACH_MS = 5_000;
/** All that the three say of themselves lies in here. */
const HEAD = 4096;

/** Which file system a medium holds, by its first 4096 bytes. Microsoft's FAT and exFAT specifications, section 3;
 * Documentation/filesystems/ext4/super.rst. */
export function probe(head: Uint8Array): FileSystem | undefined {
  if (head.length < HEAD) return undefined;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const text = (at: number, n: number) => Buffer.from(head.subarray(at, at + n)).toString("latin1");
  const boots = view.getUint16(510, true) === 0xaa55;
  if (boots && text(3, 8) === "EXFAT   ") return "exfat";
  const sector = view.getUint16(11, true);
  const cluster = head[13]!;
  const shaped =
    [512, 1024, 2048, 4096].includes(sector) &&
    cluster > 0 &&
    (cluster & (cluster - 1)) === 0 &&
    [1, 2].includes(head[16]!);
  const named = /^FAT1[26] {3}$/.test(text(54, 8)) || text(82, 8) === "FAT32   ";
  if (boots && shaped && named) return "vfat";
  if (view.getUint16(1024 + 0x38, true) === 0xef53) return "ext4";
  return undefined;
}

/** How each is mounted. An ext4 may say that errors are to panic the machine: here they never do. */
const OPTIONS: Record<FileSystem, (root: number) => string> = {
  vfat: (root) => `uid=${root},gid=${root},umask=0022,codepage=437,iocharset=ascii,utf8,errors=remount-ro`,
  exfat: (root) => `uid=${root},gid=${root},umask=0022,iocharset=utf8,errors=remount-ro`,
  ext4: () => "errors=remount-ro",
};

/** A container that is up, as far as media are concerned. */
export interface Host {
  readonly uidStart: number;
  readonly pid: number;
  readonly pidfd: Fd;
  /** An empty directory of the machine. */
  readonly stage: string;
}

export interface Medium extends Numbered {
  /** As below /dev. */
  readonly node: string;
  /** The number that no disk after it has (Linux 5.15), "" if it is not known. */
  readonly sequence: string;
}

/** Where it is mounted, below /media/external. */
export const placeOf = (m: Pick<Medium, "node">): string => m.node.replaceAll("/", "!");

const { O_RDONLY, O_NONBLOCK } = constants;

/** The device, if it is still the one that we mean. */
async function openDevice(m: Medium): Promise<FileHandle | undefined> {
  let file: FileHandle;
  try {
    file = await open(`/dev/${m.node}`, O_RDONLY | O_NONBLOCK);
  } catch (e) {
    if ([ENOENT, ENODEV, ENXIO].some((errno) => isErrno(e, errno))) return undefined;
    throw e;
  }
  const status = await file.stat();
  const { major, minor } = deviceOf("b", status.rdev);
  const number = status.isBlockDevice() && major === m.major && minor === m.minor;
  if (number && (m.sequence === "" || m.sequence === sequenceOf(file))) return file;
  await file.close();
  return undefined;
}

function sequenceOf(file: FileHandle): string {
  const BLKGETDISKSEQ = 0x80081280; // linux/fs.h
  const number = mem(8);
  now(sys.ioctl(file.fd, BLKGETDISKSEQ, number));
  return String(new DataView(number.buffer).getBigUint64(0, true));
}

/** What is on it. */
async function look(device: FileHandle): Promise<FileSystem | undefined> {
  const head = new Uint8Array(HEAD);
  const { bytesRead } = await device.read(head, 0, HEAD, 0);
  return probe(head.subarray(0, bytesRead));
}

const [FS, MNT, DIR, BELOW] = [0, 1, 2, 3].map((n) => new Reg(n)) as [Reg, Reg, Reg, Reg];
const { MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC } = sys;
const LOCKED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/** Mount it, attached nowhere, and hand it over; EBUSY if anybody uses it: the kernel would show us their mount. Asked by
 * the child, for what cmld has open any other child of its may have open for longer. `slot`: a number that is the child's
 * to use. */
export const mountOps = (
  type: FileSystem,
  source: string,
  root: number,
  readOnly: boolean,
  to: number,
  slot: number,
): Op[] => [
  sys.openat(sys.AT_FDCWD, source, sys.O_RDONLY | sys.O_NONBLOCK | sys.O_EXCL, 0, MNT),
  sys.close(MNT),
  sys.fsopen(type, FS),
  sys.fsconfig(FS, sys.FSCONFIG_SET_STRING, "source", source),
  ...options(FS, `${readOnly ? "ro," : ""}${OPTIONS[type](root)}`),
  sys.fsconfig(FS, sys.FSCONFIG_CMD_CREATE, null),
  sys.fsmount(FS, LOCKED, MNT),
  sys.dup3(MNT, slot),
  handOver(to, slot),
];

/** undefined: somebody uses it. */
async function mounted(
  device: FileHandle,
  type: FileSystem,
  root: number,
  readOnly: boolean,
): Promise<Fd | undefined> {
  const [ours, theirs] = pair(sys.SOCK_SEQPACKET);
  using receiving = ours;
  using sending = theirs;
  const source = `/proc/self/fd/${device.fd}`;
  try {
    const ops = mountOps(type, source, root, readOnly, sending.n, receiving.n);
    await errand([device.fd, sending.n, receiving.n], ops, MOUNT_MS);
  } catch (e) {
    if (isErrno(e, EBUSY)) return undefined;
    throw e;
  }
  const got = receiveMessage(receiving, 1);
  const fd = typeof got === "string" ? undefined : got.descriptors[0];
  if (!fd) throw new Error(`${type}: no mount came back`);
  return fd;
}

/** Become root of the container, in its tree. */
const enter = (pidfd: Fd): Op[] => [
  sys.setns(pidfd.n, sys.CLONE_NEWUSER | sys.CLONE_NEWNS),
  sys.close(pidfd.n),
  sys.setresgid(0),
  sys.setresuid(0),
  sys.umask(0o022),
];
const FOLDER = sys.O_PATH | sys.O_DIRECTORY;
const PLAIN = sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS;

/** Open /media/external/NAME, making what is missing; it lands in DIR. */
const goTo = (names: readonly string[]): Op[] => [
  sys.openat2(sys.AT_FDCWD, "/", FOLDER, PLAIN, 0, DIR),
  ...names.flatMap((name) => [
    sys.mkdirat(DIR, name, 0o755),
    sys.openat2(DIR, name, FOLDER, PLAIN, 0, BELOW),
    sys.dup3(BELOW, DIR),
    sys.close(BELOW),
  ]),
];

const attachOps = (mount: number, pidfd: Fd, place: string): Op[] => [
  ...enter(pidfd),
  ...goTo(["media", "external", place]),
  sys.moveMount(mount, DIR, ""),
];

/** For a root that is read-only: a little room of its own on /media. */
const roomOps = (pidfd: Fd): Op[] => [
  ...enter(pidfd),
  sys.openat2(sys.AT_FDCWD, "/media", FOLDER, PLAIN, 0, DIR),
  sys.fsopen("tmpfs", FS),
  ...options(FS, "mode=0755,size=64k,nr_inodes=64"),
  sys.fsconfig(FS, sys.FSCONFIG_CMD_CREATE, null),
  sys.fsmount(FS, LOCKED, MNT),
  sys.moveMount(MNT, DIR, ""),
];

/** Its user namespace: the pid is still its own if it lives after we have looked. */
function userNamespace(h: Host): Fd {
  const fd = new Fd(now(sys.openat(sys.AT_FDCWD, `/proc/${h.pid}/ns/user`, sys.O_RDONLY)));
  try {
    now(sys.pidfdSendSignal(h.pidfd.n, 0));
    return fd;
  } catch (e) {
    fd.close();
    throw e;
  }
}

/** Mount what is on a medium; undefined if there is nothing for us on it. Resolves to what it is. */
export async function insert(m: Medium, h: Host, readOnly: boolean): Promise<FileSystem | undefined> {
  const file = await openDevice(m);
  if (!file) return undefined;
  await using device = file;
  const type = await look(device);
  if (!type) return undefined;
  const found = await mounted(device, type, h.uidStart, readOnly);
  if (!found) return undefined;
  using mount = found;
  if (type === "ext4") {
    using userns = userNamespace(h);
    now(sys.mountSetattr(mount.n, sys.MOUNT_ATTR_IDMAP, 0, userns.n));
  }
  lockFlags([{ fd: mount, isFile: false }], h.stage);
  const attach = () => errand([mount.n, h.pidfd.n], attachOps(mount.n, h.pidfd, placeOf(m)), ATTACH_MS);
  try {
    await attach();
  } catch (e) {
    if (!isErrno(e, EROFS)) throw e;
    await errand([h.pidfd.n], roomOps(h.pidfd), ATTACH_MS);
    await attach();
  }
  return type;
}

/** Unmount a medium that has gone, if it is mounted. */
export async function eject(m: Pick<Medium, "node">, h: Pick<Host, "pidfd">): Promise<void> {
  const UMOUNT_NOFOLLOW = 8; // linux/fs.h
  const place = placeOf(m);
  try {
    await errand(
      [h.pidfd.n],
      [
        ...enter(h.pidfd),
        sys.openat2(sys.AT_FDCWD, "/media/external", FOLDER, PLAIN, 0, DIR),
        sys.fchdir(DIR),
        { ...sys.umount2(place, sys.MNT_DETACH | UMOUNT_NOFOLLOW), allow: EINVAL },
        { ...sys.unlinkat(DIR, place, sys.AT_REMOVEDIR), allow: EEXIST },
      ],
      ATTACH_MS,
    );
  } catch (e) {
    if (!isErrno(e, ENOENT)) throw e; // it never had one
  }
}
