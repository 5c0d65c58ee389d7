import { expect, test } from "bun:test";
import { Struct } from "../../sys/mem.ts";
import { Typed } from "./pinpad.ts";

const event = (code: number, value = 1, type = 1) =>
  new Struct(24).skip(16).u16(type).u16(code).i32(value).bytes;
const [ESC, BACKSPACE, ENTER, A] = [1, 14, 28, 30];

function type(...codes: number[]): string | undefined {
  using typed = new Typed();
  for (const code of codes) {
    typed.event(event(4, 0x70004, 4)); // EV_MSC comes before each key
    using pin = typed.event(event(code));
    if (pin) return pin.lend((bytes) => Buffer.from(bytes).toString());
    for (const value of [2, 0]) expect(typed.event(event(code, value))).toBeUndefined();
  }
  return undefined;
}

test("digits of both rows, once for each press; the rest is not heard", () => {
  expect(type(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ENTER)).toBe("1234567890");
  expect(type(82, 79, 80, 81, 75, 76, 77, 71, 72, 73, 96)).toBe("0123456789");
  expect(type(2, A, 3, ENTER)).toBe("12");
  expect(type(BACKSPACE, 2, 3, BACKSPACE, 4, ENTER)).toBe("13");
  expect(type(ENTER)).toBe("");
  expect(type(2, 3)).toBeUndefined();
});

test("Esc gives up, and 64 digits are enough", () => {
  expect(() => type(2, ESC)).toThrow("Esc was pressed");
  const many = Array.from({ length: 64 }, () => 2);
  expect(type(...many, ENTER)).toBe("1".repeat(64));
  expect(() => type(...many, 2)).toThrow("more than 64 digits");
});
