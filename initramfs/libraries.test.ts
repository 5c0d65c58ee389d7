import { expect, test } from "bun:test";
import { dirname } from "node:path";
import { closure, closureIn } from "./libraries.ts";

test("what the loader finds and what the files say are the same libraries", () => {
  const loaded = closure([process.execPath]);
  const libc = loaded.find((l) => l.name === "libc.so.6")!;
  expect(closureIn(dirname(libc.from), [process.execPath])).toEqual(loaded);
  expect(() => closureIn("/nowhere", [process.execPath])).toThrow("/nowhere/");
});
