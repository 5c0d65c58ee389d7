// How to start another program of our own executable.
import { join } from "node:path";

/** Files inside a compiled executable have paths below this. */
const INSIDE = "/$bunfs/";

/** argv of `cml PROGRAM …`: the executable that runs, or the runtime with our source when it is not compiled. */
export const own = (program: string, ...args: string[]): string[] => [
  process.execPath,
  ...(import.meta.path.startsWith(INSIDE) ? [] : [join(import.meta.dir, "../main.ts")]),
  program,
  ...args,
];
