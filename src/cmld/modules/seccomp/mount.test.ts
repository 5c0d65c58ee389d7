import { expect, test } from "bun:test";
import { attributesOf, optionsOf } from "./mount.ts";

const START = 100_000;

test("flags become attributes; one that is not known leaves the mount to the kernel", () => {
  expect(attributesOf(0n)).toBe(0);
  expect(attributesOf(1n | 2n | 8n)).toBe(1 | 2 | 8);
  expect(attributesOf(1024n)).toBe(0x10);
  expect(attributesOf(1n << 24n)).toBe(0x20);
  expect(attributesOf(2048n | (1n << 21n) | (1n << 15n))).toBe(0x80);
  expect(attributesOf(0xc0ed0000n | 2n)).toBe(2);
  for (const flags of [4n, 32n, 4096n, 16n, 1n << 25n, 1n << 31n, 1n << 40n])
    expect([flags, attributesOf(flags)]).toEqual([flags, undefined]);
});

test("options of a tmpfs, ids as the host's", () => {
  expect(optionsOf("tmpfs", "size=10%,mode=1777,uid=5,gid=0,nr_inodes=4k", START)).toEqual([
    ["size", "10%"],
    ["mode", "1777"],
    ["uid", "100005"],
    ["gid", "100000"],
    ["nr_inodes", "4k"],
  ]);
  expect(optionsOf("tmpfs", "", START)).toEqual([]);
  expect(optionsOf("ramfs", "mode=700", START)).toEqual([["mode", "700"]]);
  for (const data of [
    "uid=65536",
    "uid=-1",
    "mode=9",
    "huge=always",
    "size",
    "x=y",
    "size=1\n",
    "mpol=bind:0",
  ])
    expect([data, optionsOf("tmpfs", data, START)]).toEqual([data, undefined]);
  expect(optionsOf("ramfs", "size=1m", START)).toBeUndefined();
});
