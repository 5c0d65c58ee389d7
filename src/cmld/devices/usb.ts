// Whose a USB device is. A configuration names it by vendor and product, serial number and, if it says so, by the port
// that it is plugged into; the first two are the device's own claim, which a device made for it can make as well.
//
// A token or PIN pad is nobody's: cmld's helpers use it, and no container sees it, neither the one that it belongs to
// nor one whose rules allow all of USB. What else is named goes to the containers that name it and run; one that wants
// it for itself has it alone. Pure; hotplug.ts puts it into practice.
import { basename } from "node:path";
import { ContainerTokenType, ContainerUsbType } from "../../../proto/gen/proto.js";
import type { Uevent } from "../../sys/uevent.ts";
import type { ContainerConfig } from "../config.ts";

export type UsbConfig = ContainerConfig["usb_configs"][number];

export interface UsbDevice {
  /** Below /sys. */
  readonly path: string;
  /** "1050:0407" */
  readonly id: string;
  /** "" if it says none. */
  readonly serial: string;
  /** The bus and the ports on the way to it: "1-4.2". */
  readonly port: string;
}

/** The device that an event of DEVTYPE usb_device speaks of. PRODUCT is "1050/407/512", hexadecimal. */
export function usbDevice(e: Uevent, serial = ""): UsbDevice | undefined {
  if (e.values.get("DEVTYPE") !== "usb_device") return undefined;
  const found = /^([0-9a-f]{1,4})\/([0-9a-f]{1,4})\//i.exec(e.values.get("PRODUCT") ?? "");
  if (!found) return undefined;
  return { path: e.path, id: canonical(`${found[1]}:${found[2]}`), serial, port: basename(e.path) };
}

/** "50:7" and "0050:0007" are the same. */
const canonical = (id: string): string =>
  id
    .split(":")
    .map((n) => n.toLowerCase().padStart(4, "0"))
    .join(":");

export const isMeant = (c: UsbConfig, d: UsbDevice): boolean =>
  canonical(c.id) === d.id && c.serial === d.serial && (c.port === "" || c.port === d.port);

/** Is this the token that protects this container's key? */
export const isTokenOf = (c: Pick<ContainerConfig, "token_type" | "usb_configs">, d: UsbDevice): boolean =>
  c.token_type === ContainerTokenType.USB &&
  c.usb_configs.some((u) => u.type === ContainerUsbType.TOKEN && isMeant(u, d));

/** The serial number of the token that protects a container's key. */
export const tokenSerial = (configs: readonly UsbConfig[]): string | undefined =>
  configs.find((c) => c.type === ContainerUsbType.TOKEN)?.serial;

/** A container that exists. */
export interface Claimant {
  readonly uuid: string;
  readonly name: string;
  readonly usb_configs: readonly UsbConfig[];
}

export interface Verdict {
  /** Who gets it. */
  readonly to: readonly string[];
  /** Nobody else, whatever its rules allow. */
  readonly closed: boolean;
  /** Containers that run and want it, and why they do not get it. */
  readonly refused: readonly (readonly [uuid: string, why: string])[];
}

/** `up`: containers that run, those that have the device already first, then in the order of their start. */
export function whose(d: UsbDevice, all: Iterable<Claimant>, up: readonly string[]): Verdict {
  const claims = new Map<string, { name: string; assign: boolean }>();
  for (const { uuid, name, usb_configs } of all) {
    for (const c of usb_configs) {
      if (!isMeant(c, d)) continue;
      if (c.type !== ContainerUsbType.GENERIC) return { to: [], closed: true, refused: [] };
      claims.set(uuid, { name, assign: c.assign || (claims.get(uuid)?.assign ?? false) });
    }
  }
  const to: string[] = [];
  const refused: (readonly [string, string])[] = [];
  let closed = false;
  for (const uuid of up) {
    const claim = claims.get(uuid);
    if (!claim) continue;
    const first = claims.get(to[0] ?? "");
    if (first && (closed || claim.assign))
      refused.push([uuid, `${first.name} has it${closed ? ", assigned" : ""}`]);
    else {
      to.push(uuid);
      closed = claim.assign;
    }
  }
  return { to, closed, refused };
}
