// Images that lie: links and false files where the start of a container makes directories, mounts, opens and writes.
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { GuestOSMount } from "../../../proto/gen/proto.js";
import type { Module } from "../../../src/cmld/module.ts";
import { AT_FDCWD, OPEN_TREE_CLONE, openTree } from "../../../src/sys/calls.ts";
import { type Op, Reg } from "../../../src/sys/op.ts";
import { type Attack, type Ground, type Guest, inside, lacking, without } from "../attack.ts";
import { naive } from "../weak.ts";

/** In place of what busybox' image has there. */
function link(root: string, path: string, target: string): void {
  rmSync(join(root, path), { recursive: true, force: true });
  symlinkSync(target, join(root, path));
}

const { EMPTY } = GuestOSMount.Type;
const tmpfs = (mount_point: string) => ({
  mount_point,
  image_file: "t",
  fs_type: "tmpfs",
  mount_type: EMPTY,
});

/** It has won if the bait is not empty, whatever the start has come to. */
const baiting =
  (guest: Guest, script = "held started") =>
  async (g: Ground): Promise<string> => {
    const end = await inside(g, guest, script);
    const found = await g.baited();
    return found.length > 0 ? `won: ${found} outside` : end;
  };

/** Without attaching what the program mounts at one of its own places. */
const unattached =
  (path: string) =>
  (ops: readonly Op[]): readonly Op[] => {
    const at = ops.findIndex((op) => op.call === "openat2" && op.args[1] === path);
    const attach = ops.findIndex((op, i) => i > at && op.call === "move_mount");
    if (at < 0 || attach < 0) throw new Error(`nothing is attached at ${path}`);
    return ops.toSpliced(attach, 1);
  };

const COPY = new Reg(15);

/** /dev/null of the image as what lies over files. */
function maskedByImage(ops: readonly Op[]): readonly Op[] {
  const first = ops.findIndex((op) => op.call === "move_mount" && op.args[3] === "interrupts");
  const attach = ops[first]!;
  const own: Op = { ...attach, args: [COPY, ...attach.args.slice(1)] };
  return ops.toSpliced(first, 1, openTree(AT_FDCWD, "dev/null", OPEN_TREE_CLONE, COPY), own);
}

/** A daemon that writes a container's /etc/hosts by its path. */
const writesHosts: Module = {
  name: "writes hosts",
  ready: (_s, p) => writeFileSync(`/proc/${p.pid}/root/etc/hosts`, "127.0.0.1 localhost\n"),
};

const dataLink = (name: string, target: (bait: string) => string): Guest => ({
  name,
  writable: true,
  fill: (root, bait) => link(root, "data", target(bait)),
  mounts: [tmpfs("/data/made/here")],
});
const upwards = (bait: string): string => `${"../".repeat(12)}${bait.slice(1)}`;

const linkedData = dataLink("linked-data", (bait) => bait);
const linkedUp = dataLink("linked-up", upwards);
const linkedDots = dataLink("linked-dots", (bait) => `bin/${upwards(bait)}`);

const fakeProc: Guest = {
  name: "fake-proc",
  writable: true,
  fill(root) {
    mkdirSync(join(root, "proc/self/attr"), { recursive: true });
    for (const file of ["fake", "self/status", "self/attr/exec", "interrupts"])
      writeFileSync(join(root, "proc", file), "");
  },
};
const linked = (place: string): Guest => ({
  name: `linked-${place}`,
  writable: true,
  fill: (root) => link(root, place, "srv"),
});
const sbin: Guest = {
  name: "linked-sbin",
  writable: true,
  fill: (root, bait) => link(root, "sbin", bait),
};
const nullLink: Guest = {
  name: "linked-null",
  writable: true,
  fill(root) {
    for (const d of ["pts", "shm", "mqueue", "net"]) mkdirSync(join(root, "dev", d));
    writeFileSync(join(root, "etc/chosen"), "");
    link(root, "dev/null", "/etc/chosen");
  },
};
const hosts: Guest = {
  name: "linked-hosts",
  writable: true,
  fill(root, bait) {
    link(root, "etc/hosts", join(bait, "hosts"));
    writeFileSync(join(root, "etc/inittab"), "::respawn:/bin/sleep 1000000\n");
    symlinkSync("../bin/busybox", join(root, "sbin/init"));
  },
  init: ["/sbin/cservice", "init"],
};

const isLink = (path: string) => `[ -L ${path} ] && won "${path} is a link"; held "${path} is a directory"`;

export const images: readonly Attack[] = [
  {
    row: 3,
    name: "a fake /proc in the image",
    guest: fakeProc,
    attempt: `[ -e /proc/fake ] && won "the image's own"; grep -q ' /proc .* - proc ' /proc/self/mountinfo && held procfs; won "?"`,
    proof: { ...lacking("masks", "time"), program: unattached("/proc") },
  },
  {
    row: 4,
    name: "a mount point that is a link to a path of the host",
    guest: linkedData,
    attempt: baiting(linkedData),
    proof: naive,
  },
  {
    row: 4,
    name: "a mount point that is a link upwards",
    guest: linkedUp,
    attempt: baiting(linkedUp),
    proof: naive,
  },
  {
    row: 4,
    name: "a mount point that is a link through a directory and upwards",
    guest: linkedDots,
    attempt: baiting(linkedDots),
    proof: naive,
  },
  {
    row: 5,
    name: "/proc of the image is a link",
    guest: linked("proc"),
    attempt: isLink("/proc"),
    proof: { ...lacking("masks"), ...naive },
  },
  {
    row: 5,
    name: "/sys of the image is a link",
    guest: linked("sys"),
    attempt: isLink("/sys"),
    proof: { ...lacking("masks"), ...naive },
  },
  {
    row: 13,
    name: "the folder of the helper, which is brought by cmld, is a link",
    guest: sbin,
    attempt: baiting(sbin),
    proof: naive,
  },
  {
    row: 14,
    name: "/dev/null of the image is a link",
    guest: nullLink,
    attempt: `
      [ "$(stat -L -c %t:%T /proc/interrupts)" = 1:3 ] || won "/proc/interrupts is a file of the image"
      held "all are the host's"`,
    proof: { program: (ops) => maskedByImage(unattached("/dev")(ops)) },
  },
  {
    row: 17,
    name: "/dev of the image is a link",
    guest: linked("dev"),
    attempt: isLink("/dev"),
    proof: { ...lacking("masks"), ...naive },
  },
  {
    row: 18,
    name: "/etc/hosts, which the helper writes, is a link",
    guest: hosts,
    attempt: baiting(
      hosts,
      `for i in $(seq 100); do grep -q nameserver /etc/resolv.conf && held "the helper has written"; sleep 0.1; done`,
    ),
    proof: { modules: (all) => [...all, writesHosts] },
  },
  {
    row: 29,
    name: "out of the root directory",
    attempt: "attack climb",
    proof: { program: chrooted },
  },
  {
    row: 29,
    name: "the old root under or over the new one",
    attempt: `
      [ "$(stat -c %d:%i /)" = "$(stat -c %d:%i /bin/..)" ] || won "/bin/.. is another tree"
      n=$(awk '$5 == "/"' /proc/self/mountinfo | wc -l); [ $n = 1 ] || won "$n roots"
      umount -l / 2>/dev/null; ls /bin/attack > /dev/null || won "another root"
      held "one root"`,
    proof: { program: without(/^umount2\(".", 2\)/) },
  },
];

/** No pivot_root: what lies outside is only out of sight. */
function chrooted(ops: readonly Op[]): readonly Op[] {
  const second = ops.findLastIndex((op) => op.call === "chroot"); // back to the old root, by the call before
  return without(/^pivot_root/, /^umount2\("\.", 2\)/)(ops.toSpliced(second - 1, 2));
}
