import { expect, test } from "bun:test";
import { Turns } from "./turns.ts";

test("one after the other for a key, also past one that fails; other keys do not wait", async () => {
  const turns = new Turns();
  const { promise: held, resolve: go } = Promise.withResolvers<void>();
  const done: string[] = [];
  const first = turns.take("a", async () => {
    await held;
    done.push("a1");
    throw new Error("a1");
  });
  const second = turns.take("a", async () => done.push("a2"));
  await turns.take("b", async () => done.push("b"));
  expect(done).toEqual(["b"]);
  go();
  await turns.over("a");
  expect(done).toEqual(["b", "a1", "a2"]);
  await expect(first).rejects.toThrow("a1");
  expect(await second).toBe(3);
  await turns.over("a"); // nothing is left
});
