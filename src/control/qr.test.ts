// QR codes: the published example of the correction, a code's fixed parts, and codes that a reader (zbarimg 0.23) has read as
// their text, by their digest.
import { expect, test } from "bun:test";
import { correction, drawn, QR_MAX, qr } from "./qr.ts";

test("correction: the standard's example, HELLO WORLD in 1-M", () => {
  const data = [32, 91, 11, 120, 209, 114, 220, 77, 67, 64, 236, 17, 236, 17, 236, 17];
  expect([...correction(Uint8Array.from(data), 10)]).toEqual([196, 35, 39, 119, 235, 215, 231, 226, 93, 23]);
});

test("codes are those that a reader has read", () => {
  const digest = (text: string) => Bun.hash(JSON.stringify(qr(text))).toString(16);
  expect(digest("lusab-babad-gutih-tugad-lusab-babad-gutih-tugad-zuzuz")).toBe("101280913cfe01ed");
  expect(digest("a")).toBe("ef253012b9f8db40");
  expect(digest("x".repeat(QR_MAX))).toBe("cf06148450d46310");
  expect(() => qr("x".repeat(QR_MAX + 1))).toThrow("79 bytes, a QR code here has 78");
});

test("drawn: two rows a line, and a light margin all around", () => {
  const lines = drawn("a").trimEnd().split("\n");
  expect(lines).toHaveLength(21);
  expect(lines.every((l) => [...l].length === 41 && l.startsWith("████") && l.endsWith("████"))).toBe(true);
  expect([lines[0], lines[1]]).toEqual(["█".repeat(41), "█".repeat(41)]);
});
