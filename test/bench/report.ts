// What `make bench` has measured: said as it comes, and kept in out/bench.json, a list of {name, value, unit, samples};
// ratios are ours / theirs.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";

const FILE = "out/bench.json";

interface Result {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly samples: number;
}

export const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1]!;

const results: Result[] = [];

export function report(name: string, value: number, unit: string, samples: number): void {
  results.push({ name, value: Number(value.toPrecision(4)), unit, samples });
  console.log(`${name.padEnd(34)} ${value.toFixed(3).padStart(10)} ${unit.padEnd(6)} n=${samples}`);
}

/** Into the file; what other parts have measured stays there. */
export function keep(): void {
  const before = existsSync(FILE) ? (JSON.parse(readFileSync(FILE, "utf8")) as Result[]) : [];
  const others = before.filter((r) => results.every((mine) => mine.name !== r.name));
  mkdirSync("out", { recursive: true });
  writeFileSync(FILE, `${JSON.stringify([...others, ...results], null, 2)}\n`);
}
