// Device nodes in a container's /dev. The tmpfs is of the host's user namespace, so that only we can make nodes in it;
// but its folders are the container's, who may have put anything there: everything is resolved beneath the tmpfs, one
// component after the other, and no link is followed.
import { fstatSync, readdirSync, readFileSync } from "node:fs";
import * as sys from "../../sys/calls.ts";
import { packed, unpacked } from "../../sys/devnum.ts";
import { EEXIST, ENOENT, isErrno, SysError } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { attempt, now } from "../../sys/now.ts";
import type { Device, DeviceRule } from "./rules.ts";

export interface Node extends Device {
  /** Below /dev: "bus/usb/001/002". */
  readonly path: string;
  readonly mode: number;
}

const [S_IFMT, S_IFCHR, S_IFBLK] = [0o170000, 0o020000, 0o060000];
const typeOf = (d: Device): number => (d.kind === "b" ? S_IFBLK : S_IFCHR);

const number = (d: Device): number => packed(d.major, d.minor);

/** The device that a number of the C library means. */
export const deviceOf = (kind: Device["kind"], rdev: number): Device => ({
  kind,
  ...unpacked(rdev),
});

/** Names as the kernel gives them (drivers/base/core.c), and nothing that leads elsewhere. */
const NAME = /^[A-Za-z0-9_:+,.-]{1,64}$/;
export const isNodePath = (path: string): boolean => {
  const parts = path.split("/");
  return parts.length <= 8 && parts.every((p) => NAME.test(p) && p !== "." && p !== "..");
};

export const BENEATH =
  sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS | sys.RESOLVE_NO_XDEV;
const FOLDER = sys.O_PATH | sys.O_DIRECTORY;

/** The folder of a node and its name in it; folders that are missing are made. */
export function folderOf(dev: Fd, path: string, owner: number): { folder: Fd; name: string } {
  const parts = path.split("/");
  const name = parts.pop()!;
  let folder = new Fd(now(sys.openat2(dev.n, ".", FOLDER, BENEATH)));
  for (const part of parts) {
    using above = folder;
    const made = attempt(sys.mkdirat(above.n, part, 0o755)) === 0;
    folder = new Fd(now(sys.openat2(above.n, part, FOLDER, BENEATH)));
    if (made) now({ call: "fchownat", args: [folder.n, "", owner, owner, sys.AT_EMPTY_PATH] });
  }
  return { folder, name };
}

/** Open a node without using it; undefined if it is not there, or is something else. */
function find(folder: Fd, name: string, node: Device): Fd | undefined {
  const n = attempt(sys.openat2(folder.n, name, sys.O_PATH | sys.O_NOFOLLOW, BENEATH));
  if (n < 0) return undefined;
  const fd = new Fd(n);
  const { mode, rdev } = fstatSync(n);
  if ((mode & S_IFMT) === typeOf(node) && rdev === number(node)) return fd;
  fd.close();
  return undefined;
}

/** Make a node that belongs to `owner`. One that is there already is left as it is. */
export function makeNode(dev: Fd, node: Node, owner: number): void {
  const { folder, name } = folderOf(dev, node.path, owner);
  using _folder = folder;
  const made = attempt(sys.mknodat(folder.n, name, typeOf(node), number(node)));
  using fd = find(folder, name, node);
  if (made === -EEXIST && fd) return;
  if (!fd) throw new Error(`/dev/${node.path} cannot be made: something else is there`);
  now({ call: "fchownat", args: [fd.n, "", owner, owner, sys.AT_EMPTY_PATH] });
  now(sys.fchmodat(sys.AT_FDCWD, `/proc/self/fd/${fd.n}`, node.mode)); // no other way with O_PATH before Linux 6.6
}

/** The same in a tree that nobody else has seen yet: quicker, for there is nothing to beware of. */
export function layNode(dev: Fd, node: Node, owner: number): void {
  const own = (path: string) => now(sys.fchownat(dev.n, path, owner, owner));
  for (let at = node.path.indexOf("/"); at > 0; at = node.path.indexOf("/", at + 1)) {
    const folder = node.path.slice(0, at);
    if (attempt(sys.mkdirat(dev.n, folder, 0o755)) === 0) own(folder);
  }
  const made = attempt(sys.mknodat(dev.n, node.path, typeOf(node), number(node)));
  if (made < 0) throw new SysError(-made, `mknod /dev/${node.path}`);
  now(sys.fchmodat(dev.n, node.path, node.mode)); // mknod obeys the umask
  own(node.path);
}

/** Remove a node if it is still that of the device. */
export function removeNode(dev: Fd, node: Node): void {
  const at = node.path.lastIndexOf("/");
  const n = attempt(sys.openat2(dev.n, at < 0 ? "." : node.path.slice(0, at), FOLDER, BENEATH));
  if (n < 0) return;
  using folder = new Fd(n);
  const name = node.path.slice(at + 1);
  using fd = find(folder, name, node);
  if (fd) now({ ...sys.unlinkat(folder.n, name), allow: ENOENT });
}

const S_MODE = 0o777;
/** root and whoever shares its group; the container's own udev, or root, gives it to others. */
const MODE = 0o660;

/** The node of a device as the kernel names it, if there is such a device now. */
export function nodeOf(d: Device): Node | undefined {
  let text: string;
  try {
    text = readFileSync(`/sys/dev/${d.kind === "b" ? "block" : "char"}/${d.major}:${d.minor}/uevent`, "utf8");
  } catch (e) {
    if (isErrno(e, ENOENT)) return undefined;
    throw e;
  }
  const path = /^DEVNAME=(.+)$/m.exec(text)?.[1];
  if (path === undefined || !isNodePath(path)) return undefined;
  const mode = /^DEVMODE=0?([0-7]{1,4})$/m.exec(text)?.[1];
  return { ...d, path, mode: mode === undefined ? MODE : Number.parseInt(mode, 8) & S_MODE };
}

/** The nodes of all devices of a rule that there are now. */
export function nodesOf(rule: DeviceRule): Node[] {
  const kinds = rule.kind === "a" ? (["b", "c"] as const) : [rule.kind];
  return kinds.flatMap((kind) => {
    const minors =
      rule.minor !== undefined
        ? [rule.minor]
        : readdirSync(`/sys/dev/${kind === "b" ? "block" : "char"}`)
            .filter((name) => name.startsWith(`${rule.major}:`))
            .map((name) => Number(name.split(":")[1]));
    return minors.flatMap((minor) => nodeOf({ kind, major: rule.major, minor }) ?? []);
  });
}
