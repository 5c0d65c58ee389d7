import { expect, test } from "bun:test";
import { write } from "../sys/calls.ts";
import { pipe } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { errand } from "./errand.ts";

test("errand(): a byte for each part, in order; the end of the pipe means all that will ever be done", async () => {
  const { read, write: child } = pipe();
  const { disk, core } = errand(String(read.take()));
  let all = false;
  void core.then(() => (all = true));
  now(write(child.n, mem(1)));
  await disk;
  expect(all).toBe(false);
  child.close(); // it was killed
  await core;
});

test("errand(): nobody was sent: nothing to wait for", async () => {
  const { disk, core } = errand(undefined);
  await Promise.all([disk, core]);
});
