// From the kernel's entry to core0 RUNNING, beside the least that could start at all: the same kernel, machine and
// memory with a ramdisk of busybox and a script. Alternating, in one run; both say the guest's own CLOCK_BOOTTIME.
// Adds its results to out/bench.json.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cpio } from "../../initramfs/cpio.ts";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "../machine/qemu.ts";
import { keep, median, report } from "./report.ts";

const RUNS = 5;
const MEMORY = 512;
const folder = mkdtempSync(join(tmpdir(), "boot-"));
try {
  const script =
    "#!/bin/sh\n/bin/busybox mount -t proc proc /proc\n/bin/busybox cat /proc/uptime\n/bin/busybox sleep 1000\n";
  writeFileSync(join(folder, "script"), script);
  const least = [
    ...cpio(
      [
        { kind: "dir", path: "dev", mode: 0o755 },
        { kind: "node", path: "dev/console", mode: 0o600, major: 5, minor: 1 },
        { kind: "dir", path: "proc", mode: 0o755 },
        { kind: "dir", path: "bin", mode: 0o755 },
        { kind: "file", path: "bin/busybox", mode: 0o755, from: "/bin/busybox" },
        { kind: "link", path: "bin/sh", to: "busybox" },
        { kind: "file", path: "init", mode: 0o755, from: join(folder, "script") },
      ],
      readFileSync,
    ),
  ];
  writeFileSync(join(folder, "least.cpio"), Buffer.concat(least));
  seed(join(folder, "data/cml"), { guests: ["core0-1"], containers: [CORE0] });
  disk(join(folder, "disk.img"), 256, join(folder, "data"));

  const [ours, theirs]: [number[], number[]] = [[], []];
  for (let run = 0; run < RUNS; run++) {
    {
      await using vm = Vm.boot({ initramfs: join(folder, "least.cpio"), memory: MEMORY });
      theirs.push(Number((await vm.sees(/^[0-9]+\.[0-9]+ /m)).trim()));
    }
    {
      await using vm = Vm.boot({
        initramfs: "out/initramfs.cpio",
        memory: MEMORY,
        disks: [join(folder, "disk.img")],
        more: ["-snapshot"],
      });
      const line = await vm.sees(/\[ *[0-9.]+\] [^[\n]*\[\d+\] <INFO> +core0: BOOTING → RUNNING/);
      ours.push(Number(/\[ *([0-9.]+)\]/.exec(line)![1]));
      if (process.argv.includes("--verbose")) console.log(vm.said);
    }
    console.log(`boot: ${theirs.at(-1)} s busybox' first line, ${ours.at(-1)} s core0 RUNNING`);
  }

  report("boot.busybox_s", median(theirs), "s", RUNS);
  report("boot.core0_s", median(ours), "s", RUNS);
  report("boot.vs_busybox", median(ours) / median(theirs), "ratio", RUNS);
  keep();
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(0);
