import { expect, test } from "bun:test";
import { filesOf, moduleName, signedModulesOnly } from "./load.ts";

const DEP = `kernel/net/e1000.ko:
kernel/net/nf-tables.ko.xz: kernel/lib/crc.ko kernel/lib/nl.ko
kernel/lib/crc.ko:
`;

test("a module's name is that of its file, whole", () => {
  expect(moduleName("/lib/modules/6.1/kernel/net/nf-tables.ko.xz")).toBe("nf_tables");
  expect(moduleName("/tmp/e1000.ko (deleted)")).toBeUndefined();
  for (const path of [
    "/lib/modules/e1000",
    "e1000.ko.bak",
    ".ko",
    "a b.ko",
    "pipe:[5]",
    "/memfd:x (deleted)",
  ])
    expect([path, moduleName(path)]).toEqual([path, undefined]);
});

test("what a module needs comes before it", () => {
  expect(filesOf("nf_tables", DEP)).toEqual([
    "kernel/lib/nl.ko",
    "kernel/lib/crc.ko",
    "kernel/net/nf-tables.ko.xz",
  ]);
  expect(filesOf("e1000", DEP)).toEqual(["kernel/net/e1000.ko"]);
  expect(filesOf("nf", DEP)).toBeUndefined();
});

test("a kernel that has no such parameter loads what it gets", () => {
  expect(signedModulesOnly("/no/such")).toBe(false);
});
