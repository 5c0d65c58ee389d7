import { expect, test } from "bun:test";
import { Room, Turns } from "./turns.ts";

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

test("so many at a time, the others in the order in which they came, also after a failure", async () => {
  const room = new Room(2);
  const [begun, ends]: [number[], (() => void)[]] = [[], []];
  const all = [0, 1, 2, 3].map((i) =>
    room
      .take(async () => {
        begun.push(i);
        await new Promise<void>((resolve) => ends.push(resolve));
        if (i === 0) throw new Error("it fails");
      })
      .catch(() => {}),
  );
  expect(begun).toEqual([0, 1]);
  ends[0]!();
  await all[0];
  expect(begun).toEqual([0, 1, 2]);
  for (const i of [1, 2]) ends[i]!();
  await Promise.all([all[1], all[2]]);
  expect(begun).toEqual([0, 1, 2, 3]);
  ends[3]!();
  await all[3];
  const done: number[] = [];
  await room.take(async () => done.push(4));
  expect(done).toEqual([4]);
});
