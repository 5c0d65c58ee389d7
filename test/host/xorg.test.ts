// What an X server finds in /sys/class/graphics; another folder of /sys stands for it, for few machines have one.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { xorgWith } from "../../src/cmld/modules/xorg.ts";
import { product, World } from "./world.ts";

let world: World;
beforeAll(() => {
  world = World.open();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const FOLDER = "class/misc";
const SCRIPT = `cd /sys/${FOLDER}; for l in *; do echo $l $(readlink $l); done; touch x; mkdir /sys/class/x`;
const modules = (link: string | undefined) =>
  product().map((m) => (m.name === "xorg" ? xorgWith(() => link, FOLDER) : m));
const LINK = "../../devices/pci0000:00/0000:00:02.0/efi-framebuffer.0/graphics/fb0";

test("fb0 is the platform device, read-only, in the container alone", async () => {
  const before = readdirSync(`/sys/${FOLDER}`);
  const { said } = await world.sh(SCRIPT, { modules: modules(LINK), config: { enable_xorg_compat: true } });
  expect(said.split("\n").slice(0, 2)).toEqual([
    "fb0 ../../bus/platform/devices/efi-framebuffer.0/graphics/fb0",
    "fbcon ../../devices/virtual/graphics/fbcon",
  ]);
  expect(said).toContain("touch: x: Read-only file system");
  expect(readdirSync(`/sys/${FOLDER}`)).toEqual(before);
});

test("nothing is changed where it is not asked for, or there is no such framebuffer, which is said", async () => {
  const plain = await world.sh(SCRIPT, { modules: modules(LINK) });
  expect(plain.said).toContain("loop-control ");
  const without = await world.sh(SCRIPT, {
    modules: modules(undefined),
    config: { enable_xorg_compat: true },
  });
  expect(without.said).toContain("loop-control ");
  expect(world.log.join("\n")).toContain(
    "enable_xorg_compat: the machine has no framebuffer of the firmware's",
  );
});
