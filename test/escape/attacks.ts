// Every attack, by the file of attacks/ that it is in.
import type { Attack } from "./attack.ts";
import { devices as hotplug } from "./attacks/hotplug.ts";
import { kernel } from "./attacks/kernel.ts";
import { networks } from "./attacks/network.ts";

export const files: Readonly<Record<string, readonly Attack[]>> = { hotplug, kernel, network: networks };

export const attacks: readonly Attack[] = Object.values(files).flat();
