// Kernel modules that containers need: init loads them, those of core0 while cmld starts, and says what is done. On a host that has
// a modprobe nobody says so, and nobody has to.
import { existsSync, mkdirSync, watch, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Resolves when init has loaded what core0, or any guest, may need. `folder`: CML_MODULES, where it says so. */
export async function modulesLoaded(
  what: "core" | "guests",
  folder = process.env.CML_MODULES,
): Promise<void> {
  if (folder === undefined || existsSync(join(folder, what))) return;
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  if (what === "guests") writeFileSync(join(folder, "wanted"), ""); // init loads them only then
  const { promise, resolve } = Promise.withResolvers<void>();
  const watcher = watch(folder, (_event, name) => {
    if (name === what) resolve();
  });
  try {
    if (!existsSync(join(folder, what))) await promise; // it may have come before we watched
  } finally {
    watcher.close();
  }
}
