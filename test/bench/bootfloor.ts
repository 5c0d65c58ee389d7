// How low a boot can go: what the platform takes before a line of ours does anything. Beside busybox' first line, with the
// same kernel, machine and memory: the same busybox in a ramdisk as large as ours (its price is unpacking), and our ramdisk with
// the least that three programs of our runtime can do in the place of init, cmld and scd (least.ts). What `make bench` says of
// the real thing is more than that by what our JavaScript does. Prints a table; not part of `make bench`:
//   bun test/bench/bootfloor.ts [RUNS]
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cpio, type Entry } from "../../initramfs/cpio.ts";
import { BLOCK, hot } from "../../initramfs/hot.ts";
import { disk } from "../../initramfs/image.ts";
import { inputs, ramdisk } from "../../initramfs/manifest.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "../machine/qemu.ts";
import { median } from "./report.ts";

const RUNS = Number(process.argv[2] ?? 5);
const MEMORY = 512;
const folder = mkdtempSync(join(tmpdir(), "bootfloor-"));

function run(...argv: string[]): void {
  const p = Bun.spawnSync(argv, { stdout: "ignore", stderr: "inherit" });
  if (p.exitCode !== 0) throw new Error(`${argv.join(" ")}: exit status ${p.exitCode}`);
}

function archive(name: string, entries: readonly Entry[]): string {
  const path = join(folder, name);
  writeFileSync(path, Buffer.concat([...cpio(entries, readFileSync)]));
  return path;
}

/** Our runtime image with another program in it. */
function another(): Entry[] {
  const from = inputs("out");
  const cml = join(folder, "cml");
  const flags = "--compile --minify-syntax --bytecode --format=esm --no-compile-autoload-dotenv";
  run(
    ...[process.execPath, "build", ...flags.split(" "), "--no-compile-autoload-bunfig"],
    ...["--compile-exec-argv=--smol", "test/bench/least.ts", "--outfile", cml],
  );
  writeFileSync(join(folder, "hot"), hot(readFileSync(cml), readFileSync(from.touched, "utf8")));
  const tree = join(folder, "runtime");
  run("cp", "-al", "out/runtime", tree);
  rmSync(join(tree, "usr/sbin/cml"));
  cpSync(cml, join(tree, "usr/sbin/cml"));
  const image = join(folder, "runtime.squashfs");
  run(
    ...["mksquashfs", tree, image, "-comp", "zstd", "-Xcompression-level", "15", "-b", String(BLOCK)],
    ...["-all-root", "-no-xattrs", "-no-progress", "-quiet", "-no-recovery"],
  );
  return ramdisk({ ...from, hot: join(folder, "hot") }, image);
}

try {
  const script = join(folder, "script");
  const commands = ["mount -t proc proc /proc", "cat /proc/uptime", "sleep 1000"];
  writeFileSync(script, `#!/bin/sh\n${commands.map((c) => `/bin/busybox ${c}\n`).join("")}`);
  const busybox: Entry[] = [
    { kind: "dir", path: "bin", mode: 0o755 },
    { kind: "file", path: "bin/busybox", mode: 0o755, from: "/bin/busybox" },
    { kind: "link", path: "bin/sh", to: "busybox" },
    { kind: "file", path: "init", mode: 0o755, from: script },
  ];
  const ground: Entry[] = [
    ...["dev", "proc"].map((path): Entry => ({ kind: "dir", path, mode: 0o755 })),
    { kind: "node", path: "dev/console", mode: 0o600, major: 5, minor: 1 },
  ];
  const ours = ramdisk(inputs("out"), "out/runtime.squashfs").filter((e) => e.path !== "init");
  const ramdisks = {
    small: archive("small.cpio", [...ground, ...busybox]),
    large: archive("large.cpio", [...ours, ...busybox]),
    least: archive("least.cpio", another()),
  };
  seed(join(folder, "data/cml"), { guests: ["core0-1"], containers: [CORE0] });
  const image = join(folder, "disk.img");
  disk(image, 256, join(folder, "data"));

  const took = new Map<string, number[]>();
  const note = (what: string, line: string): void => {
    const values = took.get(what) ?? [];
    took.set(what, [...values, Number(/([0-9]+\.[0-9]+)/.exec(line)![1])]);
  };
  const boot = (initramfs: string) =>
    Vm.boot({ initramfs, memory: MEMORY, disks: [image], more: ["-snapshot"] });
  for (let n = 0; n < RUNS; n++) {
    for (const [what, path] of [
      ["busybox' first line", ramdisks.small],
      ["the same, in a ramdisk of our size", ramdisks.large],
    ] as const) {
      await using vm = boot(path);
      note(what, await vm.sees(/^[0-9]+\.[0-9]+ /m));
    }
    await using vm = boot(ramdisks.least);
    for (const [what, word] of [
      ["PID 1 of our runtime, its first line", "init"],
      ["… the data partition mounted", "data"],
      ["… a second process, its first line", "cmld"],
      ["… a third one, its first line", "scd"],
      ["… core0's init executed", "core0"],
    ] as const)
      note(what, await vm.sees(new RegExp(`least: ${word}: [0-9.]+ s`)));
  }
  const least = median(took.get("busybox' first line")!);
  for (const [what, values] of took)
    console.log(
      `${what.padEnd(40)} ${median(values).toFixed(2).padStart(6)} s  ${(median(values) / least).toFixed(2)} × busybox  n=${RUNS}`,
    );
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(0);
