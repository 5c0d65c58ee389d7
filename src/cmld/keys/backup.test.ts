// Recovery keys and backups: what was saved comes back with the recovery key, and nothing that was changed, cut, mixed or
// belongs to another key does.
import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Chance, SEED } from "../../../test/chance.ts";
import { Secret } from "../../sys/secret.ts";
import { backup, isPart, Restoration } from "./backup.ts";
import { RECOVERY_BYTES, unwrap, wrap } from "./recovery.ts";

const root = mkdtempSync(join(tmpdir(), "backup-"));
afterAll(() => rmSync(root, { recursive: true }));

const KEY = Uint8Array.from({ length: 96 }, (_, i) => 255 - i);
const WORDS = Uint8Array.from({ length: RECOVERY_BYTES }, (_, i) => i);
const secret = (bytes: Uint8Array) => Secret.take(bytes.slice());
const hex = (s: Secret) => s.lend((b) => Buffer.from(b).toString("hex"));
const NAMES = ["data.img", "data.made", "data.meta.img", "not-stacked"];
const about = { version: 1, uuid: "web", config: 'name: "web"\n' } as const;

const images = join(root, "images");
mkdirSync(images);
const random = new Chance(SEED);
writeFileSync(join(images, "data.img"), random.bytes(70_000));
truncateSync(join(images, "data.img"), 3_000_000); // the rest is a hole
writeFileSync(join(images, "data.meta.img"), random.bytes(300_000));
for (const name of ["data.made", "not-stacked"]) writeFileSync(join(images, name), "");

async function saved(): Promise<Buffer> {
  using key = secret(KEY);
  using recovery = secret(WORDS);
  const pieces: Uint8Array[] = [];
  for await (const piece of backup(about, key, wrap(key, recovery), images, NAMES)) pieces.push(piece);
  return Buffer.concat(pieces);
}

let next = 0;
async function restored(stream: Uint8Array, chunk = stream.length, words = WORDS): Promise<string> {
  const folder = join(root, `restored-${next++}`);
  await using r = new Restoration(folder, secret(words));
  try {
    for (let at = 0; at < stream.length; at += chunk) await r.push(stream.subarray(at, at + chunk));
    const { about: said, key } = await r.done();
    expect([said, hex(key)]).toEqual([about, Buffer.from(KEY).toString("hex")]);
    key[Symbol.dispose]();
    return folder;
  } catch (e) {
    await r.abort();
    expect(existsSync(folder)).toBe(false);
    throw e;
  }
}

test("a recovery key opens what it was made for, another one or a changed file does not", () => {
  using key = secret(KEY);
  using recovery = secret(WORDS);
  const file = wrap(key, recovery);
  using opened = unwrap(file, recovery);
  expect(hex(opened)).toBe(hex(key));
  expect(Buffer.from(file).toString("hex")).not.toContain(hex(key).slice(0, 16));
  using other = Secret.random(RECOVERY_BYTES);
  expect(() => unwrap(file, other)).toThrow("it is another recovery key");
  for (let at = 0; at < file.length; at++) {
    const bad = Uint8Array.from(file);
    bad[at]! ^= 4;
    expect(() => unwrap(bad, recovery)).toThrow();
  }
});

test("a backup gives the same files and the same key, in whatever pieces it comes; holes take no room in it", async () => {
  const stream = await saved();
  expect(stream.length).toBeLessThan(1_000_000);
  expect(stream.includes(Buffer.from("name:"))).toBe(false);
  for (const chunk of [stream.length, 100_000, 4097]) {
    const folder = await restored(stream, chunk);
    expect(readdirSync(folder).sort()).toEqual(NAMES);
    for (const name of NAMES)
      expect(readFileSync(join(folder, name)).equals(readFileSync(join(images, name)))).toBe(true);
  }
});

test("what was changed, cut, continued or swapped is refused, and leaves nothing", async () => {
  const stream = await saved();
  const refused = async (bytes: Uint8Array, words = WORDS) => {
    await expect(restored(bytes, 50_000, words)).rejects.toThrow(/backup|recovery key/);
  };
  await refused(
    stream,
    WORDS.map((b) => b ^ 1),
  );
  for (const length of [0, 10, 100, 250, 1000, stream.length - 25, stream.length - 1])
    await refused(stream.subarray(0, length));
  await refused(Buffer.concat([stream, stream.subarray(-21)]));
  const other = await saved();
  await refused(Buffer.concat([stream.subarray(0, 200), other.subarray(200)]));
  for (let i = 0; i < 60; i++) {
    const bad = Buffer.from(stream);
    bad[random.below(i < 30 ? 400 : bad.length)]! ^= 1 << random.below(8);
    await refused(bad);
  }
});

test("which files belong into a backup", () => {
  expect(["data.img", "data.meta.img", "data.made", "not-stacked"].every(isPart)).toBe(true);
  expect(["../x.img", "data.plain.img", "token_is_paired", "data.img.new", ".img"].some(isPart)).toBe(false);
});
