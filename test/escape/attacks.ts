// Every attack, by the file of attacks/ that it is in.
import type { Attack } from "./attack.ts";
import { configuration } from "./attacks/configuration.ts";
import { devices as hotplug } from "./attacks/hotplug.ts";
import { images } from "./attacks/images.ts";
import { kernel } from "./attacks/kernel.ts";
import { networks } from "./attacks/network.ts";
import { processes } from "./attacks/processes.ts";
import { races } from "./attacks/races.ts";
import { resources } from "./attacks/resources.ts";

export const files: Readonly<Record<string, readonly Attack[]>> = {
  configuration,
  hotplug,
  images,
  kernel,
  network: networks,
  processes,
  races,
  resources,
};

export const attacks: readonly Attack[] = Object.values(files).flat();
