// The attackers' images: busybox with all its names, `attack`, and what the attack adds.
import { chmodSync, copyFileSync, existsSync, symlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { busyboxRoot } from "../host/world.ts";
import type { Guest } from "./attack.ts";

/** Made by the Makefile of attack.c. */
export const PROGRAM = resolve("out/attack");

export function fill(guest: Guest, root: string, bait: string): void {
  busyboxRoot(root);
  const bin = join(root, "bin");
  copyFileSync(PROGRAM, join(bin, "attack"));
  chmodSync(join(bin, "attack"), 0o755);
  const names = Bun.spawnSync([join(bin, "busybox"), "--list"])
    .stdout.toString()
    .trim()
    .split("\n");
  for (const name of names) if (!existsSync(join(bin, name))) symlinkSync("busybox", join(bin, name));
  guest.fill?.(root, bait);
}
