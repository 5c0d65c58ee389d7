// Chance that is the same in every run, and inputs broken by it: for tests that try what nobody would send.

export const SEED = 20_261_121;

/** mulberry32, a public-domain generator of 32-bit numbers. */
export class Chance {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  below(n: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n);
  }
  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
  bytes(n: number): Buffer {
    return Buffer.from(Array.from({ length: n }, () => this.below(256)));
  }
}

/** Milliseconds of processor time since `began`, a process.cpuUsage(): whoever else uses the machine does not count. */
export function spent(began: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(began);
  return (user + system) / 1000;
}

/** A few random wounds: bits, cuts, repetitions, pieces of other inputs and words that mean something. */
export function broken(chance: Chance, seeds: readonly Buffer[], words: readonly Buffer[]): Buffer {
  let bytes = Buffer.from(chance.of(seeds));
  for (let wounds = 1 + chance.below(4); wounds > 0; wounds--) {
    const at = chance.below(bytes.length + 1);
    const until = Math.min(bytes.length, at + chance.below(chance.below(8) === 0 ? 4096 : 16));
    const [before, piece, after] = [bytes.subarray(0, at), bytes.subarray(at, until), bytes.subarray(until)];
    const replacement = [
      () => Buffer.alloc(0),
      () => Buffer.concat([piece, piece]),
      () => chance.bytes(chance.below(12)),
      () => Buffer.from(piece.map((b) => b ^ (1 << chance.below(8)))),
      () => chance.of(words),
      () => Buffer.concat(Array.from({ length: chance.below(200) }, () => chance.of(words))),
      () => {
        const other = chance.of(seeds);
        const start = chance.below(other.length + 1);
        return other.subarray(start, start + chance.below(64));
      },
    ];
    bytes = Buffer.concat([before, chance.of(replacement)(), after]);
  }
  return bytes;
}
