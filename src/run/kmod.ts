// Kernel modules that a feature needs when it is first used (device-mapper's, verity's): a boot that uses none of them
// loads none. What is loaded or built in already costs one look into /sys.
import { existsSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { basename, join } from "node:path";
import { AT_FDCWD, close, O_RDONLY, openat } from "../sys/calls.ts";
import { EEXIST } from "../sys/error.ts";
import { ANY, type Op, Reg } from "../sys/op.ts";
import { errand } from "./hand.ts";

const FILE = new Reg(0);
export const COMPRESSED = 4; // MODULE_INIT_COMPRESSED_FILE, linux/module.h
const LIMIT_MS = 30_000;

const canonical = (name: string): string => name.replaceAll("-", "_");
const nameOf = (path: string): string => canonical(basename(path).replace(/\.ko(\.\w+)?$/, ""));

/** What modules.dep says, by a module's name: its file, then those that it needs. */
export type Needs = ReadonlyMap<string, readonly string[]>;

export function needsOf(dep: string): Needs {
  const needs = new Map<string, readonly string[]>();
  for (const line of dep.split("\n")) {
    const [path, rest] = line.split(":");
    if (path && rest !== undefined) needs.set(nameOf(path), [path, ...rest.split(" ").filter(Boolean)]);
  }
  return needs;
}

/** Files of `names` and of all that they need, that first; `there` says what is loaded. */
export function filesFor(needs: Needs, names: Iterable<string>, there: (name: string) => boolean): string[] {
  const files: string[] = [];
  const seen = new Set<string>();
  const visit = (name: string): void => {
    const [file, ...before] = needs.get(name) ?? [];
    if (file === undefined || seen.has(name)) return; // built in, or not here: its first use says so
    seen.add(name);
    for (const path of before) visit(nameOf(path));
    if (!there(name)) files.push(file);
  };
  for (const name of names) visit(canonical(name));
  return files;
}

const asked = new Map<string, Promise<void>>();

/** Resolves when the kernel has these modules. `maybe`: better with them (a processor's own instructions), and a kernel
 * that refuses one is no failure. */
export function modules(names: readonly string[], maybe: readonly string[] = []): Promise<void> {
  const key = names.join(" ");
  let loading = asked.get(key);
  if (!loading) {
    loading = load(names, maybe);
    asked.set(key, loading);
    loading.catch(() => asked.delete(key));
  }
  return loading;
}

async function load(names: readonly string[], maybe: readonly string[]): Promise<void> {
  const there = (name: string) => existsSync(`/sys/module/${name}`);
  const wanted = [...maybe, ...names];
  if (wanted.every((name) => there(canonical(name)))) return;
  const folder = `/usr/lib/modules/${release()}`;
  if (!existsSync(join(folder, "modules.dep"))) return; // all are built in, or the first use says what is missing
  const needs = needsOf(readFileSync(join(folder, "modules.dep"), "utf8"));
  const files = filesFor(needs, wanted, there);
  if (files.length === 0) return;
  const optional = new Set(filesFor(needs, maybe, there));
  try {
    const each = files.flatMap((file) => insert(join(folder, file), optional.has(file)));
    await errand([], each, LIMIT_MS);
  } catch (cause) {
    throw new Error(`kernel modules ${names.join(", ")}`, { cause });
  }
}

/** Load one. Without `optional`, only one that is there already is no failure. */
export const insert = (path: string, optional = false): Op[] => [
  openat(AT_FDCWD, path, O_RDONLY, 0, FILE),
  {
    call: "finit_module",
    args: [FILE, "", path.endsWith(".ko") ? 0 : COMPRESSED],
    allow: optional ? ANY : EEXIST,
  },
  close(FILE),
];
