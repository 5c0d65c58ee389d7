// Two named pipes and what passes them on: real pipes, and shells at both ends.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AT_FDCWD, O_DIRECTORY, O_PATH, openat } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { Forwarder, giveBack, makeFifo, removeSource, take } from "./fifos.ts";

let folder: string;
let base: Fd;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "cml-fifos-"));
  base = new Fd(now(openat(AT_FDCWD, folder, O_PATH | O_DIRECTORY)));
});
afterEach(() => {
  base.close();
  rmSync(folder, { recursive: true });
});

const own = process.getuid!();
const forwarder = (): Forwarder =>
  new Forwarder(makeFifo(base, "in", own, 0o666), makeFifo(base, "out", own, 0o666));
const [IN, OUT] = ["fifos/in", "fifos/out"];
const sh = (script: string) =>
  Bun.spawn(["sh", "-c", script], { cwd: folder, stdout: "pipe", stderr: "inherit" });
const said = async (script: string): Promise<string> => await sh(script).stdout.text();

test("what is written to one is read from the other, with its end", async () => {
  using _ = forwarder();
  const reader = said(`cat ${OUT}`);
  await said(`echo one > ${IN}`);
  expect(await reader).toBe("one\n");
  const second = said(`cat ${OUT}`);
  await said(`echo two > ${IN}`);
  expect(await second).toBe("two\n");
});

test("a writer does not wait for a reader, and what it wrote waits for one", async () => {
  using _ = forwarder();
  await said(`echo early > ${IN}`);
  expect(await said(`cat ${OUT}`)).toBe("early\n");
  await said(`echo a > ${IN}; echo b > ${IN}`);
  await said(`echo c > ${IN}`);
  expect(await said(`head -c 6 ${OUT}`)).toBe("a\nb\nc\n");
});

test("a reader gets the end after what was written before it came", async () => {
  using _ = forwarder();
  await said(`echo kept > ${IN}`);
  const reader = sh(`exec 3< ${OUT}; read line <&3; echo "$line"; read line <&3 || echo end`);
  expect(await reader.stdout.text()).toBe("kept\nend\n");
});

test("much more than fits: nothing is lost or read before there is room", async () => {
  using _ = forwarder();
  const size = 8 << 20;
  const writer = sh(`head -c ${size} /dev/urandom | tee copy > ${IN}; echo written`);
  const reader = sh(`exec < ${OUT}; head -c 100000 > got; echo some; cat >> got; cmp got copy && echo same`);
  expect(await reader.stdout.text()).toBe("some\nsame\n");
  expect(await writer.stdout.text()).toBe("written\n");
  expect(statSync(join(folder, "got")).size).toBe(size);
});

test("without a reader the writer waits; what was taken is kept, and no time is spent", async () => {
  using _ = forwarder();
  const before = process.cpuUsage();
  expect(await said(`timeout 0.5 head -c 1000000 /dev/zero > ${IN}; echo $?`)).toBe("124\n");
  const { user, system } = process.cpuUsage(before);
  expect(user + system).toBeLessThan(250_000); // half of the time that it waited
  const kept = Number(await said(`cat ${OUT} | wc -c`));
  expect(kept).toBeGreaterThanOrEqual(65536);
  expect(kept).toBeLessThan(1_000_000);
});

test("a writer ends with the forwarder", async () => {
  const f = forwarder();
  const writer = sh(`trap "" PIPE; { echo begun >&2; cat /dev/zero; } 2>&1 > ${IN} | head -n 1; echo done`);
  const reader = sh(`head -c 1 ${OUT} | wc -c`);
  expect(await reader.stdout.text()).toBe("1\n");
  f[Symbol.dispose]();
  expect(await writer.stdout.text()).toBe("begun\ndone\n");
});

test("its mode is octal, whatever the umask", () => {
  const before = process.umask(0o077);
  try {
    makeFifo(base, "in", own, 0o666).close();
  } finally {
    process.umask(before);
  }
  expect(statSync(join(folder, IN)).mode).toBe(0o010666);
});

test("no link is followed, and what is no pipe is no pipe", () => {
  const outside = join(folder, "outside");
  mkdirSync(outside);
  mkdirSync(join(folder, "fifos"));
  symlinkSync(join(outside, "file"), join(folder, IN));
  expect(() => makeFifo(base, "in", own, 0o666)).toThrow("fifos/in cannot be made: something else is there");
  removeSource({ kind: "fifo", at: folder, name: "in" });
  expect(readdirSync(join(folder, "fifos"))).toEqual(["in"]);
  rmSync(join(folder, "fifos"), { recursive: true });
  symlinkSync(outside, join(folder, "fifos"));
  expect(() => makeFifo(base, "in", own, 0o666)).toThrow(/openat2/);
  expect(readdirSync(outside)).toEqual([]);
});

test("a name leads to one container, and is removed when nobody has it", () => {
  makeFifo(base, "in", own, 0o666).close();
  expect(take("in", "a")).toBeUndefined();
  expect(take("in", "b")).toBe("a");
  giveBack("in", "b");
  removeSource({ kind: "fifo", at: folder, name: "in" });
  expect(readdirSync(join(folder, "fifos"))).toEqual(["in"]);
  giveBack("in", "a");
  for (const _ of [1, 2]) removeSource({ kind: "fifo", at: folder, name: "in" });
  expect(readdirSync(join(folder, "fifos"))).toEqual([]);
});
