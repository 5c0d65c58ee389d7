// The rules of the house that a machine can check.
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { Glob } from "bun";

/** Each folder of src/ imports only what is below it. */
const BELOW: Record<string, readonly string[]> = {
  lib: [],
  sys: ["lib"],
  run: ["sys", "lib"],
  tool: ["sys", "lib"],
  pki: ["tool", "sys", "lib"],
  init: ["run", "sys", "lib"],
  cmld: ["run", "sys", "lib"],
  scd: ["pki", "run", "sys", "lib"],
  fetch: [],
  control: ["sys", "lib"],
  guestos: ["tool", "pki", "run", "sys", "lib"],
};

const sources = [...new Glob("{src,ffi,proto,initramfs,debian,test}/**/*.ts").scanSync(".")].filter(
  (f) => !f.startsWith("proto/gen/"),
);

async function offences(
  files: string[],
  judge: (file: string, text: string) => Iterable<string>,
): Promise<string[]> {
  const found: string[] = [];
  for (const file of files)
    for (const o of judge(file, await Bun.file(file).text())) found.push(`${file}: ${o}`);
  return found;
}

test("imports point downwards", async () => {
  const wrong = await offences(
    sources.filter((f) => f.startsWith("src/") && f.split("/").length > 2 && !f.endsWith(".test.ts")),
    function* (file, text) {
      const here = file.split("/")[1]!;
      for (const [, path] of text.matchAll(/from "(\.\.\/[^"]+)"/g)) {
        const [top, room] = join(dirname(file), path!).split("/");
        const target = top === "src" ? room! : top!;
        const native = target === "ffi" && ["sys", "run", "pki"].includes(here);
        if (
          target !== here &&
          target !== "proto" &&
          target !== "out" &&
          !native &&
          !BELOW[here]?.includes(target)
        )
          yield `imports ${target}`;
      }
    },
  );
  expect(wrong).toEqual([]);
});

test("memory that the kernel sees comes from mem()", async () => {
  const wrong = await offences(
    sources.filter((f) => f.startsWith("src/") && f !== "src/sys/encode.ts"),
    function* (_file, text) {
      for (const [call] of text.matchAll(/\bptr\(\s*new [^)]*\)/g)) yield call;
      if (/from "bun:ffi"/.test(text)) yield "uses bun:ffi: bindings lie in ffi/";
    },
  );
  expect(wrong).toEqual([]);
});

test("every source file opens with a paragraph, and none is called utils", async () => {
  const wrong = await offences(
    sources.filter((f) => !f.endsWith(".test.ts")),
    function* (file, text) {
      if (!/^(#!.*\n)?(\/\/|\/\*)/.test(text)) yield "no opening comment";
      if (/(^|\/)(utils?|common|helpers?)\.ts$/.test(file)) yield "a name that says nothing";
    },
  );
  expect(wrong).toEqual([]);
});

test("a test that sleeps says why on the line", async () => {
  const wrong = await offences(
    sources.filter((f) => f.endsWith(".test.ts")),
    function* (_file, text) {
      for (const [line] of text.matchAll(/^.*\b(Bun\.sleep(Sync)?|setTimeout\(resolve)\b.*$/gm))
        if (!line.includes("//")) yield line.trim();
    },
  );
  expect(wrong).toEqual([]);
});

/** Files that sources and documents name are there: a proof that is not there proves nothing. */
test("paths in sources and documents lead somewhere", async () => {
  const documents = [
    ...new Glob("{*.md,Makefile,docs/**/*.md,{ffi,initramfs}/*.c,debian/*.service}").scanSync("."),
  ];
  const wrong = await offences([...sources, ...documents], function* (file, text) {
    for (const [path] of text.matchAll(
      /(?<![\w./-])(docs|src|test|initramfs|ffi|proto|debian)\/[\w/-]+(\.test)?\.(md|ts|c|sh|proto|json)\b/g,
    ))
      if (!existsSync(path) && !file.endsWith(".test.ts")) yield `names ${path}`;
    if (!file.endsWith(".md")) return;
    for (const [, path] of text.matchAll(/\]\(([^):#]+)/g))
      if (!existsSync(join(dirname(file), path!))) yield `links ${path}`;
  });
  expect(wrong).toEqual([]);
});
