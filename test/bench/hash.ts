// Hashing an image through scd, in its room, by descriptor, beside `openssl dgst -sha256` on the same file: alternating,
// in one run. Adds its results to out/bench.json.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { identity } from "../../initramfs/pki.ts";
import { ScdClient } from "../../src/cmld/scd.ts";
import { AT_FDCWD, O_RDONLY, openat } from "../../src/sys/calls.ts";
import { Fd } from "../../src/sys/fd.ts";
import { now } from "../../src/sys/now.ts";
import { keep, median, report } from "./report.ts";

const MIB = 256;
const RUNS = 9;
const folder = mkdtempSync(join(tmpdir(), "hash-"));
try {
  const path = join(folder, "image");
  const piece = crypto.getRandomValues(new Uint8Array(65_536));
  writeFileSync(path, Buffer.concat(Array.from({ length: MIB * 16 }, () => piece)));
  identity(join(folder, "base"));
  using scd = new ScdClient({ base: join(folder, "base"), socket: join(folder, "socket"), log: () => {} });
  const [ours, theirs]: [number[], number[]] = [[], []];
  for (let run = 0; run <= RUNS; run++) {
    let began = Bun.nanoseconds();
    using file = new Fd(now(openat(AT_FDCWD, path, O_RDONLY)));
    const digest = await scd.hash(file, path, "sha256");
    const mine = (Bun.nanoseconds() - began) / 1e9;
    began = Bun.nanoseconds();
    const openssl = Bun.spawnSync(["openssl", "dgst", "-sha256", "-r", path]);
    const other = (Bun.nanoseconds() - began) / 1e9;
    if (openssl.stdout.toString().slice(0, 64) !== digest)
      throw new Error(`openssl says ${openssl.stdout}${openssl.stderr}, scd ${digest}`);
    if (run === 0) continue; // scd has been started with it
    ours.push(mine);
    theirs.push(other);
  }
  report("hash.mib_per_s", MIB / median(ours), "MiB/s", RUNS);
  report("hash.openssl_mib_per_s", MIB / median(theirs), "MiB/s", RUNS);
  report("hash.vs_openssl", median(theirs) / median(ours), "ratio", RUNS);
  keep();
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(0);
