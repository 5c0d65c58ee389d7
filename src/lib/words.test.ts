// Recovery keys as words: the published examples, and every slip of one letter found.
import { expect, test } from "bun:test";
import { fromWords, words } from "./words.ts";

const first = (bytes: number[]) => words(Uint8Array.from(bytes)).split("-").slice(0, -1).join("-");

test("words are proquints: the examples of the paper", () => {
  expect(first([127, 0, 0, 1])).toBe("lusab-babad");
  expect(first([63, 84, 220, 193])).toBe("gutih-tugad");
  expect(first([255, 255])).toBe("zuzuz");
});

test("what was said comes back, however it is written; a slip is found", () => {
  const key = Uint8Array.from({ length: 16 }, (_, i) => i * 15);
  const text = words(key);
  expect(text.split("-")).toHaveLength(9);
  for (const written of [text, text.toUpperCase(), text.replaceAll("-", "  "), ` ${text}\n`])
    expect(fromWords(written)).toEqual(key);
  let missed = 0;
  for (let at = 0; at < text.length; at++)
    for (const letter of "bdfghjklmnprstvzaiou") {
      if (text[at] === "-" || text[at] === letter) continue;
      try {
        fromWords(text.slice(0, at) + letter + text.slice(at + 1));
        missed++;
      } catch {
        // found
      }
    }
  expect(missed).toBe(0);
  expect(() => fromWords(text.slice(0, -6))).toThrow(
    "a word of the recovery key is wrong, or one is missing",
  );
  expect(() => fromWords(text.replace(/^...../, "hello"))).toThrow("word 1 of the recovery key is none");
  expect(() => fromWords("")).toThrow("no words");
});
