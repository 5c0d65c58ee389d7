import { expect, test } from "bun:test";
import { usableMac } from "./router.ts";

test("usableMac() clears the multicast bit, sets the local one, and replaces what is no address", () => {
  expect(usableMac("63:04:6E:D6:A2:5A")).toBe("62:04:6e:d6:a2:5a");
  expect(usableMac("00:11:22:33:44:55")).toBe("02:11:22:33:44:55");
  for (const text of ["", "not a mac"]) expect(usableMac(text)).toMatch(/^.[26ae](:[0-9a-f]{2}){5}$/);
});
