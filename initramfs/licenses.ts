// Every file that a machine of ours holds, with the package that it is from, its version and its licence:
// out/licenses.json lists the files, docs/LICENSES.md the packages. `make licenses`, after image and guests.
import { existsSync, readdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { Entry } from "./cpio.ts";
import { inputs, ramdisk, runtime } from "./manifest.ts";
import { command, described, licence, type Package } from "./packages.ts";

const OUT = "out";

/** One file may have several: the executable holds a runtime and npm packages. */
export interface Row extends Package {
  /** "kernel", "ramdisk", "runtime image", or a guest: "core0-1". */
  readonly where: string;
  readonly file: string;
}

const manifestOf = (
  path: string,
): { name: string; version: string; license?: string; dependencies?: Record<string, string> } =>
  JSON.parse(readFileSync(path, "utf8"));

const us = manifestOf("package.json");
const OURS: Package = { name: us.name, version: us.version, licence: "Apache-2.0" };

/** npm's packages that are imported by a source file or by what it imports, and what those need. */
export function imported(entry: string): Package[] {
  const found = new Map<string, Package>();
  const addPackage = (name: string): void => {
    if (found.has(name)) return;
    const {
      version,
      license = "unknown",
      dependencies = {},
    } = manifestOf(`node_modules/${name}/package.json`);
    found.set(name, { name: `${name} (npm)`, version, licence: license });
    for (const dependency of Object.keys(dependencies)) addPackage(dependency);
  };
  const seen = new Set<string>();
  const visit = (file: string): void => {
    if (seen.has(file) || !/\.[jt]s$/.test(file)) return; // a library of ours is embedded as it is
    seen.add(file);
    for (const [, module] of readFileSync(file, "utf8").matchAll(/\b(?:from |import ?\()"([^"]+)"/g)) {
      if (module!.startsWith(".")) visit(join(dirname(file), module!));
      const name = /^(?:@[^/]+\/)?[^/.:]+(?=\/|$)/.exec(module!)?.[0]; // no "./x", "node:x", "bun:x"
      if (name !== undefined && name !== "bun") addPackage(name);
    }
  };
  visit(entry);
  return [...found.values()];
}

/** What is inside the executable beside our own sources. */
function executable(): Package[] {
  const bun = manifestOf("node_modules/bun/package.json");
  return [
    OURS,
    {
      name: "bun",
      version: bun.version,
      licence:
        "MIT; JavaScriptCore, which it links statically: LGPL-2; further parts as its LICENSE.md lists",
    },
    ...imported("src/main.ts"),
  ];
}

/** The Debian package that installed `path` on this machine. */
function installedBy(path: string): Package {
  // Merged /usr: dpkg knows some files by their old place.
  const names = [path, realpathSync(path)].flatMap((p) => [p, p.replace(/^\/usr\//, "/"), `/usr${p}`]);
  for (const name of names) {
    const found = Bun.spawnSync(["dpkg-query", "-S", name], {
      stderr: "ignore",
      env: { PATH: "/usr/bin:/bin", LC_ALL: "C" },
    });
    const owner = found.success ? /^([^:,\s]+)/.exec(found.stdout.toString())?.[1] : undefined;
    if (owner === undefined) continue;
    // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholder
    const version = command(["dpkg-query", "-W", "-f", "${Version}\n", owner]).split("\n")[0]!;
    return { name: owner, version, licence: licence(`/usr/share/doc/${owner}/copyright`) };
  }
  throw new Error(`${path}: from no Debian package`);
}

export function rows(): Row[] {
  const field = (name: string) =>
    new RegExp(`^${name}: (.*)$`, "m").exec(readFileSync(`${OUT}/kernel/package`, "utf8"))?.[1];
  const kernel: Package = {
    name: field("Package") ?? "linux",
    version: field("Version") ?? "unknown",
    licence: licence(`${OUT}/kernel/doc/copyright`),
  };
  const from = inputs(OUT);
  const image = `${OUT}/runtime.squashfs`;
  const inExecutable = executable();
  const packages = (e: Entry): Package[] => {
    if (e.kind !== "file") return [OURS];
    if (e.from === from.cml || e.from === from.hot) return inExecutable;
    if (e.from.startsWith(from.modules)) return [kernel];
    if (e.from.startsWith(`${from.packages}/`)) {
      const name = e.from.slice(from.packages.length + 1).split("/")[0]!;
      return [described(name, `${from.packages}/${name}`)];
    }
    return e.from.startsWith("/") ? [installedBy(e.from)] : [OURS];
  };
  const of = (where: string, entries: readonly Entry[]): Row[] =>
    entries
      .filter((e) => e.kind !== "dir" && !(e.kind === "file" && e.from === image)) // what is in it is listed itself
      .flatMap((e) => packages(e).map((p) => ({ where, file: `/${e.path}`, ...p })));

  const all: Row[] = [
    { where: "kernel", file: "/vmlinuz", ...kernel },
    ...of("ramdisk", ramdisk(from, image)),
    ...of("runtime image", runtime(from)),
  ];
  const guests = `${OUT}/guests`;
  for (const list of readdirSync(guests)
    .filter((f) => f.endsWith(".packages.json"))
    .toSorted()) {
    const where = basename(list, ".packages.json");
    const packages = JSON.parse(readFileSync(`${guests}/${list}`, "utf8")) as (Package & {
      files: string[];
    })[];
    for (const { files, ...p } of packages) for (const file of files) all.push({ where, file, ...p });
  }
  return all;
}

const cell = (text: string): string => text.replaceAll("|", "\\|");

/** A place with more files than this shows their number only. */
const LISTED_MAX = 1000;

/** The packages of each place as a table. */
export function markdown(all: readonly Row[]): string {
  const parts: string[] = [];
  for (const where of new Set(all.map((r) => r.where))) {
    const here = all.filter((r) => r.where === where);
    const packages = new Map<string, { row: Row; files: string[] }>();
    for (const row of here) {
      const entry = packages.get(row.name) ?? { row, files: [] };
      packages.set(row.name, entry);
      entry.files.push(row.file);
    }
    parts.push(`\n## ${where}\n\n| package | version | licence | files |\n|---|---|---|---|\n`);
    const list = here.length <= LISTED_MAX;
    for (const { row, files } of [...packages.values()].toSorted((a, b) =>
      a.row.name < b.row.name ? -1 : 1,
    )) {
      const which = list ? files.map((f) => `\`${f}\``).join(" ") : String(files.length);
      parts.push(`| ${cell(row.name)} | ${cell(row.version)} | ${cell(row.licence)} | ${which} |\n`);
    }
  }
  return `${HEAD}${parts.join("")}`;
}

const HEAD = `# Licences

Our own sources are under Apache-2.0 (\`LICENSE\`). This lists the packages whose files are in the kernel file, the ramdisk,
the runtime image within it and the guests that the Makefile builds, as they were when this file was last written by
\`make licenses\`. The single files of a whole Debian stand in \`out/licenses.json\`. The licences are those which the packages'
own copyright files name, for all of their files; the texts lie in \`/usr/share/doc/PACKAGE/copyright\` of a Debian system and
of the debian guest.

- Debian packages are taken as Debian built them. Their complete sources: \`apt-get source PACKAGE=VERSION\`. Whoever hands
  on an image hands on GPL programs, and must offer these sources with it.
- The executable contains Bun, which links JavaScriptCore (LGPL-2) statically. To relink it with a changed one: build Bun,
  put the program at the place of \`node_modules/@oven/bun-linux-*/bin/bun\`, and \`make build\`.
- \`/sbin/cservice\` and the stage before PID 1 link nothing but themselves.
`;

if (import.meta.main) {
  if (!existsSync(`${OUT}/initramfs.cpio`)) throw new Error("out/initramfs.cpio is missing: make image");
  const all = rows();
  writeFileSync(`${OUT}/licenses.json`, `[\n${all.map((r) => JSON.stringify(r)).join(",\n")}\n]\n`);
  writeFileSync("docs/LICENSES.md", markdown(all));
  console.log(`${OUT}/licenses.json: ${all.length} files; docs/LICENSES.md`);
}
