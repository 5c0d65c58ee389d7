// Devices as /sys tells of them, in the form of the kernel's events. Some of its files wait for a lock that a driver may
// hold for seconds (a USB device that is being reset), so nothing here is read on the event loop.
import { readdir, readFile, readlink } from "node:fs/promises";
import { basename } from "node:path";
import { EIO, ENODEV, ENOENT, ENOTDIR, isErrno } from "./error.ts";
import type { Uevent } from "./uevent.ts";

/** A number of a device, as in "c 189:3". */
export interface Numbered {
  readonly kind: "b" | "c";
  readonly major: number;
  readonly minor: number;
}

const gone = (e: unknown): boolean => [ENOENT, ENODEV, ENOTDIR, EIO].some((errno) => isErrno(e, errno));

/** undefined where the device has gone meanwhile, or has no such file. */
async function unlessGone<T>(read: Promise<T>): Promise<T | undefined> {
  try {
    return await read;
  } catch (e) {
    if (gone(e)) return undefined;
    throw e;
  }
}

/** A file of a device: "serial" of "/devices/…/1-1". */
export const attribute = async (path: string, name: string, sys = "/sys"): Promise<string | undefined> =>
  (await unlessGone(readFile(`${sys}${path}/${name}`, "utf8")))?.replace(/\n$/, "");

/** The event that would have announced the device at `path`. */
export async function deviceAt(path: string, sys = "/sys"): Promise<Uevent | undefined> {
  const text = await attribute(path, "uevent", sys);
  const subsystem = await unlessGone(readlink(`${sys}${path}/subsystem`));
  if (text === undefined || subsystem === undefined) return undefined;
  const values = new Map([["SUBSYSTEM", basename(subsystem)]]);
  for (const line of text.split("\n")) {
    const equals = line.indexOf("=");
    if (equals > 0) values.set(line.slice(0, equals), line.slice(equals + 1));
  }
  return { action: "add", path, values };
}

/** Every device that has a number, and where it is. */
export async function numbered(sys = "/sys"): Promise<(Numbered & { path: string })[]> {
  const all: (Numbered & { path: string })[] = [];
  for (const [kind, folder] of [
    ["b", "block"],
    ["c", "char"],
  ] as const)
    for (const name of (await unlessGone(readdir(`${sys}/dev/${folder}`))) ?? []) {
      const found = /^(\d+):(\d+)$/.exec(name);
      const link = found && (await unlessGone(readlink(`${sys}/dev/${folder}/${name}`)));
      if (link) {
        const path = link.replace(/^(\.\.\/)+/, "/");
        all.push({ kind, major: Number(found[1]), minor: Number(found[2]), path });
      }
    }
  return all;
}

/** The number that an event names. */
export function numberOf(e: Uevent): Numbered | undefined {
  const [major, minor] = ["MAJOR", "MINOR"].map((name) => e.values.get(name));
  if (major === undefined || minor === undefined || !/^\d{1,4}$/.test(major) || !/^\d{1,7}$/.test(minor))
    return undefined;
  return {
    kind: e.values.get("SUBSYSTEM") === "block" ? "b" : "c",
    major: Number(major),
    minor: Number(minor),
  };
}
