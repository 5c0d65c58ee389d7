// A system call as a value. The same Op is done at once by now(), done in a child by launch(), and printed by
// show(), which is all that a test of a composed program needs.
import type { NR } from "./numbers.ts";

export type Call = keyof typeof NR;

/** Where a program keeps a result for a later call: the descriptor of an openat, say. 0 to 15. */
export class Reg {
  constructor(readonly index: number) {
    if (index < 0 || index > 15) throw new RangeError(`register ${index}: there are 0 to 15`);
  }
}

/** A struct that the kernel reads: its bytes, printed as `text`; `pointers` are offsets at which the address of
 * another value is stored. */
export interface Data {
  readonly data: Uint8Array;
  readonly text: string;
  readonly pointers?: readonly (readonly [at: number, to: Arg])[];
}

export type Arg = number | bigint | string | Uint8Array | readonly string[] | Reg | Data | null;

export interface Op {
  readonly call: Call;
  readonly args: readonly Arg[];
  readonly save?: Reg;
  /** An errno that is no failure here, or ANY. */
  readonly allow?: number;
  /** The only result that counts as success. */
  readonly want?: number;
}

/** For a call that may fail: nothing depends on it. */
export const ANY = 0xffff;

/** As strace would print it. */
export const show = (op: Op): string =>
  `${op.call}(${op.args.map(showArg).join(", ")})${op.save ? ` -> r${op.save.index}` : ""}`;

function showArg(a: Arg): string {
  if (a === null) return "0";
  if (a instanceof Reg) return `r${a.index}`;
  if (a instanceof Uint8Array) return `<${a.length} bytes>`;
  if (typeof a === "object") return "data" in a ? a.text : `[${a.join(" ")}]`;
  return typeof a === "string" ? JSON.stringify(a) : String(a);
}
