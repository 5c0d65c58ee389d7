import { expect, test } from "bun:test";
import { superblock } from "./disk.ts";

test("superblock() reads an ext4 label and state, and nothing from other bytes", () => {
  const block = Buffer.alloc(1024);
  expect(superblock(block)).toBeUndefined();
  block.writeUInt16LE(0xef53, 0x38);
  block.write("cml-data", 0x78);
  expect(superblock(block)).toEqual({ label: "cml-data", clean: false });
  block.writeUInt16LE(1, 0x3a);
  expect(superblock(block)?.clean).toBe(true);
  block.writeUInt32LE(4, 0x60); // the journal waits to be replayed
  expect(superblock(block)?.clean).toBe(false);
  block.write("sixteen-bytes-xy", 0x78);
  expect(superblock(block)?.label).toBe("sixteen-bytes-xy");
  expect(superblock(block.subarray(0, 1000))).toBeUndefined();
});
