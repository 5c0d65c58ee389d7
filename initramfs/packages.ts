// Debian packages as a source of files: download them, take files out of them, say under what licence they are.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { basename, join } from "node:path";

export interface Package {
  readonly name: string;
  readonly version: string;
  /** SPDX-like names, as far as the copyright file names them; never empty. */
  readonly licence: string;
}

/** Package → the files of ours that come from it. */
export type Origins = Map<string, { readonly from: Package; readonly files: string[] }>;

export function origin(origins: Origins, from: Package, file: string): void {
  const entry = origins.get(from.name) ?? { from, files: [] };
  origins.set(from.name, entry);
  entry.files.push(file);
}

/** Run a program of the build host and give its standard output. */
export function command(
  argv: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): string {
  const env = {
    PATH: process.env.PATH ?? "/usr/sbin:/usr/bin:/sbin:/bin",
    LC_ALL: "C.UTF-8",
    ...options.env,
  };
  const { cwd } = options;
  const done = Bun.spawnSync([...argv], {
    env,
    stdin: "ignore",
    stderr: "pipe",
    ...(cwd === undefined ? {} : { cwd }),
  });
  if (done.success) return done.stdout.toString();
  throw new Error(
    `${argv.slice(0, 3).join(" ")}: ${done.stderr.toString().trim() || `exit status ${done.exitCode}`}`,
  );
}

/** Download packages (not what they depend on) and unpack each into `to`/<name>/. Kept between builds. */
export function unpacked(names: readonly string[], to: string): Map<string, string> {
  mkdirSync(to, { recursive: true });
  const missing = names.filter((name) => !existsSync(join(to, name)));
  if (missing.length > 0) {
    const work = join(to, `.${process.pid}`);
    mkdirSync(work, { recursive: true });
    try {
      const download = () =>
        command(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", ...missing], { cwd: work });
      try {
        download();
      } catch {
        command(["apt-get", "-q", "update"]); // the lists are missing, or older than the archive
        download();
      }
      for (const file of readdirSync(work).filter((f) => f.endsWith(".deb"))) {
        const tree = join(work, `${file}.tree`);
        command(["dpkg-deb", "--raw-extract", join(work, file), tree]);
        renameSync(tree, join(to, basename(file).split("_")[0]!));
      }
    } finally {
      rmSync(work, { recursive: true, force: true });
    }
  }
  return new Map(names.map((name) => [name, join(to, name)]));
}

/** Name, version and licence of a package unpacked at `tree`. */
export function described(name: string, tree: string): Package {
  const version =
    /^Version: (.*)$/m.exec(readFileSync(join(tree, "DEBIAN/control"), "utf8"))?.[1] ?? "unknown";
  return { name, version, licence: licence(join(tree, "usr/share/doc", name, "copyright")) };
}

/** What older copyright files say in words → its name. */
const WORDS: readonly (readonly [RegExp, string])[] = [
  [/common-licenses\/((?:L?GPL|GFDL|Apache|MPL|Artistic)[-.0-9A-Za-z]*\d|Artistic)/g, ""],
  [/Permission is hereby granted, free of charge/g, "Expat"],
  [/Redistribution and use in source and binary forms/g, "BSD"],
  [/public domain/gi, "public-domain"],
];

/** The licences that a Debian copyright file names: its License fields (DEP-5), or the words of an older one. */
export function licence(copyright: string): string {
  if (!existsSync(copyright)) return "unknown";
  const text = readFileSync(copyright, "utf8");
  const found = new Set<string>();
  for (const [, name] of text.matchAll(/^License:[ \t]*(\S.*)$/gm))
    found.add(name!.trim().replace(/[.,]$/, ""));
  if (found.size === 0)
    for (const [pattern, name] of WORDS)
      for (const match of text.matchAll(pattern)) found.add(name || match[1]!);
  return found.size === 0 ? "see its copyright file" : [...found].toSorted().join(", ");
}

/** The libraries that an ELF file asks for, and its interpreter. */
export function needed(file: string): string[] {
  const text = command(["readelf", "-W", "-d", "-l", file]);
  return [
    ...[...text.matchAll(/\(NEEDED\)\s+Shared library: \[(.*?)\]/g)].map((m) => m[1]!),
    ...[...text.matchAll(/Requesting program interpreter: (.*?)\]/g)].map((m) => basename(m[1]!)),
  ];
}
