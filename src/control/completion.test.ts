import { expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { COMMANDS } from "./commands.ts";
import { bash, fish, zsh } from "./completion.ts";

/** What a real bash offers for these words, the last one being written. */
async function offered(...words: string[]): Promise<string[]> {
  const folder = mkdtempSync(`${tmpdir()}/completion-`);
  try {
    writeFileSync(`${folder}/control`, "#!/bin/sh\nprintf 'web\\nwiki\\ndb\\n'\n");
    chmodSync(`${folder}/control`, 0o755);
    writeFileSync(`${folder}/web.conf`, "");
    const script = `${bash()}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _control; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const shell = Bun.spawn(["bash", "-c", script, "bash", ...words], {
      cwd: folder,
      env: { PATH: `${folder}:/usr/bin:/bin` },
      stdout: "pipe",
    });
    return (await shell.stdout.text()).split("\n").filter(Boolean);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("bash completes commands, containers, files and options", async () => {
  expect(await offered("control", "st")).toEqual(["state", "start", "stop", "stats"]);
  expect(await offered("control", "start", "w")).toEqual(["web", "wiki"]);
  expect(await offered("control", "START", "d")).toEqual(["db"]);
  expect(await offered("control", "-s", "list", "start", "w")).toEqual(["web", "wiki"]);
  expect(await offered("control", "--socket", "=", "x", "stop", "d")).toEqual(["db"]);
  expect(await offered("control", "create", "w")).toEqual(["web.conf"]);
  expect(await offered("control", "update_config", "web", "w")).toEqual(["web.conf"]);
  expect(await offered("control", "start", "--w")).toEqual(["--wait"]);
  expect(await offered("control", "run", "--user", "joe", "w")).toEqual(["web", "wiki"]);
  expect(await offered("control", "run", "web", "bas")).toContain("bash");
  expect(await offered("control", "run", "web", "ls", "-")).toEqual([]);
  expect(await offered("control", "stats", "web", "d")).toEqual(["db"]);
  expect(await offered("control", "freeze", "web", "")).toEqual([]);
  expect(await offered("control", "completion", "f")).toEqual(["fish"]);
});

test("every shell's script has every command and every option", () => {
  for (const script of [bash(), zsh(), fish()])
    for (const c of COMMANDS) {
      expect(script).toContain(c.name);
      for (const o of c.options) expect(script).toMatch(new RegExp(`(--|-l )${o.name}\\b`));
    }
});
