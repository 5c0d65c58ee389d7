// Numbers of devices as tables name them. What the kernel makes of the tables is tested in a machine
// (test/machine/crypt.test.ts).
import { expect, test } from "bun:test";
import { numbered } from "./mapper.ts";

test("a device's number, as mknod(2) packs it, becomes major:minor", () => {
  const packed = (major: number, minor: number) => (minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12);
  for (const [major, minor] of [
    [253, 0],
    [253, 7],
    [253, 255],
    [253, 256],
    [7, 1000],
    [259, 0],
  ] as const)
    expect(numbered(packed(major, minor))).toBe(`${major}:${minor}`);
});
