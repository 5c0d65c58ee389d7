import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { BLOCK, hot, listOf, runs } from "./hot.ts";

const PAGE = 4096;

/** An executable of 16 pages: 8 to read and run, then 6 and a half to write, at other addresses. Page n is full of n. */
function executable(): Uint8Array {
  const file = Buffer.alloc(16 * PAGE);
  for (let page = 0; page < 16; page++) file.fill(page, page * PAGE, (page + 1) * PAGE);
  file.fill(0, 0, 256);
  file.writeBigUInt64LE(0x201000n, 24); // entry
  file.writeBigUInt64LE(64n, 32); // program headers
  file.writeUInt16LE(2, 56);
  const segment = (i: number, flags: number, from: number, address: number, size: number): void => {
    const at = 64 + i * 56;
    file.writeUInt32LE(1, at); // PT_LOAD
    file.writeUInt32LE(flags, at + 4);
    file.writeBigUInt64LE(BigInt(from), at + 8);
    file.writeBigUInt64LE(BigInt(address), at + 16);
    file.writeBigUInt64LE(BigInt(size), at + 32);
  };
  segment(0, 5, 0, 0x200000, 8 * PAGE);
  segment(1, 6, 8 * PAGE, 0x400000, 6.5 * PAGE);
  return file;
}

function laid(file: Uint8Array) {
  const b = Buffer.from(file);
  expect(b.toString("latin1", 0, 8)).toBe("CML hot\0");
  expect(b.readBigUInt64LE(8)).toBe(0x201000n);
  return Array.from({ length: Number(b.readBigUInt64LE(16)) }, (_, i) => {
    const at = 24 + i * 24;
    const from = Number(b.readBigUInt64LE(at + 8));
    const pages = b.readUInt32LE(at + 16);
    return {
      address: Number(b.readBigUInt64LE(at)),
      content: Array.from({ length: pages }, (_, p) => b[from + p * PAGE + PAGE - 1]),
      protection: b.readUInt32LE(at + 20),
    };
  });
}

test("hot() lays each page where its segment has it, takes small gaps along, and leaves the page that the kernel clears", () => {
  const list = "of a test\n1+1 3+1 7+3 e+1\n";
  expect(laid(hot(executable(), list))).toEqual([
    { address: 0x201000, content: [1, 2, 3], protection: 5 },
    { address: 0x207000, content: [7], protection: 5 },
    { address: 0x400000, content: [8, 9], protection: 3 },
  ]);
});

test("hot() takes pages that lie alone, and a block of many only while there is room", () => {
  const block = BLOCK / PAGE;
  const file = Buffer.concat([executable(), new Uint8Array(3 * BLOCK)]);
  file.writeBigUInt64LE(BigInt(3 * BLOCK), 64 + 32); // the first segment goes on
  const list = `of a test\n0+8 ${block.toString(16)}+1 ${(2 * block).toString(16)}+2\n`;
  const addresses = (pages: number) => laid(hot(file, list, pages * PAGE)).map(({ address }) => address);
  expect(addresses(3)).toEqual([0x200000 + BLOCK, 0x200000 + 2 * BLOCK]);
  expect(addresses(11)).toEqual([0x200000, 0x200000 + BLOCK, 0x200000 + 2 * BLOCK]);
});

test("a list is written as it is read", () => {
  const text = listOf("of a test", [1, 2, 3, 0x20, 0x22]);
  expect(text).toBe("of a test\n1+3 20+1 22+1\n");
  expect([...runs(text)]).toEqual([
    [1, 3],
    [0x20, 1],
    [0x22, 1],
  ]);
});

test("the list that is used was made with the runtime that is built in: else `make hot`", () => {
  const { version } = JSON.parse(readFileSync("node_modules/bun/package.json", "utf8")) as {
    version: string;
  };
  expect(readFileSync("initramfs/hot.x86_64", "utf8").split("\n")[0]).toBe(`bun ${version}`);
});
