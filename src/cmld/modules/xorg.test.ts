import { expect, test } from "bun:test";
import { platformDevice } from "./xorg.ts";

test("platformDevice(): the firmware's framebuffer on a PCI device, and nothing else", () => {
  const on = (device: string) => `../../devices/pci0000:00/0000:00:02.0/${device}/graphics/fb0`;
  expect(platformDevice(on("efi-framebuffer.0"))).toBe("efi-framebuffer.0");
  expect(platformDevice(on("vesa-framebuffer.0"))).toBe("vesa-framebuffer.0");
  for (const other of [
    undefined,
    "../../devices/platform/efi-framebuffer.0/graphics/fb0",
    on("drm"),
    on("efi-framebuffer.0/.."),
    `${on("efi-framebuffer.0")}/x`,
  ])
    expect(platformDevice(other)).toBeUndefined();
});
