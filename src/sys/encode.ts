// Ops -> one buffer: an array of `struct op` (ffi/run.c), then the strings and structs it points to. One buffer,
// so nothing it names can be collected before it.
import { ptr } from "bun:ffi";
import { mem } from "./mem.ts";
import { NR } from "./numbers.ts";
import { type Arg, type Call, type Op, Reg, show } from "./op.ts";

const SIZE = 64; // sizeof(struct op)
const LOW = 0xffffffffn;

/** The number of a system call on this machine; throws where the architecture has none. */
export function number(call: Call): number {
  const n = NR[call][process.arch === "arm64" ? 1 : 0];
  if (n === null) throw new Error(`${call}: no such system call on ${process.arch}`);
  return n;
}

/** Where memory made by mem() lies, for a struct that points to it. The caller keeps both alive. */
export const address = (memory: Uint8Array): bigint => BigInt(ptr(memory));

/** The program as bytes. Uint8Array arguments are not copied: the caller keeps them alive, made by mem(). Each start of a
 * container encodes hundreds of calls while others wait: words are written as two halves, without BigInts. */
export function encode(ops: readonly Op[]): Uint8Array<ArrayBuffer> {
  const pieces: [at: number, bytes: Uint8Array][] = [];
  const links: [at: number, to: number][] = []; // the word `at` is the address of `to`
  const words: number[] = []; // where, low half, high half
  let end = SIZE * ops.length;
  const room = (n: number): number => {
    const at = end;
    end += (n + 7) & ~7;
    return at;
  };
  const append = (b: Uint8Array): number => {
    const at = room(b.length);
    pieces.push([at, b]);
    return at;
  };
  const word = (at: number, value: number): void => {
    if (value !== 0) words.push(at, value >>> 0, Math.floor(value / 2 ** 32) >>> 0);
  };

  const put = (at: number, a: Arg): void => {
    if (a === null) return;
    if (typeof a === "number") {
      if (!Number.isSafeInteger(a)) throw new RangeError(`${a} is no argument of a system call`);
      word(at, a);
    } else if (typeof a === "bigint") words.push(at, Number(a & LOW), Number((a >> 32n) & LOW));
    else if (a instanceof Reg) word(at, a.index);
    else if (a instanceof Uint8Array) word(at, ptr(a));
    else if (typeof a === "string") {
      if (a.includes("\0")) throw new Error(`argument with a NUL byte: ${JSON.stringify(a)}`);
      links.push([at, append(Buffer.from(a + "\0"))]);
    } else if ("data" in a) {
      const to = append(a.data);
      links.push([at, to]);
      for (const [offset, target] of a.pointers ?? []) put(to + offset, target);
    } else {
      const vector = room(8 * (a.length + 1));
      a.forEach((s, i) => {
        put(vector + 8 * i, s);
      });
      links.push([at, vector]);
    }
  };

  ops.forEach((op, i) => {
    const at = i * SIZE;
    const { args } = op;
    if (args.length > 6) throw new Error(`${show(op)}: more than six arguments`);
    let regs = 0;
    for (let k = 0; k < args.length; k++) {
      const a = args[k]!;
      if (a instanceof Reg) regs |= 1 << k;
      put(at + 8 + 8 * k, a);
    }
    const flags = (op.save ? op.save.index + 1 : 0) | (regs << 8) | ((op.allow ?? 0) << 16);
    words.push(at, number(op.call) >>> 0, flags >>> 0);
    put(at + 56, op.want ?? 0);
  });

  const all = mem(end); // never a small Buffer: its storage may move
  for (const [at, piece] of pieces) all.set(piece, at);
  const view = new DataView(all.buffer);
  for (let i = 0; i < words.length; i += 3) {
    view.setUint32(words[i]!, words[i + 1]!, true);
    view.setUint32(words[i]! + 4, words[i + 2]!, true);
  }
  const base = ptr(all);
  for (const [at, to] of links) {
    view.setUint32(at, (base + to) >>> 0, true);
    view.setUint32(at + 4, Math.floor((base + to) / 2 ** 32), true);
  }
  return all;
}
