// Ops -> one buffer: an array of `struct op` (ffi/run.c), then the strings and structs it points to. One buffer,
// so nothing it names can be collected before it.
import { ptr } from "bun:ffi";
import { mem } from "./mem.ts";
import { NR } from "./numbers.ts";
import { type Arg, type Call, type Op, Reg, show } from "./op.ts";

const SIZE = 64; // sizeof(struct op)

/** The number of a system call on this machine; throws where the architecture has none. */
export function number(call: Call): number {
  const n = NR[call][process.arch === "arm64" ? 1 : 0];
  if (n === null) throw new Error(`${call}: no such system call on ${process.arch}`);
  return n;
}

/** Where memory made by mem() lies, for a struct that points to it. The caller keeps both alive. */
export const address = (memory: Uint8Array): bigint => BigInt(ptr(memory));

/** The program as bytes. Uint8Array arguments are not copied: the caller keeps them alive, made by mem(). */
export function encode(ops: readonly Op[]): Uint8Array<ArrayBuffer> {
  const pieces: Uint8Array[] = [];
  const links: [at: number, to: number][] = []; // the word `at` is the address of `to`
  const words: [at: number, value: bigint][] = [];
  let end = 0;
  const append = (b: Uint8Array): number => {
    const at = end;
    pieces.push(b);
    end += b.length;
    const pad = -end & 7;
    if (pad > 0) {
      pieces.push(new Uint8Array(pad));
      end += pad;
    }
    return at;
  };
  append(new Uint8Array(SIZE * ops.length));

  const put = (at: number, a: Arg): void => {
    if (a === null) return;
    if (a instanceof Reg) words.push([at, BigInt(a.index)]);
    else if (a instanceof Uint8Array) words.push([at, BigInt(ptr(a))]);
    else if (typeof a === "string") {
      if (a.includes("\0")) throw new Error(`argument with a NUL byte: ${JSON.stringify(a)}`);
      links.push([at, append(Buffer.from(a + "\0"))]);
    } else if (typeof a !== "object") words.push([at, BigInt.asUintN(64, BigInt(a))]);
    else if ("data" in a) {
      const to = append(a.data);
      links.push([at, to]);
      for (const [offset, target] of a.pointers ?? []) put(to + offset, target);
    } else {
      const vector = append(new Uint8Array(8 * (a.length + 1)));
      a.forEach((s, i) => {
        put(vector + 8 * i, s);
      });
      links.push([at, vector]);
    }
  };

  ops.forEach((op, i) => {
    const at = i * SIZE;
    if (op.args.length > 6) throw new Error(`${show(op)}: more than six arguments`);
    const regs = op.args.reduce<number>((m, a, k) => m | (a instanceof Reg ? 1 << k : 0), 0);
    const head = number(op.call) | 0;
    const flags = (op.save ? op.save.index + 1 : 0) | (regs << 8) | ((op.allow ?? 0) << 16);
    words.push([at, BigInt(head) | (BigInt(flags >>> 0) << 32n)]);
    op.args.forEach((a, k) => {
      put(at + 8 + 8 * k, a);
    });
    words.push([at + 56, BigInt.asUintN(64, BigInt(op.want ?? 0))]);
  });

  const all = mem(end); // never a small Buffer: its storage may move
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  const view = new DataView(all.buffer);
  const base = BigInt(ptr(all));
  for (const [where, value] of words) view.setBigUint64(where, value, true);
  for (const [where, to] of links) view.setBigUint64(where, base + BigInt(to), true);
  return all;
}
