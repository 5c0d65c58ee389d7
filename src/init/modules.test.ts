import { expect, test } from "bun:test";
import { show } from "../sys/op.ts";
import { load, Modules, matches } from "./modules.ts";

const modules = new Modules(
  "/m",
  `kernel/virtio.ko:
kernel/virtio_ring.ko: kernel/virtio.ko
kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio_ring.ko
kernel/e1000.ko:
`,
  `alias acpi*:PNP0C0C:* button
alias pci:v*d*sv*sd*bc0Csc03i30* xhci_pci

alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000
alias pci:v00008086d0000100Fsv*sd*bc*sc*i* other
alias virtio:d00000002v* virtio_blk
`,
);

test("load() opens, loads and closes; a module that is there already is no failure", () => {
  expect("\n" + load("/m/loop.ko").map(show).join("\n")).toBe(`
openat(-100, "/m/loop.ko", 524288, 0) -> r0
finit_module(r0, "async_probe", 0)
close(r0)`);
  expect(load("/m/loop.ko")[1]!.allow).toBe(17);
});

test("files() gives what a module needs before it", () => {
  expect(modules.files(["virtio-blk", "not_here"])).toEqual([
    "/m/kernel/virtio.ko",
    "/m/kernel/virtio_ring.ko",
    "/m/kernel/virtio_blk.ko",
  ]);
  expect(modules.files(["e1000", "e1000"])).toEqual(["/m/kernel/e1000.ko"]);
});

test("present() notes what is loaded, not what is being loaded", () => {
  const some = new Modules("/m", "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\n", "");
  some.present(
    "a 16384 1 b, Live 0x0000000000000000\nb 20480 0 - Loading 0x0000000000000000\nc 1 0 - Live 0x0\n",
  );
  expect(some.files(["b"])).toEqual(["/m/kernel/b.ko"]);
});

test("drivers() finds who drives a device", () => {
  expect(modules.drivers("pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00")).toEqual(["e1000"]);
  expect(modules.drivers("virtio:d00000002v00001AF4")).toEqual(["virtio_blk"]);
  expect(modules.drivers("acpi:PNP0C0C:")).toEqual(["button"]);
  expect(modules.drivers("pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30")).toEqual(["xhci_pci"]);
  expect(modules.drivers("usb:v0525")).toEqual([]);
  expect(modules.drivers("")).toEqual([]);
});

test("matches() takes the patterns of aliases", () => {
  expect(matches("acpi*:PNP0C0C:*", "acpi:PNP0C0C:")).toBe(true);
  expect(matches("usb:v05[0-9]*", "usb:v0525")).toBe(true);
  expect(matches("usb:v05[0-9]*", "usb:v05A5")).toBe(false);
  expect(matches("a.c", "abc")).toBe(false);
  expect(matches("a?c", "abc")).toBe(true);
  expect(matches("dmi:*(x)*", "dmi:1(x)2")).toBe(true);
  expect(matches("a*b", "ab")).toBe(true);
  expect(matches("ab*b", "ab")).toBe(false); // not the same letter twice
  expect(matches("a*c*e", "abcde")).toBe(true);
  expect(matches("a*c*e", "abde")).toBe(false);
  expect(matches("abc", "abcd")).toBe(false);
});
