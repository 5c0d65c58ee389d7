import { expect, test } from "bun:test";
import { moduleName, signedModulesOnly } from "./load.ts";

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

test("a kernel that has no such parameter loads what it gets", () => {
  expect(signedModulesOnly("/no/such")).toBe(false);
});
