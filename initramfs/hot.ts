// The pages of the executable that every boot touches and that lie alone, as one small file: a table of where they belong,
// then the pages, each run of them as it lies in the executable. loader.c lays them there, so that the blocks of the image
// need not be unpacked for their sake. Blocks in which much is touched are unpacked rather than stored twice. Which pages
// are touched is measured: `make hot` writes the list (test/machine/hot.ts), once for a version of the runtime.

const PAGE = 4096;
/** Of the image: initramfs/build.ts. */
export const BLOCK = 128 << 10;
/** It is not compressed, so it costs its size in the ramdisk: docs/decisions/boot.md. */
const BUDGET = 5 << 20;
/** Pages between two runs that are rather taken along than mapped around. */
const GAP = 1;
/** loader.c reads no more of it: TABLE_MAX. */
const TABLE_MAX = 16 * PAGE;
const MAGIC = "CML hot\0";

/** A part of a file that is mapped (elf(5), program header of type PT_LOAD). */
interface Segment {
  readonly from: number;
  readonly address: number;
  readonly filled: number;
  readonly flags: number;
}
const [PT_LOAD, PF_X, PF_W, PF_R] = [1, 1, 2, 4];
const [PROT_READ, PROT_WRITE, PROT_EXEC] = [1, 2, 4]; // asm-generic/mman-common.h

interface Elf {
  readonly entry: bigint;
  readonly segments: readonly Segment[];
  /** Where the runtime ends in the file and what was compiled into it begins. */
  readonly ours: number;
}

/** 64-bit, little-endian. */
export function elf(file: Uint8Array): Elf {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const u64 = (at: number) => Number(view.getBigUint64(at, true));
  const segments: Segment[] = [];
  const [programs, count] = [u64(32), view.getUint16(56, true)];
  for (let i = 0; i < count; i++) {
    const at = programs + i * 56;
    if (view.getUint32(at, true) !== PT_LOAD) continue;
    segments.push({
      flags: view.getUint32(at + 4, true),
      from: u64(at + 8),
      address: u64(at + 16),
      filled: u64(at + 32),
    });
  }
  const [sections, sectionCount, names] = [u64(40), view.getUint16(60, true), view.getUint16(62, true)];
  const namesFrom = u64(sections + names * 64 + 24);
  let ours = file.length;
  for (let i = 0; i < sectionCount; i++) {
    const at = sections + i * 64;
    const name = namesFrom + view.getUint32(at, true);
    if (Buffer.from(file.subarray(name, name + 5)).toString() === ".bun\0") ours = u64(at + 24);
  }
  return { entry: view.getBigUint64(24, true), segments, ours };
}

/** A list: a first line that says of what, then runs of pages of the file, "start+count" in hexadecimal. */
export function* runs(list: string): Generator<[start: number, count: number]> {
  for (const run of list.slice(list.indexOf("\n")).split(/\s+/)) {
    if (run === "") continue;
    const [start, count] = run.split("+").map((n) => Number.parseInt(n, 16));
    yield [start!, count!];
  }
}

export function listOf(head: string, pages: readonly number[]): string {
  const all: [start: number, count: number][] = [];
  for (const page of pages) {
    const last = all.at(-1);
    if (last && last[0] + last[1] === page) last[1]++;
    else all.push([page, 1]);
  }
  const words = all.map(([start, count]) => `${start.toString(16)}+${count.toString(16)}`);
  const lines: string[] = [];
  for (let at = 0; at < words.length; at += 12) lines.push(words.slice(at, at + 12).join(" "));
  return `${head}\n${lines.join("\n")}\n`;
}

/** Those in blocks of which the fewest are touched, as many as `budget` holds. */
function scattered(touched: readonly number[], budget: number): Set<number> {
  const blocks = Map.groupBy(touched, (page) => Math.floor((page * PAGE) / BLOCK));
  const wanted = new Set<number>();
  for (const [, pages] of [...blocks].toSorted((a, b) => a[1].length - b[1].length || a[0] - b[0])) {
    if ((wanted.size + pages.length) * PAGE > budget) break;
    for (const page of pages) wanted.add(page);
  }
  return wanted;
}

/** The file that loader.c reads. */
export function hot(file: Uint8Array, list: string, budget = BUDGET): Uint8Array {
  const { entry, segments } = elf(file);
  const touched = [...runs(list)].flatMap(([start, count]) =>
    Array.from({ length: count }, (_, i) => start + i),
  );
  const wanted = scattered(touched, budget);

  const found: { address: number; page: number; pages: number; protection: number }[] = [];
  for (const s of segments) {
    const first = Math.floor(s.from / PAGE);
    // The page that a segment does not fill is partly the kernel's, which has cleared the rest.
    const end = Math.floor((s.from + s.filled) / PAGE);
    const protection =
      (s.flags & PF_R ? PROT_READ : 0) | (s.flags & PF_W ? PROT_WRITE : 0) | (s.flags & PF_X ? PROT_EXEC : 0);
    let run: { address: number; page: number; pages: number; protection: number } | undefined;
    for (let p = first; p < end; p++) {
      if (!wanted.has(p)) continue;
      if (run && p - (run.page + run.pages) <= GAP) run.pages = p - run.page + 1;
      else {
        run = { address: s.address - (s.address % PAGE) + (p - first) * PAGE, page: p, pages: 1, protection };
        found.push(run);
      }
    }
  }

  const table = 24 + found.length * 24;
  if (table > TABLE_MAX)
    throw new Error(`${found.length} runs of pages: the table has room for ${TABLE_MAX}`);
  let at = Math.ceil(table / PAGE) * PAGE;
  const out = Buffer.alloc(at + found.reduce((sum, r) => sum + r.pages * PAGE, 0));
  out.write(MAGIC, "latin1");
  out.writeBigUInt64LE(entry, 8);
  out.writeBigUInt64LE(BigInt(found.length), 16);
  found.forEach((r, i) => {
    out.writeBigUInt64LE(BigInt(r.address), 24 + i * 24);
    out.writeBigUInt64LE(BigInt(at), 32 + i * 24);
    out.writeUInt32LE(r.pages, 40 + i * 24);
    out.writeUInt32LE(r.protection, 44 + i * 24);
    out.set(file.subarray(r.page * PAGE, (r.page + r.pages) * PAGE), at);
    at += r.pages * PAGE;
  });
  return out;
}
