import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { O_NONBLOCK, read, SOCK_NONBLOCK, SOCK_STREAM } from "./calls.ts";
import { type Fd, pair, pipe } from "./fd.ts";
import { Journal, logFiles } from "./journal.ts";
import { mem } from "./mem.ts";
import { attempt } from "./now.ts";

function folder(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), "journal-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

const take = (fd: Fd): string => {
  const into = mem(1 << 20);
  const n = attempt(read(fd.n, into));
  return Buffer.from(into.subarray(0, Math.max(n, 0))).toString();
};

test("lines go to the console and to a file that `current` names", () => {
  using dir = folder();
  const { read: end, write } = pipe(O_NONBLOCK);
  const log = new Journal({ name: "cml-daemon", directory: dir.path, console: write.n });
  log.info("one\ntwo");
  log.debug("not shown");
  const text = take(end);
  expect(text).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d{4} \[\d+\] <INFO> {2}one\\ntwo\n$/);
  expect(readFileSync(readlinkSync(join(dir.path, "cml-daemon.current")), "utf8")).toBe(text);
  end.close();
  write.close();
});

test("files are bounded in size and number", () => {
  using dir = folder();
  const log = new Journal({ name: "cml-daemon", directory: dir.path, limits: { fileBytes: 1000, files: 3 } });
  for (let i = 0; i < 100; i++) log.warn(`line ${i} ${"x".repeat(100)}`);
  const files = logFiles(dir.path, "cml-daemon");
  expect(files.length).toBe(3);
  expect(readdirSync(dir.path).length).toBe(4); // and `current`
  for (const f of files) expect(readFileSync(join(dir.path, f)).length).toBeLessThan(1200);
  expect(readFileSync(readlinkSync(join(dir.path, "cml-daemon.current")), "utf8")).toContain("line 99 ");
});

for (const kind of ["pipe", "socket"] as const)
  test(`a console that does not read (${kind}) costs old lines, not time`, async () => {
    const [end, write] =
      kind === "pipe" ? Object.values(pipe(O_NONBLOCK)) : pair(SOCK_STREAM | SOCK_NONBLOCK);
    const log = new Journal({ name: "x", console: write!.n, limits: { waiting: 10_000 } });
    const before = performance.now();
    for (let i = 0; i < 5000; i++) log.info(`${i} ${"x".repeat(200)}`);
    expect(performance.now() - before).toBeLessThan(1000);
    let all = "";
    while (!all.includes("lines lost")) {
      all += take(end!);
      await new Promise<void>((next) => setImmediate(next));
    }
    expect(all).toContain("<INFO>  0 xxx");
    expect(all).toContain("<INFO>  4999 xxx");
    end!.close();
    write!.close();
  });
