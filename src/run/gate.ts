// A program that is started before the machine, or its own folders, are ready: it loads, and waits at its gate for a byte
// from whoever started it. The gate is a descriptor that it inherits; its number is in CML_GATE.
import { read } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { readable } from "../sys/poll.ts";

/** The gate that we were given, if any; programs that we start do not get it. */
export function ownGate(): Fd | undefined {
  const { CML_GATE } = process.env;
  delete process.env.CML_GATE;
  return CML_GATE === undefined ? undefined : new Fd(Number(CML_GATE));
}

/** Wait until it is opened. */
export async function passed(gate: Fd): Promise<void> {
  await readable(gate);
  if (now(read(gate.n, mem(1))) === 0)
    throw new Error("whoever started us ended before everything was ready");
}
