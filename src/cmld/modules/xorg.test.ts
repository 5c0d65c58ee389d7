import { expect, test } from "bun:test";
import { platformDevice, shown } from "./xorg.ts";

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

test("shown(): a platform device is what it should be; a graphics driver's framebuffer is none of ours", () => {
  expect(shown("../../devices/platform/vesa-framebuffer.0/graphics/fb0")).toBe(true);
  expect(shown("../../devices/pci0000:00/0000:00:02.0/graphics/fb0")).toBe(false);
  expect(shown(undefined)).toBe(false);
});
