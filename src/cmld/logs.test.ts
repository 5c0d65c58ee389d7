import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Journal } from "../sys/journal.ts";
import { readLog, removeOld, retrievable } from "./logs.ts";

function folder(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), "logs-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

const words = async (pieces: AsyncIterable<{ bytes: Uint8Array }>): Promise<string[]> => {
  let all = "";
  for await (const p of pieces) all += Buffer.from(p.bytes).toString();
  return all
    .split("\n")
    .filter(Boolean)
    .map((l) => l.replace(/^.*> +/, ""));
};

test("the newest lines, across files", async () => {
  using dir = folder();
  const log = new Journal({ name: "x", directory: dir.path, limits: { fileBytes: 200, files: 9 } });
  for (let i = 0; i < 10; i++) log.info(`line${i}`);
  const all = Array.from({ length: 10 }, (_, i) => `line${i}`);
  expect(await words(readLog(dir.path, "x"))).toEqual(all);
  for (const n of [0, 1, 2, 3, 4, 5, 9, 10, 50])
    expect(await words(readLog(dir.path, "x", { lines: n }))).toEqual(n === 0 ? [] : all.slice(-n));
  expect(await words(readLog(dir.path, "none"))).toEqual([]);
});

test("follow: what is written afterwards, into new files too", async () => {
  using dir = folder();
  const log = new Journal({ name: "x", directory: dir.path, limits: { fileBytes: 200, files: 9 } });
  for (let i = 0; i < 5; i++) log.info(`old${i}`);
  const stop = new AbortController();
  const seen: string[] = [];
  let more = 0;
  for await (const p of readLog(dir.path, "x", { lines: 2, follow: stop.signal })) {
    for (const l of Buffer.from(p.bytes).toString().split("\n").filter(Boolean))
      seen.push(l.replace(/^.*> +/, ""));
    if (seen.includes("new19")) stop.abort();
    else if (seen.includes("old4") && more < 20) log.info(`new${more++}`);
  }
  expect(seen).toEqual(["old3", "old4", ...Array.from({ length: 20 }, (_, i) => `new${i}`)]);
});

test("a client gets regular files, and the one that is written stays", async () => {
  using dir = folder();
  const log = new Journal({ name: "cml-daemon", directory: dir.path, limits: { fileBytes: 10, files: 9 } });
  log.info("a");
  log.info("b");
  writeFileSync(join(dir.path, "cml-scd.lock-delete-old"), "");
  const files = await retrievable(dir.path);
  expect(files.length).toBe(2);
  for (const f of files) await removeOld(dir.path, f);
  expect(await retrievable(dir.path)).toEqual([files[1]!]);
});
