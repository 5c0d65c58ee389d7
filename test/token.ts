// The original's token of test/data behind another PIN: for tests that search memory for a PIN, which must be a word that nothing else
// contains. ("newpin1", its own, is found in one process of forty that has never heard of it: the runtime keeps the name of a
// field, "device_newpin", and the byte behind it is whatever was there.)
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const OWN_PIN = "newpin1";

/** With as many iterations as before. */
export function tokenBehind(pin: string, uuid: string, to: string): void {
  const folder = mkdtempSync(join(tmpdir(), "token-"));
  const pem = join(folder, "pem");
  for (const args of [
    ["-in", `test/data/tokens/${uuid}.p12`, "-passin", `pass:${OWN_PIN}`, "-nodes", "-out", pem],
    ["-export", "-in", pem, "-iter", "2048", "-passout", `pass:${pin}`, "-out", to],
  ]) {
    const made = Bun.spawnSync(["openssl", "pkcs12", ...args]);
    if (!made.success) throw new Error(made.stderr.toString());
  }
  rmSync(folder, { recursive: true });
}
