// Sealed volumes as text and bytes: the original's tables, its superblock judged, the state that files tell. What the
// kernel makes of them is tested in a machine (test/machine/crypt.test.ts).
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cryptTable, integrityTable, isCorrupted, isVolumeFile, judged, labels, modeOf } from "./crypt.ts";

const folder = mkdtempSync(join(tmpdir(), "crypt-"));
afterAll(() => rmSync(folder, { recursive: true }));
const with_ = (name: string, ...files: string[]) => {
  const path = join(folder, name);
  mkdirSync(path);
  for (const file of files) writeFileSync(join(path, file), "");
  return path;
};

test("names and tables are the original's, word for word", () => {
  expect(labels({ uuid: "u", image: "data" })).toEqual({ crypt: "u-data", integrity: "u-data-integrity" });
  const devices = { data: "/dev/loop1", meta: "/dev/loop2" };
  const hmac = new Uint8Array(32).map((_, i) => i * 8);
  const integrity = (mode: Parameters<typeof integrityTable>[0], discard: boolean) =>
    Buffer.from(integrityTable(mode, devices, hmac, discard)).toString();
  const hex = Buffer.from(hmac).toString("hex");
  const hash = `meta_device:/dev/loop2 internal_hash:hmac(sha256):${hex}`;
  expect(integrity("INTEGRITY_ENCRYPT", true)).toBe(`/dev/loop1 0 32 J 3 ${hash} allow_discards`);
  expect(integrity("INTEGRITY_ENCRYPT", false)).toBe(`/dev/loop1 0 32 J 2 ${hash}`);
  expect(integrity("INTEGRITY_ONLY", false)).toBe(`/dev/loop1 0 32 J 2 ${hash}`);
  expect(integrity("AUTHENC", true)).toBe("/dev/loop1 0 32 J 1 meta_device:/dev/loop2");
  expect(cryptTable("INTEGRITY_ENCRYPT", "cml:web", "/dev/dm-0", true)).toBe(
    "aes-xts-plain64 :64:logon:cml:web 0 /dev/dm-0 0 1 allow_discards",
  );
  expect(cryptTable("INTEGRITY_ENCRYPT", "cml:web", "/dev/dm-0", false)).toBe(
    "aes-xts-plain64 :64:logon:cml:web 0 /dev/dm-0 0",
  );
  expect(cryptTable("AUTHENC", "cml:web", "/dev/dm-0", true)).toBe(
    "capi:authenc(hmac(sha256),xts(aes))-random :96:logon:cml:web 0 /dev/dm-0 0 1 integrity:32:aead",
  );
});

test("the mode follows from what is in the folder, and core0's old one from its key", () => {
  expect(modeOf(join(folder, "none"), 96)).toBe("INTEGRITY_ENCRYPT");
  expect(modeOf(with_("new"), 96)).toBe("INTEGRITY_ENCRYPT");
  expect(modeOf(with_("core0", "not-stacked", "data.img"), 32)).toBe("INTEGRITY_ONLY");
  expect(modeOf(with_("marked", "not-stacked", "data.img"), 96)).toBe("INTEGRITY_ENCRYPT");
  expect(modeOf(with_("old", "data.img", "data.meta.img"), 96)).toBe("AUTHENC");
  expect(modeOf(with_("plain", "data.plain.img"), 96)).toBe("INTEGRITY_ENCRYPT");
});

test("what a wipe removes", () => {
  const names = ["data.img", "data.meta.img", "data.img.new", "data.made", "not-stacked", "data.plain.img"];
  expect(names.filter(isVolumeFile)).toEqual(names);
  expect(["token_is_paired", "img", "made", "data.img.old"].filter(isVolumeFile)).toEqual([]);
});

test("a superblock is judged, field by field", () => {
  const good = new Uint8Array(512);
  const view = new DataView(good.buffer);
  good.set(Buffer.from("integrt\0"));
  good[8] = 5;
  view.setUint16(10, 32, true);
  view.setBigUint64(16, 131072n, true);
  expect(judged(good, "INTEGRITY_ENCRYPT")).toBe(131072);
  const changed = (at: number, value: number): Uint8Array => {
    const bad = Uint8Array.from(good);
    bad[at] = value;
    return bad;
  };
  const wrong = (bytes: Uint8Array, why: string) => {
    try {
      judged(bytes, "INTEGRITY_ENCRYPT");
      throw new Error("it was taken");
    } catch (e) {
      expect(String(e)).toContain(why);
      expect(isCorrupted(new Error("start web", { cause: e }))).toBe(true);
    }
  };
  wrong(new Uint8Array(512), "no magic");
  wrong(good.subarray(0, 100), "cut short");
  wrong(changed(0, 0x49), "no magic");
  wrong(changed(10, 4), "tags of 4 bytes");
  wrong(changed(28, 3), "blocks of 4096 bytes");
  wrong(changed(24, 2), "it asks for unchecked data");
  wrong(changed(24, 4), "it asks for unchecked data");
  wrong(changed(23, 0xff), "sectors");
  expect(judged(changed(24, 4), "AUTHENC")).toBe(131072);
  expect(isCorrupted(new Error("no"))).toBe(false);
});
