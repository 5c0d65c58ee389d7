// How to start another program of our own executable.
import { join } from "node:path";

/** Files inside a compiled executable have paths below this. */
const INSIDE = "/$bunfs/";

const compiled = import.meta.path.startsWith(INSIDE);
const sources = join(import.meta.dir, "../..");

/** Where we were started from, as the kernel says it (proc(5), exe). After an upgrade there is another one, which is taken until
 * we are started again. */
const executable = process.execPath.replace(/ \(deleted\)$/, "");

/** The files and folders that it consists of. */
export const ownFiles = (): string[] => [
  executable,
  ...(compiled ? [] : [sources, join(sources, "node_modules")]),
];

/** How the runtime is set for a daemon: docs/decisions/runtime-settings.md. */
export const RUNTIME = [
  "BUN_JSC_useDFGJIT=0",
  "BUN_JSC_useConcurrentJIT=0",
  "BUN_JSC_forceRAMSize=67108864",
] as const;

/** argv of `cml PROGRAM …`: the executable that runs, or the runtime with our source when it is not compiled. */
export const own = (program: string, ...args: string[]): string[] => [
  executable,
  ...(compiled ? [] : [join(sources, "src/main.ts")]),
  program,
  ...args,
];
