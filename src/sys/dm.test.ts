// Requests to the device-mapper as bytes, laid out as linux/dm-ioctl.h says, and answers as the kernel writes them. What a
// kernel makes of them is tested in a machine (test/machine/crypt.test.ts).
import { expect, test } from "bun:test";
import * as dm from "./dm.ts";
import { show } from "./op.ts";

const u32 = (r: dm.Request, at: number) => new DataView(r.bytes.buffer).getUint32(at, true);
const u64 = (r: dm.Request, at: number) => Number(new DataView(r.bytes.buffer).getBigUint64(at, true));
const text = (r: dm.Request, at: number) =>
  Buffer.from(r.bytes.subarray(at, r.bytes.indexOf(0, at))).toString();

test("load() lays out a table: head, one spec a target, parameters, each 8 bytes aligned", () => {
  const r = dm.load(
    "web-data",
    [
      { sectors: 20480, type: "linear", parameters: "/dev/loop0 0" },
      { start: 20480, sectors: 8, type: "zero", parameters: new Uint8Array(0) },
    ],
    { secret: true },
  );
  expect(r.bytes.length).toBe(312 + 40 + 16 + 40 + 8);
  expect([u32(r, 0), u32(r, 12), u32(r, 16), u32(r, 20), u32(r, 28)]).toEqual([4, 416, 312, 2, 1 << 15]);
  expect(text(r, 48)).toBe("web-data");
  expect([u64(r, 312), u64(r, 320), u32(r, 332), text(r, 336), text(r, 352)]).toEqual([
    0,
    20480,
    56,
    "linear",
    "/dev/loop0 0",
  ]);
  expect([u64(r, 368), u64(r, 376), u32(r, 388), text(r, 392)]).toEqual([20480, 8, 48, "zero"]);
  expect(show(dm.toKernel(5, r))).toBe(`ioctl(5, ${0xc138fd09}, <416 bytes>)`);
});

test("flags of the other requests", () => {
  expect(u32(dm.resume("a"), 28)).toBe(0);
  expect(u32(dm.suspend("a"), 28)).toBe(2);
  expect(u32(dm.remove("a", true), 28)).toBe(1 << 17);
  expect(u32(dm.load("a", [], { readOnly: true }), 28)).toBe(1);
  expect(text(dm.create("a", "CML-1"), 176)).toBe("CML-1");
  const said = dm.message("a", "key wipe");
  expect([u64(said, 312), text(said, 320)]).toEqual([0, "key wipe"]);
});

test("names, uuids, kinds and parameters that the kernel can't take are refused, and named", () => {
  expect(() => dm.create("a/b")).toThrow('device-mapper: name "a/b" contains "/"');
  expect(() => dm.create("n".repeat(128))).toThrow("at most 127 bytes");
  expect(() => dm.create("a", "u".repeat(129))).toThrow("device-mapper: uuid");
  expect(() => dm.load("a", [{ sectors: 1, type: "t".repeat(16), parameters: "" }])).toThrow("target");
  expect(() => dm.load("a", [{ sectors: 1, type: "zero", parameters: "\0" }])).toThrow("zero byte");
});

test("answers: a status, lines of a table, a list", () => {
  const r = dm.status("web");
  const view = new DataView(r.bytes.buffer);
  view.setUint32(20, 1, true);
  view.setInt32(24, 3, true);
  view.setUint32(28, (1 << 0) | (1 << 5), true);
  view.setBigUint64(40, 0xfe_00_07n, true);
  expect(dm.answer(r)).toMatchObject({
    device: 0xfe0007,
    opened: 3,
    targets: 1,
    readOnly: true,
    active: true,
    suspended: false,
  });

  const table = dm.tableStatus("web");
  const t = new DataView(table.bytes.buffer);
  t.setUint32(16, 312, true);
  t.setUint32(20, 2, true);
  const put = (at: number, start: number, next: number, type: string, said: string) => {
    t.setBigUint64(at, BigInt(start), true);
    t.setBigUint64(at + 8, 100n, true);
    t.setUint32(at + 20, next, true);
    table.bytes.set(Buffer.from(type), at + 24);
    table.bytes.set(Buffer.from(`${said}\0`), at + 40);
  };
  put(312, 0, 48, "verity", "V");
  put(360, 100, 96, "integrity", "0 20480 -");
  expect(dm.lines(table)).toEqual([
    { start: 0, sectors: 100, type: "verity", text: "V" },
    { start: 100, sectors: 100, type: "integrity", text: "0 20480 -" },
  ]);
  t.setUint32(372 + 8, 1 << 30, true);
  t.setUint32(20, 3, true);
  t.setUint32(360 + 20, 1 << 30, true);
  expect(() => dm.lines(table)).toThrow("target 2 is past the answer");
  t.setUint32(28, 1 << 8, true);
  expect(() => dm.lines(table)).toThrow("longer than");

  const all = dm.list();
  const l = new DataView(all.bytes.buffer);
  l.setUint32(16, 312, true);
  expect(dm.names(all)).toEqual([]);
  l.setBigUint64(312, 0xfe00n, true);
  l.setUint32(320, 24, true);
  all.bytes.set(Buffer.from("one\0"), 324);
  l.setBigUint64(336, 0xfe01n, true);
  all.bytes.set(Buffer.from("two\0"), 348);
  expect(dm.names(all)).toEqual([
    { name: "one", device: 0xfe00 },
    { name: "two", device: 0xfe01 },
  ]);
});
