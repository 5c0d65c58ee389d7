// Text of somebody else's on a terminal: what would act upon it is shown instead.

/** C0, DEL, C1, and what changes the direction of writing. */
const ACTIVE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const escaped = (c: string): string => {
  const n = c.codePointAt(0)!;
  return n < 0x100 ? `\\x${n.toString(16).padStart(2, "0")}` : `\\u${n.toString(16).padStart(4, "0")}`;
};
const COLOUR = /(\x1b\[[0-9;]{0,16}m)/;

/** A text of several lines that nothing on the terminal acts upon; colours stay if wanted. */
export const harmless = (s: string, colours = false): string =>
  colours
    ? s
        .replace(/\r\n/g, "\n")
        .split(COLOUR)
        .map((part, i) => (i % 2 ? part : part.replace(ACTIVE, escaped)))
        .join("")
    : s.replace(ACTIVE, escaped);
