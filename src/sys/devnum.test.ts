// Numbers of devices: packed, and as tables name them.
import { expect, test } from "bun:test";
import { numbered, packed, unpacked } from "./devnum.ts";

test("a device's number, as mknod(2) packs it, becomes major:minor", () => {
  const expected = (major: number, minor: number) => (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
  for (const [major, minor] of [
    [253, 0],
    [253, 7],
    [253, 255],
    [253, 256],
    [7, 1000],
    [259, 0],
  ] as const) {
    expect(packed(major, minor)).toBe(expected(major, minor));
    expect(unpacked(packed(major, minor))).toEqual({ major, minor });
    expect(numbered(packed(major, minor))).toBe(`${major}:${minor}`);
  }
});
