// A token without hardware: SoftHSM's PKCS #11 module, with a token of its own in a folder of its own.
import { dlopen, FFIType as T } from "bun:ffi";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const SOFTHSM = [
  "/usr/lib/softhsm/libsofthsm2.so",
  "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
].find(existsSync)!;

/** The folder of the tokens, and what SOFTHSM2_CONF is to be; for a process that has not loaded the module yet. */
export function softhsm(
  label: string,
  pin: string,
): { folder: string; config: string; serial: string } & Disposable {
  const folder = mkdtempSync(join(tmpdir(), "softhsm-"));
  const config = join(folder, "softhsm2.conf");
  mkdirSync(join(folder, "tokens"));
  writeFileSync(
    config,
    `directories.tokendir = ${folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n`,
  );
  addToken(config, label, pin);
  const shown = Bun.spawnSync(["softhsm2-util", "--show-slots"], {
    env: { ...process.env, SOFTHSM2_CONF: config },
  });
  const serial = /Serial number:\s+([0-9a-f]{16})/.exec(shown.stdout.toString())![1]!;
  return { folder, config, serial, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

export function addToken(config: string, label: string, pin: string): void {
  const made = Bun.spawnSync(
    ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", pin],
    { env: { ...process.env, SOFTHSM2_CONF: config } },
  );
  if (made.exitCode !== 0) throw new Error(`softhsm2-util: ${made.stderr}${made.stdout}`);
}

/** For a module that is loaded into this process: it asks the C library, whose environment is not process.env. */
export function useSofthsm(config: string): void {
  const { symbols } = dlopen("libc.so.6", {
    setenv: { args: [T.cstring, T.cstring, T.i32], returns: T.i32 },
  });
  symbols.setenv(Buffer.from("SOFTHSM2_CONF\0"), Buffer.from(`${config}\0`), 1);
}
