// Devices of the device-mapper, made and removed beside the event loop: loading a table of dm-integrity writes its
// journal, removing one empties it, and both wait for the disk.
import { existsSync, rmSync, statSync } from "node:fs";
import { AT_FDCWD, mknodat, O_RDWR, openat } from "../sys/calls.ts";
import * as dm from "../sys/dm.ts";
import { EBUSY, EEXIST, ENODEV, ENOENT, ENXIO, isErrno, SysError } from "../sys/error.ts";
import { now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { errand } from "./hand.ts";
import { modules } from "./kmod.ts";

const CONTROL = new Reg(0);
/** Writing the largest journal (64 MiB) to a slow card. */
const LIMIT_MS = 120_000;

export interface Device {
  readonly name: string;
  readonly uuid?: string;
  readonly targets: readonly dm.Target[];
  readonly readOnly?: boolean;
  /** Its table has a key: the kernel wipes what it was told, and so do we. */
  readonly secret?: boolean;
  /** What the child does first: a key for its own keyring. */
  readonly before?: readonly Op[];
}

/** One that has been created. */
export interface Created extends Device {
  readonly number: number;
}

/** Whether the kernel has a device-mapper with these kinds of target; their modules are loaded when it is first asked. */
export async function mapperWith(
  kinds: readonly string[],
  names: readonly string[],
  maybe: readonly string[],
): Promise<boolean> {
  await modules(names, maybe);
  try {
    const asked = dm.targets();
    dm.ask(asked);
    const there = dm.kinds(asked);
    return kinds.every((kind) => there.includes(kind));
  } catch (e) {
    if (isErrno(e, ENOENT) || isErrno(e, ENODEV) || isErrno(e, ENXIO)) return false;
    throw e;
  }
}

async function told(requests: readonly dm.Request[], before: readonly Op[] = []): Promise<void> {
  const open = openat(AT_FDCWD, dm.CONTROL, O_RDWR, 0, CONTROL);
  const first = [...before, open];
  try {
    await errand([], [...first, ...requests.map((r) => dm.toKernel(CONTROL, r))], LIMIT_MS);
  } catch (cause) {
    const request =
      cause instanceof SysError && cause.step !== undefined && requests[cause.step - first.length];
    throw request ? dm.refusal(request, (cause as SysError).errno) : cause;
  }
}

/** Give a name to a device that has no table yet: its number, as mknod(2) has it. */
export const create = (name: string, uuid?: string): number => dm.ask(dm.create(name, uuid)).device;

/** Put tables into devices that have been created, in order, by one child, and make their nodes; resolves with the nodes'
 * paths. On failure they are removed. */
export async function establish(
  devices: readonly (Device & { readonly number: number })[],
): Promise<string[]> {
  const tables = devices.map((d) => dm.load(d.name, d.targets, d));
  const requests = devices.flatMap((d, i) => [tables[i]!, dm.resume(d.name)]);
  try {
    await told(
      requests,
      devices.flatMap((d) => d.before ?? []),
    );
    return devices.map((d) => node(d.name, d.number));
  } catch (e) {
    for (const d of devices.toReversed()) await deactivate(d.name).catch(() => {});
    throw e;
  } finally {
    devices.forEach((d, i) => {
      if (d.secret) tables[i]!.bytes.fill(0);
    });
  }
}

/** Make one device and its node; resolves with the node's path. The caller has written down already that it is to be
 * removed (a ledger). */
export async function activate(d: Device): Promise<string> {
  const [path] = await establish([{ ...d, number: create(d.name, d.uuid) }]);
  return path!;
}

/** /dev/mapper/NAME, also where a udev may make it first. */
export function node(name: string, device: number): string {
  const path = dm.devicePath(name);
  const S_IFBLK = 0o060000;
  const make = mknodat(AT_FDCWD, path, S_IFBLK | 0o600, device);
  now({ ...make, allow: EEXIST });
  if (statSync(path).rdev === device) return path;
  rmSync(path); // of a device that is no more
  now(make);
  return path;
}

/** Remove the device, there or not. One that is still open goes when it is closed. */
export async function deactivate(name: string): Promise<void> {
  if (existsSync(dm.CONTROL)) {
    try {
      await told([dm.remove(name)]);
    } catch (e) {
      if (isErrno(e, EBUSY)) await told([dm.remove(name, true)]);
      else if (!isErrno(e, ENXIO)) throw e;
    }
  }
  rmSync(dm.devicePath(name), { force: true });
}
