// A text as a QR code in the terminal (ISO/IEC 18004), for what somebody wants to photograph instead of writing it down. One
// form of the many is enough for it: version 4, level L: 33 modules a side, 80 bytes of data of which 78 can be text, 20 for
// correcting errors, in one block; bytes, mask 0.
const SIDE = 33;
const DATA = 80;
const CORRECTION = 20;
/** The longest text. */
export const QR_MAX = DATA - 2;
/** Level L, mask 0, with its error correction and mask: table C.1 of the standard. */
const FORMAT = 0b111011111000100;
/** Centre of the one alignment pattern of version 4. */
const ALIGNED = 26;

// --- bytes ---------------------------------------------------------------------

/** Multiplication in GF(256) of x⁸+x⁴+x³+x²+1. */
function times(a: number, b: number): number {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ ((product >> 7) * 0x11d);
    product ^= ((b >> bit) & 1) * a;
  }
  return product;
}

/** The remainder of Reed and Solomon's division: what corrects errors. */
export function correction(data: Uint8Array, length: number): Uint8Array {
  const divisor = new Uint8Array(length);
  divisor[length - 1] = 1;
  for (let i = 0, root = 1; i < length; i++, root = times(root, 2))
    for (let j = 0; j < length; j++) {
      divisor[j] = times(divisor[j]!, root);
      if (j + 1 < length) divisor[j]! ^= divisor[j + 1]!;
    }
  const rest = new Uint8Array(length);
  for (const byte of data) {
    const factor = byte ^ rest[0]!;
    rest.copyWithin(0, 1);
    rest[length - 1] = 0;
    for (let i = 0; i < length; i++) rest[i]! ^= times(divisor[i]!, factor);
  }
  return rest;
}

/** Mode "bytes", length, text, end, filling. */
function codewords(text: string): Uint8Array {
  const bytes = Buffer.from(text, "latin1");
  if (bytes.length > QR_MAX) throw new RangeError(`${bytes.length} bytes, a QR code here has ${QR_MAX}`);
  const data = new Uint8Array(DATA);
  const put = (at: number, value: number) => {
    data[at]! |= value >> 4; // everything is four bits late, behind the mode
    if (at + 1 < DATA) data[at + 1]! |= (value & 15) << 4;
  };
  data[0] = 0b0100 << 4;
  put(0, bytes.length);
  bytes.forEach((b, i) => {
    put(i + 1, b);
  });
  for (let at = bytes.length + 2, even = true; at < DATA; at++, even = !even) data[at] = even ? 0xec : 0x11;
  return Buffer.concat([data, correction(data, CORRECTION)]);
}

// --- modules -------------------------------------------------------------------

/** Rows of modules, true for dark. */
export function qr(text: string): boolean[][] {
  const dark = Array.from({ length: SIDE }, () => new Array<boolean>(SIDE).fill(false));
  const fixed = Array.from({ length: SIDE }, () => new Array<boolean>(SIDE).fill(false));
  const set = (x: number, y: number, on: boolean) => {
    if (x < 0 || y < 0 || x >= SIDE || y >= SIDE) return;
    dark[y]![x] = on;
    fixed[y]![x] = true;
  };
  /** Squares in squares around a centre. */
  const square = (cx: number, cy: number, reach: number, isDark: (distance: number) => boolean) => {
    for (let dy = -reach; dy <= reach; dy++)
      for (let dx = -reach; dx <= reach; dx++)
        set(cx + dx, cy + dy, isDark(Math.max(Math.abs(dx), Math.abs(dy))));
  };
  for (let i = 0; i < SIDE; i++) {
    set(6, i, i % 2 === 0);
    set(i, 6, i % 2 === 0);
  }
  const corner = (d: number) => d !== 2 && d !== 4;
  for (const [x, y] of [
    [3, 3],
    [SIDE - 4, 3],
    [3, SIDE - 4],
  ] as const)
    square(x, y, 4, corner);
  square(ALIGNED, ALIGNED, 2, (d) => d !== 1);

  const bit = (i: number) => ((FORMAT >> i) & 1) === 1;
  for (let i = 0; i < 6; i++) set(8, i, bit(i));
  set(8, 7, bit(6));
  set(8, 8, bit(7));
  set(7, 8, bit(8));
  for (let i = 9; i < 15; i++) set(14 - i, 8, bit(i));
  for (let i = 0; i < 8; i++) set(SIDE - 1 - i, 8, bit(i));
  for (let i = 8; i < 15; i++) set(8, SIDE - 15 + i, bit(i));
  set(8, SIDE - 8, true);

  // Two columns at a time from the right, up and down in turn, past the one with the timing.
  const words = codewords(text);
  let at = 0;
  for (let right = SIDE - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    const upwards = ((right + 1) & 2) === 0;
    for (let step = 0; step < SIDE; step++) {
      const y = upwards ? SIDE - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (fixed[y]![x]) continue;
        const value = at < words.length * 8 && ((words[at >> 3]! >> (7 - (at & 7))) & 1) === 1;
        at++;
        dark[y]![x] = value !== ((x + y) % 2 === 0); // mask 0
      }
    }
  }
  return dark;
}

/** For a terminal: two rows a line, dark modules as spaces on a light ground, and a margin of four. */
export function drawn(text: string): string {
  const modules = qr(text);
  const light = (x: number, y: number) => modules[y]?.[x] !== true;
  const lines: string[] = [];
  for (let y = -4; y < SIDE + 4; y += 2) {
    let line = "";
    for (let x = -4; x < SIDE + 4; x++)
      line += light(x, y) ? (light(x, y + 1) ? "█" : "▀") : light(x, y + 1) ? "▄" : " ";
    lines.push(line);
  }
  return `${lines.join("\n")}\n`;
}
