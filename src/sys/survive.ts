// PID 1 outlives a crash of its own runtime: fatal signals are caught in native code, which executes the program
// again. Same pid, same children; descriptors without close-on-exec stay open.
import { run } from "../../ffi/run.ts";
import { address } from "./encode.ts";
import { SysError } from "./error.ts";
import { mem } from "./mem.ts";

/** The kernel reads this memory when the runtime is gone: it is never given back. */
const forEver: unknown[] = [];

function text(value: string): Uint8Array<ArrayBuffer> {
  const bytes = Buffer.from(value + "\0");
  const kept = mem(bytes.length);
  kept.set(bytes);
  forEver.push(kept);
  return kept;
}

function vector(values: readonly string[]): Uint8Array<ArrayBuffer> {
  const bytes = mem(8 * (values.length + 1));
  const view = new DataView(bytes.buffer);
  values.forEach((v, i) => {
    view.setBigUint64(8 * i, address(text(v)), true);
  });
  forEver.push(bytes);
  return bytes;
}

/** From now on a fatal signal writes `note` and its number to standard error and executes `path` again. */
export function survive(path: string, argv: readonly string[], env: readonly string[], note: string): void {
  const result = Number(run.survive(text(path), vector(argv), vector(env), text(note)));
  if (result < 0) throw new SysError(-result, "rt_sigaction(survive a crash)");
}
