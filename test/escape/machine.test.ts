// Every attack in the machine, under the product's ramdisk: none succeeds, and cmld is none the worse for it.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { ATTACKER } from "./attack.ts";
import { attacks } from "./attacks.ts";
import { Machine } from "./machine.ts";

const BOOT_MS = 240_000;
const here = attacks.filter((a) => a.only !== "host");

let machine: Machine;
beforeAll(async () => {
  const guests = new Map(
    [ATTACKER, ...here.flatMap((a) => [a.guest ?? [], a.guests ?? []].flat())].map((g) => [g.name, g]),
  );
  machine = await Machine.boot([...guests.values()]);
}, BOOT_MS);
afterAll(async () => await machine?.[Symbol.asyncDispose]());

for (const attack of here)
  test(`row ${attack.row}: ${attack.name}`, async () => {
    expect(await machine.held(attack)).toStartWith("held");
    expect(await machine.ground.baited()).toEqual([]);
    expect(await machine.unharmed()).toBe(true);
  });
