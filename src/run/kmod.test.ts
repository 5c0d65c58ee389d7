// The order in which modules are loaded when they are first needed.
import { expect, test } from "bun:test";
import { filesFor, needsOf } from "./kmod.ts";

const DEP = `kernel/drivers/md/dm-crypt.ko: kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-mod.ko:
kernel/drivers/md/dm-integrity.ko.xz: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko
`;
const names = (wanted: string[], there: string[] = []) =>
  filesFor(needsOf(DEP), wanted, (name) => there.includes(name)).map((f) =>
    f.replace("kernel/drivers/md/", ""),
  );

test("what a module needs comes before it, once; what is loaded, built in or unknown is left out", () => {
  expect(names(["dm-integrity", "dm-crypt"])).toEqual([
    "dm-mod.ko",
    "dm-bufio.ko",
    "dm-integrity.ko.xz",
    "dm-crypt.ko",
  ]);
  expect(names(["dm_crypt"], ["dm_mod"])).toEqual(["dm-crypt.ko"]);
  expect(names(["sha256"])).toEqual([]);
});
