// The tool that makes disks as they were when the power went: its reading of QEMU's log of writes, and its choice of
// moments. The log here is written as blklogwrites does.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cuts, replayed, WriteLog } from "../power.ts";

const folder = mkdtempSync(join(tmpdir(), "power-"));
afterAll(() => rmSync(folder, { recursive: true }));
const [FLUSH, FUA, DISCARD] = [1, 2, 4];
const SECTOR = 512;

/** [sector, fill of one sector, flags] of each write; no fill: no data. */
function written(entries: readonly (readonly [number, number | undefined, number])[]): string {
  const head = Buffer.alloc(SECTOR);
  head.writeBigUInt64LE(0x6a736677736872n, 0);
  head.writeBigUInt64LE(1n, 8);
  head.writeBigUInt64LE(BigInt(entries.length), 16);
  head.writeUInt32LE(SECTOR, 24);
  const parts = entries.map(([sector, fill, flags]) => {
    const entry = Buffer.alloc(SECTOR);
    entry.writeBigUInt64LE(BigInt(sector), 0);
    entry.writeBigUInt64LE(flags & FLUSH && fill === undefined ? 0n : 1n, 8);
    entry.writeBigUInt64LE(BigInt(flags), 16);
    return fill === undefined ? entry : Buffer.concat([entry, Buffer.alloc(SECTOR, fill)]);
  });
  const path = join(folder, "log");
  writeFileSync(path, Buffer.concat([head, ...parts, Buffer.alloc(SECTOR * 4)]));
  return path;
}

const base = join(folder, "base");
writeFileSync(base, Buffer.alloc(8 * SECTOR, 0xee));
/** The first byte of each of the first sectors. */
const state = (image: string) => {
  const bytes = readFileSync(image);
  return [0, 1, 2, 3].map((s) => bytes[s * SECTOR]);
};

test("a disk is rebuilt as it was after any number of writes, with any part of what came after", async () => {
  using log = new WriteLog(
    written([
      [0, 1, 0],
      [1, 2, 0],
      [0, undefined, FLUSH],
      [0, 3, 0],
      [2, 4, 0],
      [3, 5, FUA],
      [1, undefined, DISCARD],
    ]),
  );
  log.check();
  expect([log.length, log.flushes()]).toEqual([7, [3, 6]]);
  const seen: (number | undefined)[][] = [];
  const at = [
    { prefix: 0, beyond: [] },
    { prefix: 0, beyond: [1] },
    { prefix: 3, beyond: [4] },
    { prefix: 6, beyond: [] },
    { prefix: 7, beyond: [] },
  ];
  await replayed(base, log, at, async (image) => void seen.push(state(image)));
  expect(seen).toEqual([
    [0xee, 0xee, 0xee, 0xee],
    [0xee, 2, 0xee, 0xee],
    [1, 2, 4, 0xee],
    [3, 2, 4, 5],
    [3, 0, 4, 5],
  ]);
});

test("moments: as many as are wanted, the same for a seed, in order; what comes after a flush never before it", () => {
  const writes = Array.from(
    { length: 60 },
    (_, i) => [i % 4, i % 10 === 9 ? undefined : i, i % 10 === 9 ? FLUSH : 0] as const,
  );
  using log = new WriteLog(written(writes));
  const all = cuts(log, 50, 7);
  expect(all).toEqual(cuts(log, 50, 7));
  expect([all.length, all.at(-1)!.prefix]).toEqual([50, 60]);
  expect(all.map((c) => c.prefix)).toEqual(all.map((c) => c.prefix).toSorted((a, b) => a - b));
  for (const c of all) {
    expect(c.prefix % 10).toBe(0);
    for (const n of c.beyond) expect([n >= c.prefix, n < c.prefix + 10]).toEqual([true, true]);
  }
  expect(all.some((c) => c.beyond.length > 0)).toBe(true);
});

test("a file that is no log is refused", () => {
  writeFileSync(join(folder, "none"), Buffer.alloc(4096));
  using log = new WriteLog(join(folder, "none"));
  expect(() => log.check()).toThrow("no log of writes");
  expect(log.length).toBe(0);
});
