// `make hot`: which pages of the runtime a boot to core0 touches. It boots the machine with an image whose blocks are
// one page each, so that the kernel has in memory what was touched and nothing else, and then looks for the pages of the
// executable in the machine's memory. Writes initramfs/hot.x86_64; after a change of the runtime, no sooner.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { elf, listOf } from "../../initramfs/hot.ts";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const PAGE = 4096;
const MEMORY = 768;
const folder = mkdtempSync(join(tmpdir(), "hot-"));
try {
  seed(join(folder, "data/cml"), { guests: ["core0-1"], containers: [CORE0] });
  disk(join(folder, "disk.img"), 256, join(folder, "data"));
  const memory = join(folder, "memory");
  {
    await using vm = Vm.boot({
      initramfs: "out/cold/initramfs.cpio",
      memory: MEMORY,
      disks: [join(folder, "disk.img")],
    });
    await vm.sees("core0: BOOTING → RUNNING");
    await vm.monitor("pmemsave", { val: 0, size: MEMORY << 20, filename: memory });
  }
  const seen = new Set<number | bigint>();
  const bytes = readFileSync(memory);
  for (let at = 0; at < bytes.length; at += PAGE) seen.add(Bun.hash(bytes.subarray(at, at + PAGE)));
  const file = readFileSync("out/cml");
  const nothing = Bun.hash(new Uint8Array(PAGE)); // any memory looks like that
  const touched: number[] = [];
  for (let page = 0; page < Math.floor(elf(file).ours / PAGE); page++) {
    const hash = Bun.hash(file.subarray(page * PAGE, (page + 1) * PAGE));
    if (hash !== nothing && seen.has(hash)) touched.push(page);
  }
  const { version } = JSON.parse(readFileSync("node_modules/bun/package.json", "utf8")) as {
    version: string;
  };
  writeFileSync("initramfs/hot.x86_64", listOf(`bun ${version}`, touched));
  console.log(`initramfs/hot.x86_64: ${touched.length} pages`);
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(0);
