// Flags of mounts that a container must keep.
//
// Root of a container may remount what is in its mount namespace, and so take a read-only or nodev from it, unless the
// kernel holds that flag as locked. It does when mounts are copied into a mount namespace that belongs to another user
// namespace. So we let it copy them: into the namespaces of a child that ends at once.
import { elsewhere } from "../run/launch.ts";
import * as sys from "../sys/calls.ts";
import type { Fd } from "../sys/fd.ts";
import { type Op, Reg } from "../sys/op.ts";

const COPY = new Reg(0);
const S_IFREG = 0o100000; // linux/stat.h

export interface Mounted {
  /** A mount that is attached nowhere. */
  readonly fd: Fd;
  readonly isFile: boolean;
}

/** `stage`: an empty directory. The descriptors keep their numbers and are the copies afterwards. */
export const lockSteps = (mounts: readonly Mounted[], stage: string): Op[] => [
  sys.unshare(sys.CLONE_NEWNS),
  sys.mount("none", "/", "none", sys.MS_REC | sys.MS_PRIVATE),
  sys.mount("tmpfs", stage, "tmpfs", 0, "mode=0700,size=64k,nr_inodes=1k"),
  sys.chdir(stage),
  ...mounts.flatMap(({ fd, isFile }, i) => [
    isFile ? sys.mknodat(sys.AT_FDCWD, `${i}`, S_IFREG | 0o600, 0) : sys.mkdir(`${i}`, 0o700),
    sys.moveMount(fd.n, sys.AT_FDCWD, `${i}`),
  ]),
  sys.unshare(sys.CLONE_NEWUSER | sys.CLONE_NEWNS),
  ...mounts.flatMap(({ fd }, i) => [
    sys.openTree(sys.AT_FDCWD, `${i}`, sys.OPEN_TREE_CLONE, COPY),
    sys.dup3(COPY, fd.n, sys.O_CLOEXEC),
    sys.close(COPY),
  ]),
];

/** Lock the flags that these mounts have. */
export function lockFlags(mounts: readonly Mounted[], stage: string): void {
  if (mounts.length > 0) elsewhere(lockSteps(mounts, stage));
}
