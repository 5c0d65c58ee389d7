// Do one system call in this process. For calls that return at once: a call that blocks here stops every
// container's events.
import { run } from "../../ffi/run.ts";
import { encode } from "./encode.ts";
import { SysError } from "./error.ts";
import { ANY, type Op, show } from "./op.ts";

/** The kernel's result (a number up to 2^53), or a thrown SysError; an allowed errno counts as 0. */
export function now(op: Op): number {
  const code = encode([op]);
  const result = Number(run.call(code));
  if (result < 0) {
    if (-result === op.allow || op.allow === ANY) return 0;
    throw new SysError(-result, show(op));
  }
  if (op.want && result !== op.want) throw new SysError(0, show(op));
  return result;
}

/** As now(), but a refusal is returned as -errno instead of thrown. */
export const attempt = (op: Op): number => Number(run.call(encode([op])));
