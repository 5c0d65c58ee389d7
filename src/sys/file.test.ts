import { afterAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chain } from "./error.ts";
import { destroy, readBounded, removeSynced, sweep, writeAtomic } from "./file.ts";

const folder = mkdtempSync(join(tmpdir(), "file-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const at = (name: string) => join(folder, name);

test("writeAtomic() replaces a file as a whole and leaves nothing beside it", async () => {
  await writeAtomic(at("a"), "one");
  await writeAtomic(at("a"), "two", 0o644);
  expect(readFileSync(at("a"), "utf8")).toBe("two");
  expect(statSync(at("a")).mode & 0o777).toBe(0o644);
  const failed = await writeAtomic(at("no/such"), "x").catch(chain);
  expect(failed).toStartWith(`write ${at("no/such")}: ENOENT`);
  expect(readdirSync(folder)).toEqual(["a"]);
});

/** What somebody may have put where a file of ours was, while the disk was elsewhere. */
const ODD: readonly ((path: string) => void)[] = [
  (path) => symlinkSync(at("a"), path),
  (path) => symlinkSync("nowhere", path),
  (path) => mkdirSync(join(path, "more"), { recursive: true }),
  (path) => void spawnSync("mkfifo", [path]),
  (path) => {
    writeFileSync(path, "");
    truncateSync(path, 2 ** 43);
  },
];

test("nothing in the place of what is written or destroyed keeps it from being so, or is followed", async () => {
  for (const make of ODD) {
    make(at(".b.new"));
    await writeAtomic(at("b"), "new");
    expect(readFileSync(at("b"), "utf8")).toBe("new");
    await destroy(at("b"));
    make(at("b"));
    await destroy(at("b"));
    make(at(".b.new"));
    await sweep(folder);
    expect(readdirSync(folder)).toEqual(["a"]);
  }
  expect(readFileSync(at("a"), "utf8")).toBe("two");
});

test("destroy() overwrites", async () => {
  writeFileSync(at("b"), "secret");
  linkSync(at("b"), at("c"));
  await destroy(at("b"));
  await destroy(at("b"));
  expect(readFileSync(at("c"))).toHaveLength(6);
  expect(readFileSync(at("c"), "latin1")).not.toContain("secret");
  await removeSynced(folder, ["c"]);
});

test("sweep() removes what an interrupted write left", async () => {
  writeFileSync(at(".a.new"), "half");
  writeFileSync(at(".hidden"), "");
  await sweep(folder);
  expect(readdirSync(folder).sort()).toEqual([".hidden", "a"]);
  await removeSynced(folder, [".hidden", "not there"]);
  expect(readdirSync(folder)).toEqual(["a"]);
});

test("readBounded() takes regular files up to a limit", async () => {
  expect(await readBounded(at("a"), 3)).toEqual(new Uint8Array(Buffer.from("two")));
  expect(await readBounded(at("b"), 3)).toBeUndefined();
  expect(await readBounded(at("a"), 2).catch(chain)).toBe(`read ${at("a")}: 3 bytes, at most 2`);
  symlinkSync("/dev/zero", at("zero"));
  expect(await readBounded(at("zero"), 2).catch(chain)).toBe(`${at("zero")}: not a regular file`);
});
