import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { broken, Chance, SEED } from "../../test/chance.ts";
import { counts } from "../../test/counts.ts";
import {
  BLOCK,
  checkTree,
  deviceUuid,
  isTable,
  makeTree,
  readSuperblock,
  SUPERBLOCK,
  type Superblock,
  target,
} from "./verity.ts";

const folder = mkdtempSync(join(tmpdir(), "verity-"));
afterAll(() => rmSync(folder, { recursive: true }));

const BLOCKS = 300; // three blocks of hashes, and one above them
const head: Superblock = {
  uuid: "01234567-89ab-4cde-8f01-23456789abcd",
  blocks: BLOCKS,
  salt: new Uint8Array(new Chance(SEED).bytes(32)),
};
const [image, tree] = [join(folder, "root.img"), join(folder, "root.hash.img")];
writeFileSync(image, new Chance(SEED).bytes(BLOCKS * BLOCK));
writeFileSync(tree, "");
const root = makeTree(image, tree, head);
const whole = readFileSync(tree);
const bytes = whole.subarray(0, SUPERBLOCK);

const veritysetup = (hash: string): number =>
  Bun.spawnSync(["veritysetup", "verify", image, tree, hash], { stderr: "ignore" }).exitCode;

test("target(): the table that isTable() believes, and no longer a uuid than the device-mapper takes", () => {
  const made = target(head, root, 0x700, 0x701);
  const salt = Buffer.from(head.salt).toString("hex");
  expect(made).toEqual({
    sectors: BLOCKS * 8,
    type: "verity",
    parameters: `1 7:0 7:1 4096 4096 ${BLOCKS} 1 sha256 ${root} ${salt}`,
  });
  expect(isTable(made.parameters as string, head, root)).toBe(true);
  const bare = { ...head, salt: new Uint8Array() };
  expect(isTable(target(bare, root, 1, 2).parameters as string, bare, root)).toBe(true);
  expect(deviceUuid("web-1-root", head)).toBe("CRYPT-VERITY-0123456789ab4cde8f0123456789abcd-web-1-root");
  expect(deviceUuid("x".repeat(127), head)).toHaveLength(128);
});

test("makeTree(): veritysetup takes it, with this root hash and no other", () => {
  expect(veritysetup(root)).toBe(0);
  expect(veritysetup(root.replace(/^../, root.startsWith("00") ? "01" : "00"))).not.toBe(0);
  expect(readSuperblock(bytes)).toEqual(head);
});

test("makeTree(): a tree of veritysetup's, with the same salt, has the same root hash", () => {
  const other = join(folder, "other.hash.img");
  const salt = Buffer.from(head.salt).toString("hex");
  const made = Bun.spawnSync(["veritysetup", "format", `--salt=${salt}`, image, other]);
  expect(made.stdout.toString()).toContain(root);
  checkTree(image, other, readSuperblock(readFileSync(other)), root);
});

test("checkTree(): every block of image and tree counts", () => {
  checkTree(image, tree, head, root);
  const data = readFileSync(image);
  for (const at of [0, 17 * BLOCK + 5, data.length - 1]) {
    writeFileSync(image, data.with(at, data[at]! ^ 1));
    expect(() => checkTree(image, tree, head, root)).toThrow("Verification");
  }
  writeFileSync(image, data);
  for (const at of [BLOCK, 2 * BLOCK, 4 * BLOCK]) {
    writeFileSync(tree, whole.with(at, whole[at]! ^ 1));
    expect(() => checkTree(image, tree, head, root)).toThrow("Verification");
  }
  writeFileSync(tree, whole);
  checkTree(image, tree, head, root);
});

test("readSuperblock(): what could weaken the proof is what it always is", () => {
  for (const [at, value, reason] of [
    [0, "vErity", "signature"],
    [8, "\x02", "version 2"],
    [12, "\0", "hash type 0"],
    [32, "crc32c\0", 'algorithm "crc32c": only "sha256" is taken'],
    [32, "sha1\0\0", "algorithm"],
    [64, "\0\x04", "data block size 1024"],
    [68, "\0\x02", "hash block size 512"],
    [78, "\x7f\xff", "blocks, at most"],
    [80, "\x01\x01", "a salt of 257 bytes, at most 256"],
  ] as const) {
    const wrong = Buffer.from(bytes);
    wrong.write(value, at, "latin1");
    expect(() => readSuperblock(wrong)).toThrow(reason);
  }
  expect(() => readSuperblock(bytes.subarray(0, SUPERBLOCK - 1))).toThrow("511 bytes");
});

test("isTable(): a device is believed if its table proves the same, whatever devices it is over", () => {
  const salt = Buffer.from(head.salt).toString("hex");
  const table = `1 7:3 7:4 4096 4096 ${BLOCKS} 1 sha256 ${root} ${salt}`;
  expect(isTable(table, head, root)).toBe(true);
  expect(isTable(table.replace("7:3 7:4", "254:0 8:1"), head, root)).toBe(true);
  expect(
    isTable(`1 7:3 7:4 4096 4096 ${BLOCKS} 1 sha256 ${root} -`, { ...head, salt: new Uint8Array() }, root),
  ).toBe(true);
  for (const [part, other] of [
    ["1 7:3", "0 7:3"],
    ["4096 4096", "4096 1024"],
    [` ${BLOCKS} `, ` ${BLOCKS - 1} `],
    [" 1 sha256", " 2 sha256"],
    ["sha256", "crc32c"],
    [root, root.replace(/.$/, "x")],
    [salt, "-"],
  ] as const)
    expect(isTable(table.replace(part, other), head, root)).toBe(false);
  expect(isTable(`${table} 1 ignore_corruption`, head, root)).toBe(false);
  expect(isTable("", head, root)).toBe(false);
});

test("fuzz: superblocks", () => {
  const chance = new Chance(SEED);
  const until = performance.now() + counts.fuzzSeconds * 1000;
  let [tried, accepted] = [0, 0];
  for (; tried < counts.fuzzInputs || performance.now() < until; tried++) {
    const input = broken(chance, [bytes], [Buffer.from("sha256\0"), Buffer.from("verity\0\0")]);
    let read: Superblock;
    try {
      read = readSuperblock(input);
    } catch (e) {
      expect((e as Error).message).not.toMatch(/[\x00-\x1f]/);
      continue;
    }
    accepted++;
    if (
      !Number.isSafeInteger(read.blocks * BLOCK) ||
      read.salt.length > 256 ||
      !/^[0-9a-f-]{36}$/.test(read.uuid)
    )
      throw new Error(`input ${tried}: ${JSON.stringify(read)}`);
  }
  expect(accepted).toBeGreaterThan(tried / 100);
});
