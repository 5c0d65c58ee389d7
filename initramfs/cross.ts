// Builds the executable for another architecture: bun initramfs/cross.ts ARCH OUTPUT [flags of `bun build`].
//
// The runtime for it is npm's package, fetched by npm and held to the hash that package-lock.json has for it. What
// the source embeds (out/run.so, out/cservice) must be that architecture's, so the build runs in a copy of the
// sources whose out/ has those.
import { createHash } from "node:crypto";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { chain } from "../src/sys/error.ts";

interface Lock {
  readonly packages: Readonly<Record<string, { version: string; integrity: string } | undefined>>;
}

function run(argv: string[], cwd: string): void {
  const p = Bun.spawnSync(argv, { cwd, stdout: "inherit", stderr: "inherit", stdin: "ignore" });
  if (p.exitCode !== 0) throw new Error(`${argv.join(" ")}: exit status ${p.exitCode}`);
}

/** Throws unless the file has the hash ("sha512-…", as in package-lock.json). */
export function verify(bytes: Uint8Array, integrity: string, name: string): void {
  const [algorithm, expected] = integrity.split("-", 2);
  const found = createHash(algorithm!).update(bytes).digest("base64");
  if (found !== expected)
    throw new Error(`${name}: its hash is ${found}, package-lock.json says ${expected}`);
}

/** The other architecture's runtime, fetched once. */
function runtime(arch: string, folder: string): string {
  const name = `@oven/bun-linux-${arch}`;
  const lock = JSON.parse(readFileSync("package-lock.json", "utf8")) as Lock;
  const entry = lock.packages[`node_modules/${name}`];
  if (!entry) throw new Error(`${name}: not in package-lock.json`);
  const bun = join(folder, `bun-${entry.version}`);
  if (existsSync(bun)) return bun;
  const archive = join(folder, `oven-bun-linux-${arch}-${entry.version}.tgz`);
  if (!existsSync(archive)) run(["npm", "pack", "--silent", `${name}@${entry.version}`], folder);
  verify(readFileSync(archive), entry.integrity, archive);
  rmSync(join(folder, "package"), { recursive: true, force: true });
  run(["tar", "-xzf", resolve(archive), "package/bin/bun"], folder);
  renameSync(join(folder, "package/bin/bun"), bun);
  return bun;
}

if (import.meta.main) {
  const [arch, output, ...flags] = process.argv.slice(2);
  try {
    if (arch === undefined || output === undefined) throw new Error("usage: cross.ts ARCH OUTPUT [FLAGS]");
    const folder = resolve("out", arch);
    mkdirSync(folder, { recursive: true });
    const bun = runtime(arch, folder);
    const tree = join(folder, "tree");
    rmSync(tree, { recursive: true, force: true });
    mkdirSync(join(tree, "out"), { recursive: true });
    for (const name of ["src", "ffi", "proto", "package.json", "tsconfig.json"])
      cpSync(name, join(tree, name), { recursive: true });
    symlinkSync(resolve("node_modules"), join(tree, "node_modules"));
    for (const name of ["run.so", "cservice"]) copyFileSync(join(folder, name), join(tree, "out", name));
    const target = ["--target=bun-linux-arm64", `--compile-executable-path=${bun}`];
    run([process.execPath, "build", ...flags, ...target, "src/main.ts", "--outfile", resolve(output)], tree);
  } catch (e) {
    console.error(`cross: ${chain(e)}`);
    process.exit(1);
  }
}
