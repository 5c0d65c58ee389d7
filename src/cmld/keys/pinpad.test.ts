import { expect, test } from "bun:test";
import { SOCK_NONBLOCK, SOCK_STREAM, write } from "../../sys/calls.ts";
import { pair } from "../../sys/fd.ts";
import { Struct } from "../../sys/mem.ts";
import { now } from "../../sys/now.ts";
import { listen, Typed, typedPin } from "./pinpad.ts";

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

test("what was typed before does not count; nobody waits without end, nor for who is gone", async () => {
  const heard = async (
    patienceMs: number,
    act: (press: (...codes: number[]) => void, hangUp: () => void) => void,
  ) => {
    const [ours, theirs] = pair(SOCK_STREAM | SOCK_NONBLOCK);
    using keypad = ours;
    using _ = theirs;
    const press = (...codes: number[]) => {
      for (const code of codes) now(write(keypad.n, event(code)));
    };
    press(9, 9, ENTER);
    const gone = new AbortController();
    const waiting = listen(theirs, "keypad", gone.signal, patienceMs);
    act(press, () => gone.abort());
    try {
      using pin = await waiting;
      return pin.lend((bytes) => Buffer.from(bytes).toString());
    } catch (e) {
      return (e as Error).message;
    }
  };
  expect(await heard(60_000, (press) => press(2, 3, 4, ENTER))).toBe("123");
  expect(await heard(60_000, (press) => press(2, ESC))).toBe("keypad: Esc was pressed");
  expect(await heard(100, (press) => press(2, 3))).toBe("nothing complete in 0.1 s");
  expect(await heard(60_000, (_, hangUp) => hangUp())).toBe("the client has gone");
});

test("one at a time, also where the first finds no keypad", async () => {
  const never = new AbortController().signal;
  const [first, second] = await Promise.allSettled([typedPin("one", [], never), typedPin("two", [], never)]);
  expect(String((second as PromiseRejectedResult).reason)).toContain(
    "the PIN of one is being typed: one at a time",
  );
  expect(String((first as PromiseRejectedResult).reason)).toContain("usb_configs has no keypad");
  expect(String(await typedPin("three", [], never).catch(String))).toContain("usb_configs has no keypad");
});
