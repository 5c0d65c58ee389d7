import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { imported, markdown, type Row } from "./licenses.ts";

test("imported() follows our imports to npm's packages, and to what those need", () => {
  const dir = mkdtempSync(`${tmpdir()}/licenses-`);
  try {
    writeFileSync(
      `${dir}/main.ts`,
      'import { y } from "node:fs";\nimport("./one.ts");\nimport { Glob } from "bun";\n',
    );
    writeFileSync(`${dir}/one.ts`, 'import "./main.ts";\nimport {\n  x,\n} from "citty";\n');
    writeFileSync(`${dir}/not-imported.ts`, 'import p from "protobufjs";\n');
    expect(imported(`${dir}/main.ts`).map((p) => p.name)).toEqual(["citty (npm)"]);
    expect(imported(`${dir}/not-imported.ts`)[0]).toMatchObject({
      name: "protobufjs (npm)",
      licence: "BSD-3-Clause",
    });
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("markdown() has a table for each place; a place with very many files shows numbers", () => {
  const row = (where: string, file: string): Row => ({
    where,
    file,
    name: "p|q",
    version: "1",
    licence: "Expat",
  });
  const text = markdown([
    row("ramdisk", "/init"),
    ...Array.from({ length: 1001 }, (_, i) => row("web-1", `/f${i}`)),
  ]);
  expect(text).toContain(
    "## ramdisk\n\n| package | version | licence | files |\n|---|---|---|---|\n| p\\|q | 1 | Expat | `/init` |\n",
  );
  expect(text).toContain("## web-1");
  expect(text).toContain("| p\\|q | 1 | Expat | 1001 |");
});
