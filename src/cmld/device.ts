// What cmld is told about the machine: device.conf, without which it does not run, and the machine's uuid, which scd
// takes from the device's certificate.
import { join } from "node:path";
import { TEXT_MAX } from "../lib/text.ts";
import { readBounded } from "../sys/file.ts";
import { type DeviceConfig, readDevice, readDeviceId } from "./config.ts";

/** `path`: /data/cml/device.conf, hosted /etc/cml/device.conf. */
export async function loadDevice(path: string): Promise<DeviceConfig> {
  const source = await readBounded(path, TEXT_MAX);
  if (!source) throw new Error(`${path} is missing`);
  try {
    return readDevice(source).config;
  } catch (cause) {
    throw new Error(path, { cause });
  }
}

/** The machine's uuid, once it has one. */
export async function loadDeviceId(base: string): Promise<string | undefined> {
  const path = join(base, "tokens/device_id.conf");
  const source = await readBounded(path, TEXT_MAX);
  try {
    return source && readDeviceId(source);
  } catch (cause) {
    throw new Error(path, { cause });
  }
}
