import { expect, test } from "bun:test";
import { bar } from "./progress.ts";

test("a bar shows how far it is, and fits the line", () => {
  const of = 49 * 2 ** 20;
  expect(bar({ file: "root.img", bytes: of / 4, of }, 80)).toBe(
    "root.img [######------------------]  25 %  12.3 of 49.0 MiB",
  );
  expect(bar({ file: "root.img", bytes: of, of }, 80)).toContain("[########################] 100 %");
  expect(bar({ file: "root.img", bytes: 0, of: 0 }, 80)).toContain("  0 %");
  expect(bar({ file: "root.hash.img", bytes: 1 << 20, of: undefined }, 80)).toBe("root.hash.img 1.0 MiB");
  expect(bar({ file: "root.img", bytes: 0, of }, 20)).toHaveLength(19);
});
