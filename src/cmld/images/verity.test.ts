import { expect, test } from "bun:test";
import { deviceName } from "./verity.ts";

test("deviceName(): the image's own, or one that every device-mapper takes", () => {
  expect(deviceName("debian-1-root")).toBe("debian-1-root");
  for (const title of ["web-1-a b", "web-1-\u00e4", `web-1-${"x".repeat(122)}`, "web-1-a\nb"]) {
    expect(deviceName(title)).toMatch(/^verity-[0-9a-f]{32}$/);
    expect(deviceName(title)).not.toBe(deviceName(`${title}x`));
  }
});
