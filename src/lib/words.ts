// Bytes as words that can be said and written down: proquints (arXiv 0901.4016), 16 bits a word of five letters, with the
// first 16 bits of SHA-256 as the last word, so that a slip of the pen is told from another key.
import { createHash } from "node:crypto";

const CONSONANTS = "bdfghjklmnprstvz";
const VOWELS = "aiou";
const SUM = 2;

function word(n: number): string {
  const c = (shift: number) => CONSONANTS[(n >> shift) & 15];
  const v = (shift: number) => VOWELS[(n >> shift) & 3];
  return `${c(12)}${v(10)}${c(6)}${v(4)}${c(0)}`;
}

const sum = (bytes: Uint8Array): Uint8Array => createHash("sha256").update(bytes).digest().subarray(0, SUM);

/** An even number of bytes: "lusab-babad-…". */
export function words(bytes: Uint8Array): string {
  const all = [...bytes, ...sum(bytes)];
  const out: string[] = [];
  for (let i = 0; i < all.length; i += 2) out.push(word((all[i]! << 8) | all[i + 1]!));
  return out.join("-");
}

/** The bytes behind `text`, in any case, with anything but letters between the words. Throws which word is none. */
export function fromWords(text: string): Uint8Array {
  const list = text.toLowerCase().match(/[a-z]+/g) ?? [];
  if (list.length < 2) throw new Error("these are no words of a recovery key");
  const bytes = new Uint8Array(2 * list.length);
  list.forEach((w, i) => {
    const [a, b, c, d, e] = [...w].map((letter, at) => (at % 2 === 0 ? CONSONANTS : VOWELS).indexOf(letter));
    if (w.length !== 5 || [a, b, c, d, e].some((n) => n === undefined || n < 0))
      throw new Error(`word ${i + 1} of the recovery key is none: five letters, as in "lusab"`);
    const n = (a! << 12) | (b! << 10) | (c! << 6) | (d! << 4) | e!;
    bytes[2 * i] = n >> 8;
    bytes[2 * i + 1] = n & 0xff;
  });
  const secret = bytes.slice(0, -SUM);
  if (!Buffer.from(sum(secret)).equals(bytes.subarray(-SUM)))
    throw new Error("a word of the recovery key is wrong, or one is missing");
  return secret;
}
