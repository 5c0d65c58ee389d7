// manifest → out/initramfs.cpio, and a list of every file in it. With --test: out/test/initramfs.cpio, the same
// executable and files with the test agent added in a directory of its own. With --cold: out/cold/initramfs.cpio, the same
// files in blocks of a page and none of them laid ready (`make hot`).
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { cpio, type Entry } from "./cpio.ts";
import { BLOCK, hot } from "./hot.ts";
import { inputs, lists, machineModules, ramdisk, runtime, UNPACKED } from "./manifest.ts";
import { modulesAlias, modulesDep } from "./modules.ts";
import { unpacked } from "./packages.ts";

const OUT = "out";

/** Block size and level were measured: docs/decisions/ramdisk.md. No clock, no owner but root. */
const SQUASHFS = [
  ["-comp", "zstd", "-Xcompression-level", "15", "-b", String(BLOCK)],
  ["-all-root", "-all-time", "0", "-mkfs-time", "0", "-reproducible", "-no-xattrs", "-exports"],
  ["-no-progress", "-quiet", "-no-recovery"],
].flat();

function run(argv: string[]): void {
  const p = Bun.spawnSync(argv, { stdout: "inherit", stderr: "inherit" });
  if (p.exitCode !== 0) throw new Error(`${argv.join(" ")}: exit status ${p.exitCode}`);
}

function stage(entries: readonly Entry[], root: string): void {
  rmSync(root, { recursive: true, force: true });
  mkdirSync(root, { recursive: true });
  for (const e of entries) {
    const path = `${root}/${e.path}`;
    if (e.kind === "dir") mkdirSync(path, { mode: e.mode });
    else if (e.kind === "link") symlinkSync(e.to, path);
    else if (e.kind === "file") {
      copyFileSync(e.from, path);
      chmodSync(path, e.mode);
    } else throw new Error(`${e.path}: a device node belongs into the ramdisk, not into the runtime image`);
  }
}

function archive(entries: readonly Entry[], to: string): void {
  rmSync(to, { force: true }); // a writer does not shorten what is there
  const out = Bun.file(to).writer();
  for (const piece of cpio(entries, readFileSync)) out.write(piece);
  out.end();
}

/** One line a file: size, path. */
const list = (entries: readonly Entry[], prefix: string): string[] =>
  entries
    .filter((e) => e.kind !== "dir")
    .map((e) => {
      const size = e.kind === "file" ? statSync(e.from).size : 0;
      return `${String(size).padStart(10)}  ${prefix}${e.path}${e.kind === "link" ? ` -> ${e.to}` : ""}`;
    });

const from = inputs(OUT);

const image = `${OUT}/runtime.squashfs`;
if (process.argv.includes("--test")) {
  // mksquashfs appends: what is tested is the product's own image, byte for byte, and one directory more.
  const extra = `${OUT}/test/extra`;
  rmSync(extra, { recursive: true, force: true });
  mkdirSync(`${extra}/test`, { recursive: true });
  const programs = ["agent", "volumes", "search", "keypad"].map((name) => `test/machine/${name}.ts`);
  const where = ["--outdir", `${extra}/test`, "--public-path", "/test/"];
  run([process.execPath, "build", "--target=bun", ...programs, ...where]);
  copyFileSync("test/machine/daemons.json", `${extra}/test/daemons.json`);
  copyFileSync("/usr/sbin/dmsetup", `${extra}/test/dmsetup`); // its libraries are libcryptsetup's
  const testImage = `${OUT}/test/runtime.squashfs`;
  copyFileSync(image, testImage);
  run(["mksquashfs", extra, testImage, ...SQUASHFS.filter((o) => o !== "-reproducible")]);
  archive(ramdisk(from, testImage), `${OUT}/test/initramfs.cpio`);
  console.log(`${OUT}/test/initramfs.cpio: with the test agent, for tests only`);
} else if (process.argv.includes("--cold")) {
  const cold = `${OUT}/cold/runtime.squashfs`;
  mkdirSync(`${OUT}/cold`, { recursive: true });
  rmSync(cold, { force: true });
  run(["mksquashfs", `${OUT}/runtime`, cold, ...SQUASHFS, "-b", "4096"]);
  const without = ramdisk(from, cold).filter((e) => e.path !== "hot");
  archive(without, `${OUT}/cold/initramfs.cpio`);
} else {
  mkdirSync(from.generated, { recursive: true });
  const modules = machineModules(from);
  writeFileSync(`${from.generated}/modules.dep`, modulesDep(modules));
  writeFileSync(`${from.generated}/modules.alias`, modulesAlias(modules));
  for (const [name, text] of Object.entries(lists(from))) writeFileSync(`${from.generated}/${name}`, text);
  writeFileSync(`${from.generated}/hot`, "nothing is laid: stage0.c\n");
  writeFileSync(from.hot, hot(readFileSync(from.cml), readFileSync(from.touched, "utf8")));
  unpacked(UNPACKED, from.packages);
  const inside = runtime(from);
  stage(inside, `${OUT}/runtime`);
  rmSync(image, { force: true });
  run(["mksquashfs", `${OUT}/runtime`, image, ...SQUASHFS]);
  const outside = ramdisk(from, image);
  archive(outside, `${OUT}/initramfs.cpio`);
  const lines = [...list(outside, "/"), ...list(inside, "/runtime.squashfs:/")];
  writeFileSync(`${OUT}/initramfs.files`, lines.map((l) => `${l}\n`).join(""));
  if (inside.some((e) => e.path === "test" || e.path.startsWith("test/")))
    throw new Error("the test agent is in the product's image");
  console.log(`${OUT}/initramfs.cpio: ${statSync(`${OUT}/initramfs.cpio`).size} bytes`);
}
