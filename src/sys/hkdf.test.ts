import { expect, test } from "bun:test";
import { hkdfSync } from "node:crypto";
import { found } from "../../test/memory.ts";
import { derived } from "./hkdf.ts";

test("derived() is HKDF", () => {
  const [from, salt] = [new Uint8Array(96).fill(7), new Uint8Array(32).fill(9)];
  expect(derived(from, salt, "what")).toEqual(Buffer.from(hkdfSync("sha256", from, salt, "what", 32)));
});

test("derived() leaves nothing of what it derives from in memory", async () => {
  const byte = (i: number) => (i * 37 + 11) & 255;
  const script = `import { derived } from "${import.meta.dir}/hkdf.ts";
    const from = new Uint8Array(new ArrayBuffer(96));
    for (let i = 0; i < 96; i++) from[i] = (i * 37 + 11) & 255;
    for (let i = 0; i < 20; i++) derived(from, new Uint8Array(32), "what");
    from.fill(0);
    console.log("done");
    await Bun.stdin.text();`;
  const child = Bun.spawn([process.execPath, "-e", script], { stdin: "pipe", stdout: "pipe" });
  await child.stdout.getReader().read();
  const third = (at: number) => Uint8Array.from({ length: 32 }, (_, i) => byte(at + i));
  const needles = new Map([0, 32, 64].map((at) => [`from ${at} on`, third(at)]));
  expect(found(child.pid, needles)).toEqual([]);
  child.stdin.end();
  expect(await child.exited).toBe(0);
});
