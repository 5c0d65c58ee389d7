// Every attack, by the file of attacks/ that it is in.
import type { Attack } from "./attack.ts";
import { kernel } from "./attacks/kernel.ts";

export const files: Readonly<Record<string, readonly Attack[]>> = { kernel };

export const attacks: readonly Attack[] = Object.values(files).flat();
