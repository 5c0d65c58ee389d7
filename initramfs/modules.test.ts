import { expect, test } from "bun:test";
import { modulesAlias, modulesDep } from "./modules.ts";

const modules = [
  { name: "virtio", path: "kernel/virtio.ko", size: 1, depends: [], aliases: [] },
  {
    name: "virtio_blk",
    path: "kernel/virtio_blk.ko",
    size: 1,
    depends: ["virtio"],
    aliases: ["virtio:d00000002v*", "virtio:d*v*", "fs-not-a-device"],
  },
];

test("modules.dep and modules.alias in depmod's format, devices only, wide patterns first", () => {
  expect(modulesDep(modules)).toBe("kernel/virtio.ko:\nkernel/virtio_blk.ko: kernel/virtio.ko\n");
  expect(modulesAlias(modules)).toBe("alias virtio:d*v* virtio_blk\n\nalias virtio:d00000002v* virtio_blk\n");
});
