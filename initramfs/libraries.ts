// The shared libraries that a program needs, all of them, as this machine resolves them.
import { realpathSync } from "node:fs";
import { basename, join } from "node:path";

export interface Library {
  /** The name that programs ask for: "libc.so.6". */
  readonly name: string;
  /** The file, links followed. */
  readonly from: string;
}

/** The closure of programs and libraries, sorted by name, the program interpreter included. */
export function closure(files: readonly string[]): Library[] {
  const found = new Map<string, string>();
  for (const file of files) {
    const ldd = Bun.spawnSync(["ldd", file], { env: { PATH: "/usr/bin:/bin", LC_ALL: "C" } });
    const text = ldd.stdout.toString();
    if (ldd.exitCode !== 0) throw new Error(`ldd ${file}: ${ldd.stderr.toString().trim() || text.trim()}`);
    for (const line of text.split("\n")) {
      // "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "\t/lib64/ld-linux-x86-64.so.2 (0x…)"
      const path = /(?:=> )?(\/\S+) \(0x/.exec(line)?.[1];
      if (line.includes("not found")) throw new Error(`ldd ${file}: ${line.trim()}`);
      if (path !== undefined) found.set(basename(path), realpathSync(path));
    }
  }
  return sorted(found);
}

/** The same for another architecture, whose libraries lie in `folder`: by what each file says that it needs. */
export function closureIn(folder: string, files: readonly string[]): Library[] {
  const found = new Map<string, string>();
  const look = (file: string): void => {
    const readelf = Bun.spawnSync(["readelf", "--dynamic", file], { env: { PATH: "/usr/bin", LC_ALL: "C" } });
    if (readelf.exitCode !== 0) throw new Error(`readelf ${file}: ${readelf.stderr.toString().trim()}`);
    for (const [, name] of readelf.stdout.toString().matchAll(/\(NEEDED\).*\[(.+)\]$/gm)) {
      if (found.has(name!)) continue;
      const from = realpathSync(join(folder, name!));
      found.set(name!, from);
      look(from);
    }
  };
  files.forEach(look);
  return sorted(found);
}

const sorted = (found: ReadonlyMap<string, string>): Library[] =>
  [...found].map(([name, from]) => ({ name, from })).toSorted((a, b) => (a.name < b.name ? -1 : 1));
