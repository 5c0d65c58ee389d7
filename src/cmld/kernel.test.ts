import { expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { modulesLoaded } from "./kernel.ts";

test("modulesLoaded() waits for what init says, and for nothing where there is no such init", async () => {
  await modulesLoaded("core", undefined);
  const folder = mkdtempSync(join(tmpdir(), "kernel-"));
  try {
    let over = false;
    const waiting = modulesLoaded("guests", folder).then(() => {
      over = true;
    });
    writeFileSync(join(folder, "core"), "");
    await modulesLoaded("core", folder);
    await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    expect(existsSync(join(folder, "wanted"))).toBe(true); // init is asked
    writeFileSync(join(folder, "guests"), "");
    await waiting;
    await modulesLoaded("guests", folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
