// Devices that no container gets, whatever its rules say: with them it would own the machine, or another container. A
// rule that names many devices is bounded by them.
import { readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { ENOENT, ENOTDIR, isErrno } from "../../sys/error.ts";
import { deviceOf } from "./nodes.ts";
import { type Device, type DeviceRule, parseDeviceRule, ruleOf } from "./rules.ts";

/** Documentation/admin-guide/devices.txt, linux/miscdevice.h. */
export const FIXED: readonly (readonly [rule: string, what: string])[] = [
  ["c 1:1", "/dev/mem"],
  ["c 1:2", "/dev/kmem"],
  ["c 1:4", "/dev/port"],
  ["c 1:11", "/dev/kmsg, the kernel's log"],
  ["c 10:130", "/dev/watchdog"],
  ["c 10:144", "/dev/nvram"],
  ["c 10:224", "/dev/tpm0"],
  ["c 10:231", "/dev/snapshot, the memory of a machine that sleeps"],
  ["c 10:234", "/dev/btrfs-control"],
  ["c 10:236", "/dev/mapper/control"],
  ["c 10:237", "/dev/loop-control"],
  ["b 7:*", "loop devices: images and volumes of containers"],
];

/** Drivers whose number the kernel chooses, or that have a number of their own: /proc/devices. */
export const DRIVERS: readonly (readonly [kind: "b" | "c", driver: string, what: string])[] = [
  ["b", "device-mapper", "encrypted and verified volumes"],
  ["c", "tpm", "/dev/tpmrm0"],
  ["c", "watchdog", "/dev/watchdog0"],
  ["c", "cpu/msr", "registers of the processor"],
];

const fixed = FIXED.map(([rule]) => parseDeviceRule(rule));

function drivers(): DeviceRule[] {
  const [characters = "", blocks = ""] = readFileSync("/proc/devices", "utf8").split("Block devices:");
  return DRIVERS.flatMap(([kind, driver]) =>
    [...(kind === "b" ? blocks : characters).matchAll(/^\s*(\d+) (\S+)$/gm)]
      .filter(([, , name]) => name === driver)
      .map(([, major]) => parseDeviceRule(`${kind} ${major}:*`)),
  );
}

const numbers = (text: string): readonly [major: number, minor: number] => {
  const [major, minor] = text.trim().split(":").map(Number);
  return [major!, minor!];
};

const orNothing = <T>(read: () => T): T | undefined => {
  try {
    return read();
  } catch (e) {
    if (isErrno(e, ENOENT) || isErrno(e, ENOTDIR)) return undefined;
    throw e;
  }
};
const list = (folder: string): string[] => orNothing(() => readdirSync(folder)) ?? [];

/** A block device, the disk that it is part of, and what both are made of. */
function withDisk(folder: string, found: Map<string, Device>): void {
  const dev = orNothing(() => readFileSync(join(folder, "dev"), "utf8").trim());
  if (dev === undefined || found.has(`b ${dev}`)) return;
  const [major, minor] = numbers(dev);
  found.set(`b ${dev}`, { kind: "b", major, minor });
  if (orNothing(() => statSync(join(folder, "partition")))) withDisk(dirname(folder), found);
  for (const slave of list(join(folder, "slaves")))
    withDisk(realpathSync(join(folder, "slaves", slave)), found);
  commands(join(folder, "device"), 2, found);
}

/** The character devices that take commands for a disk: SCSI generic, bsg, NVMe. */
function commands(folder: string, depth: number, found: Map<string, Device>): void {
  for (const entry of orNothing(() => readdirSync(folder, { withFileTypes: true })) ?? []) {
    if (entry.isDirectory() && depth > 0) commands(join(folder, entry.name), depth - 1, found);
    if (entry.name !== "dev") continue;
    const path = join(folder, "dev");
    const [major, minor] = numbers(readFileSync(path, "utf8"));
    const kind = /\/block\//.test(path) ? "b" : "c";
    if (kind === "c") found.set(`c ${major}:${minor}`, { kind, major, minor });
  }
}

/** Disks that the machine itself has mounted or swaps to. */
export function ownDisks(): Device[] {
  const found = new Map<string, Device>();
  const used = new Set(
    readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .flatMap((line) => line.split(" ")[2] ?? []),
  );
  for (const line of readFileSync("/proc/swaps", "utf8").split("\n").slice(1)) {
    const path = line.split(/\s/)[0];
    const stat = path?.startsWith("/") ? orNothing(() => statSync(path)) : undefined;
    if (!stat) continue;
    const { major, minor } = deviceOf("b", stat.isBlockDevice() ? stat.rdev : stat.dev);
    used.add(`${major}:${minor}`);
  }
  for (const dev of used) {
    const folder = orNothing(() => realpathSync(`/sys/dev/block/${dev}`));
    if (folder) withDisk(folder, found);
  }
  return [...found.values()];
}

/** All of them, as the machine is now. */
export const closedDevices = (): DeviceRule[] => [...fixed, ...drivers(), ...ownDisks().map(ruleOf)];
