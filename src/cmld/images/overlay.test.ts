import { expect, test } from "bun:test";
import { Fd } from "../../sys/fd.ts";
import { show } from "../../sys/op.ts";
import { lockSteps } from "../locked.ts";
import { overSteps } from "./overlay.ts";

test("an overlay that the parent mounts: in a namespace of its own, the layer on top the container's", () => {
  const [image, directory, place] = [new Fd(10), new Fd(12), new Fd(11)];
  const range = { uidStart: 100000, stage: "/run/cml/root" };
  const steps = overSteps(image, directory, range, "mode=0755,size=25%", place);
  expect(steps.map(show)).toEqual([
    "unshare(131072)", // CLONE_NEWNS
    'mount("none", "/", "none", 278528, 0)', // MS_REC | MS_PRIVATE
    'mount("tmpfs", "/run/cml/root", "tmpfs", 0, "mode=0700,size=64k,nr_inodes=64")',
    'chdir("/run/cml/root")',
    'mkdirat(-100, "lower", 448)',
    'mkdirat(-100, "top", 448)',
    'move_mount(10, "", -100, "lower", 4)',
    'mount("tmpfs", "top", "tmpfs", 4, "mode=0755,size=25%")', // MS_NODEV
    'mkdirat(-100, "top/upper", 493)',
    'mkdirat(-100, "top/work", 493)',
    'fchownat(-100, "top/upper", 100000, 100000, 256)',
    'fsopen("overlay", 1) -> r0',
    'fsconfig(r0, 1, "lowerdir", "/proc/self/fd/12", 0)',
    'fsconfig(r0, 1, "upperdir", "top/upper", 0)',
    'fsconfig(r0, 1, "workdir", "top/work", 0)',
    "fsconfig(r0, 6, 0, 0, 0)",
    "fsmount(r0, 1, 20) -> r1", // MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME
    "close(r0)",
    "dup3(r1, 11, 524288)", // O_CLOEXEC
    "close(r1)",
  ]);
});

test("flags are locked by a copy in another user namespace; the descriptors keep their numbers", () => {
  const mounts = [
    { fd: new Fd(10), isFile: false },
    { fd: new Fd(11), isFile: true },
  ];
  expect(lockSteps(mounts, "/run/cml/root").map(show)).toEqual([
    "unshare(131072)",
    'mount("none", "/", "none", 278528, 0)',
    'mount("tmpfs", "/run/cml/root", "tmpfs", 0, "mode=0700,size=64k,nr_inodes=1k")',
    'chdir("/run/cml/root")',
    'mkdirat(-100, "0", 448)',
    'move_mount(10, "", -100, "0", 4)',
    'mknodat(-100, "1", 33152, 0)',
    'move_mount(11, "", -100, "1", 4)',
    "unshare(268566528)", // CLONE_NEWUSER | CLONE_NEWNS
    'open_tree(-100, "0", 524289) -> r0',
    "dup3(r0, 10, 524288)",
    "close(r0)",
    'open_tree(-100, "1", 524289) -> r0',
    "dup3(r0, 11, 524288)",
    "close(r0)",
  ]);
});
