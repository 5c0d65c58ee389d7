import { expect, test } from "bun:test";
import { writeText } from "../sys/calls.ts";
import { pipe } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { errand } from "./errand.ts";

test("errand(): a digit for each part, in any order; the end of the pipe means all that will ever be done", async () => {
  const { read, write: child } = pipe();
  const { fileSystem, disk, core } = errand(String(read.take()));
  let ready = false;
  void disk.then(() => (ready = true));
  now(writeText(child.n, "20"));
  await Promise.all([fileSystem, core]);
  expect(ready).toBe(false);
  child.close(); // it was killed
  await disk;
});

test("errand(): nobody was sent: nothing to wait for", async () => {
  const { fileSystem, disk, core } = errand(undefined);
  await Promise.all([fileSystem, disk, core]);
});
