// Every attack on this host, in hosted mode: it fails against the product, it fails against a container composed here of
// the same parts, and it succeeds when the part is missing that holds it.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { SHOWN } from "./attack.ts";
import { attacks, files } from "./attacks.ts";
import { Host } from "./host.ts";

let host: Host;
beforeAll(() => {
  host = new Host();
});
afterAll(async () => await host[Symbol.asyncDispose]());

for (const attack of attacks.filter((a) => a.only !== "machine"))
  test(`row ${attack.row}: ${attack.name}`, async () => {
    const { proof } = attack;
    const held = await host.held(attack);
    expect(held).toStartWith("held");
    expect(await host.baited()).toEqual([]);
    if (typeof proof === "string") return;
    if (typeof proof === "function") {
      expect(await proof(host.world)).toStartWith("won");
      return;
    }
    expect(await host.composed(attack, {})).toStartWith("held");
    expect(await host.baited()).toEqual([]);
    const weak = await host.composed(attack, proof);
    expect(weak).toStartWith("won");
    host.clean();
  });

test("every attack is proven, but for the rows that cannot be", () => {
  const NOT_OURS = [2, 7, 17, 39];
  const elsewhere = (proof: string) => proof === SHOWN || proof.includes("test/"); // the name of another test
  const unproven = attacks
    .filter((a) => typeof a.proof === "string" && !elsewhere(a.proof))
    .map((a) => a.row);
  expect(unproven.filter((row) => !NOT_OURS.includes(row))).toEqual([]);
});

test("SPECIFICATION.md names where the attacks of each row are, and says which rows have none yet", () => {
  const rows = readFileSync("SPECIFICATION.md", "utf8").matchAll(/^\| (\d+) \|.*\| ([^|]*) \|$/gm);
  const said = [...rows].map(([, row, proof]) => ({
    row: Number(row),
    files: proof!.includes("pending") ? [] : named(proof!),
  }));
  const have = said.map(({ row }) => ({
    row,
    files: Object.entries(files).flatMap(([name, list]) => (list.some((a) => a.row === row) ? [name] : [])),
  }));
  expect(said).toEqual(have);
  const known = new Set(said.map(({ row }) => row));
  expect(attacks.filter((a) => !known.has(a.row))).toEqual([]);
});

const named = (proof: string): string[] =>
  [...proof.matchAll(/test\/escape\/attacks\/(\w+)\.ts/g)].map(([, name]) => name!).sort();
