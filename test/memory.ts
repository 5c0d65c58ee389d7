// What a process holds in the memory that it can write to: where certain bytes are, for tests of secrets.
import { closeSync, openSync, readFileSync, readSync } from "node:fs";

const PAGE = 4096;
const PIECE = 4 << 20;
/** Documentation/admin-guide/mm/pagemap.rst: in memory, or swapped. */
const THERE = 3n << 62n;

/** The parts of a range that have ever been touched. */
function* touched(pagemap: number, from: bigint, to: bigint): Generator<[from: bigint, to: bigint]> {
  const entries = Buffer.alloc(1 << 16);
  let begun: bigint | undefined;
  for (let at = from; at < to; ) {
    const pages = Math.min(entries.length / 8, Number((to - at) / BigInt(PAGE)));
    const n = readSync(pagemap, entries, 0, pages * 8, (at / BigInt(PAGE)) * 8n) / 8;
    if (n === 0) break;
    for (let i = 0; i < n; i++, at += BigInt(PAGE)) {
      const there = (entries.readBigUInt64LE(8 * i) & THERE) !== 0n;
      if (there) begun ??= at;
      else if (begun !== undefined) {
        yield [begun, at];
        begun = undefined;
      }
    }
  }
  if (begun !== undefined) yield [begun, to];
}

/** Every place of these bytes in the writable memory of a process; none if it has ended. */
export function found(pid: number, needles: ReadonlyMap<string, Uint8Array>): string[] {
  const places: string[] = [];
  const longest = Math.max(...[...needles.values()].map((n) => n.length));
  using files = new DisposableStack();
  const open = (name: string): number => {
    const fd = openSync(`/proc/${pid}/${name}`, "r");
    files.defer(() => closeSync(fd));
    return fd;
  };
  const [memory, pagemap] = [open("mem"), open("pagemap")];
  for (const line of readFileSync(`/proc/${pid}/maps`, "utf8").split("\n")) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) (.w..) \S+ \S+ \S+\s*(.*)$/.exec(line);
    if (!range) continue;
    for (const [from, to] of touched(pagemap, BigInt(`0x${range[1]}`), BigInt(`0x${range[2]}`)))
      for (let at = from; at < to; at += BigInt(PIECE)) {
        const piece = Buffer.alloc(Math.min(PIECE + longest, Number(to - at)));
        let n: number;
        try {
          n = readSync(memory, piece, 0, piece.length, at);
        } catch {
          break; // a device, or memory that was given back meanwhile
        }
        const bytes = piece.subarray(0, n);
        for (const [name, needle] of needles)
          for (let i = bytes.indexOf(needle); i >= 0 && i < PIECE; i = bytes.indexOf(needle, i + 1))
            places.push(
              `${name} at ${(at + BigInt(i)).toString(16)} (${range[3]} ${range[4] || "anonymous"})`,
            );
      }
  }
  return places;
}
