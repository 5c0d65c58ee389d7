// cmld's first steps. On a device init starts us before the machine is ready, so that we are loaded by then. scd takes about as long
// to load as all that is ours, so it is started before the rest of us is loaded (docs/decisions/boot.md).
import { ownGate } from "../run/gate.ts";
import type { Fd } from "../sys/fd.ts";
import { undumpable } from "../sys/process.ts";
import { type ScdAhead, startAhead } from "./scdroom.ts";

/** Where everything is when we get no arguments, as init starts us; whatever is on the disk. */
export const DEVICE = { base: "/data/cml", scd: "/run/socket/cml-scd_control" } as const;

/** What init started ahead. */
export interface Ahead {
  readonly gate: Fd;
  readonly scd: ScdAhead | undefined;
}

export async function main(args: string[]): Promise<number> {
  undumpable();
  const gate = ownGate();
  // Without it the first question starts one, or says why not.
  const started = () => startAhead(DEVICE.base, DEVICE.scd).catch(() => undefined);
  const ahead = gate && { gate, scd: args.length === 0 ? await started() : undefined };
  const rest = await import("./main.ts");
  return await rest.main(args, ahead);
}
