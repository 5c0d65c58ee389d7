// Links that are swapped while cmld's child looks paths up: the calls of the product, again and again, and whole starts.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GuestOSMount } from "../../../proto/gen/proto.js";
import type { Module } from "../../../src/cmld/module.ts";
import { place } from "../../../src/cmld/modules/volumes.ts";
import { launch, reap } from "../../../src/run/launch.ts";
import { chdir, chroot, exit, mknodat } from "../../../src/sys/calls.ts";
import { EBADF, EEXIST, ENOENT } from "../../../src/sys/error.ts";
import type { Op, Reg } from "../../../src/sys/op.ts";
import { ended } from "../../../src/sys/poll.ts";
import { counts } from "../../counts.ts";
import { type Attack, type Ground, type Guest, inside } from "../attack.ts";
import { PROGRAM } from "../guest.ts";
import { naive, pause } from "../weak.ts";

const BATCH = 1000;
const { EMPTY } = GuestOSMount.Type;

/** As many as are wanted, against somebody who swaps "a" in the root between a folder and a link to the bait. */
async function race(one: (i: number, root: string) => Op[], confined: boolean): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "race-"));
  const [root, bait] = [join(folder, "root"), join(folder, "bait")];
  mkdirSync(join(root, "a"), { recursive: true });
  mkdirSync(bait);
  symlinkSync(bait, join(root, "z"));
  const racer = Bun.spawn([PROGRAM, "swap", join(root, "a"), join(root, "z")]);
  try {
    for (let from = 0; from < counts.symlinkResolutions; from += BATCH) {
      const ops = Array.from({ length: BATCH }, (_, i) => one(from + i, confined ? "" : root)).flat();
      const child = launch([chdir(root), ...(confined ? [chroot(".")] : []), ...ops, exit(0)]);
      await child.started();
      await ended(child.pidfd);
      reap(child.pidfd);
      child.pidfd.close();
      const found = readdirSync(bait);
      if (found.length > 0) return `won: ${found.length} outside after ${from + BATCH}`;
    }
    racer.kill(); // else the two may change places between the two looks
    await racer.exited;
    const within = readdirSync(join(root, "a")).length + readdirSync(join(root, "z")).length;
    return within > 0 ? `held: ${within} inside` : "won: nothing at all was made";
  } finally {
    racer.kill();
    await racer.exited;
    rmSync(folder, { recursive: true });
  }
}

/** What may happen to a call in a race. */
const unlucky = (op: Op): Op => ({
  ...op,
  allow: op.call === "openat2" ? ENOENT : op.call === "mkdirat" && op.args[1] === "a" ? EEXIST : EBADF,
});
/** The same lookup by path in the host's tree. */
const careless = (root: string) => (op: Op) => {
  if (op.call !== "openat2" || root === "") return op;
  const [dir, path, how] = op.args as [number, string, { data: Uint8Array; text: string }];
  const plain = new Uint8Array(how.data);
  plain.fill(0, 16); // struct open_how: flags, mode, resolve
  return { ...op, args: [dir, root + path, { data: plain, text: how.text }, 24] };
};

const S_IFREG = 0o100000;
/** A file in the place that a lookup has found: what a mount would lie on. */
const found = (i: number, root: string): Op[] =>
  place("/a", 0)
    .map((op) => (op.call === "move_mount" ? mknodat(op.args[2] as Reg, `f${i}`, S_IFREG | 0o600, 0) : op))
    .map(unlucky)
    .map(careless(root));
/** A mount point, and the folder above it. */
const point = (i: number, root: string): Op[] =>
  place(`/a/d${i}/e`, 0, "directory")
    .filter((op) => op.call !== "move_mount")
    .map(unlucky)
    .map(careless(root));

/** Somebody who swaps what the start of a container is about to make. */
const chaser: Module = {
  name: "chaser",
  attach(s, p) {
    const bait = join(s.host.base, "bait");
    const racer = Bun.spawn([PROGRAM, "chase", String(p.pid), "/raced", bait, String(s.uidStart)]);
    s.owned.use({ [Symbol.dispose]: () => racer.kill(9) });
  },
};
const tmpfs = (mount_point: string) => ({
  mount_point,
  image_file: "t",
  fs_type: "tmpfs",
  mount_type: EMPTY,
});
const raced: Guest = {
  name: "raced",
  writable: true,
  mounts: [tmpfs("/raced"), tmpfs("/raced/a/b/c")],
  extra: chaser,
};

async function starts(g: Ground): Promise<string> {
  let swapped = 0;
  for (let i = 0; i < counts.symlinkStarts; i++) {
    const end = await inside(g, raced, "[ -e /raced/z ] && held swapped; held alone");
    if (!end.includes("alone")) swapped++;
    const outside = await g.baited();
    if (outside.length > 0) return `won: ${outside} outside at start ${i + 1}`;
  }
  return `held: ${swapped} of ${counts.symlinkStarts} starts were raced`;
}

export const races: readonly Attack[] = [
  {
    row: 4,
    name: "a mount point that is swapped for a link out, at each lookup",
    attempt: () => race(found, true),
    proof: () => race(found, false),
    only: "host", // the calls are the same everywhere
  },
  {
    row: 12,
    name: "a folder that is swapped for a link out while directories are made in it",
    attempt: () => race(point, true),
    proof: () => race(point, false),
    only: "host",
  },
  {
    row: 4,
    name: "a folder that is swapped for a link out while containers start",
    attempt: starts,
    proof: {
      program(ops) {
        const all = naive.program(ops);
        const at = all.findIndex((op) => op.call === "openat2" && op.args[1] === "./raced/a");
        return [...all.slice(0, at), pause(5), ...all.slice(at)];
      },
    },
    only: "host", // where the one who swaps can stand outside
  },
];
