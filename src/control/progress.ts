// How far a download is, as a line that is drawn over itself.
import type { InstallProgress } from "../../proto/gen/proto.js";

const MIB = 2 ** 20;
const BAR = 24;

const mib = (bytes: number): string => (bytes / MIB).toFixed(1);

/** "root.img [######------------------]  25 %   12.3 of 49.0 MiB", at most `width` columns. */
export function bar(
  { file, bytes, of }: Pick<InstallProgress, "file" | "bytes" | "of">,
  width: number,
): string {
  const there = Number(bytes);
  const all = of === undefined ? undefined : Number(of);
  const part = all ? Math.min(1, there / all) : 0;
  const full = Math.floor(part * BAR);
  const drawn =
    all === undefined
      ? `${mib(there)} MiB`
      : `[${"#".repeat(full)}${"-".repeat(BAR - full)}] ${String(Math.floor(part * 100)).padStart(3)} %  ${mib(there)} of ${mib(all)} MiB`;
  return `${file} ${drawn}`.slice(0, Math.max(0, width - 1));
}

/** Draw it where the cursor is, over what was drawn before; `done` leaves the line. */
export class ProgressLine {
  #drawn = false;
  show(p: InstallProgress): void {
    process.stderr.write(`\r${bar(p, process.stderr.columns || 80)}\x1b[K`);
    this.#drawn = true;
  }
  done(): void {
    if (this.#drawn) process.stderr.write("\n");
    this.#drawn = false;
  }
}
