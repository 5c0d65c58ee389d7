// A server that trickles is given up; one that is slow, or read slowly, is not.
import { expect, test } from "bun:test";
import { Patience } from "./main.ts";

const MS = 200;
const nothing = async () => {};
const aborted = (p: Patience) =>
  new Promise<string>((told) => p.signal.addEventListener("abort", () => told(p.signal.reason.message)));

test("bytes that trickle do not begin the wait anew", async () => {
  using patience = new Patience(100, MS);
  const why = aborted(patience);
  const trickle = setInterval(() => patience.came(1, nothing), MS / 10);
  expect(await why).toMatch(/^\d+ bytes in 0.2 s, at least 100$/);
  clearInterval(trickle);
});

test("enough bytes do, and the reader's time is not the server's", async () => {
  using patience = new Patience(100, MS);
  for (let i = 0; i < 3; i++) {
    await Bun.sleep(MS / 2); // the server's
    await patience.came(60, nothing);
    await patience.came(60, () => Bun.sleep(2 * MS)); // the reader's, longer than the wait
  }
  expect(patience.signal.aborted).toBe(false);
});
