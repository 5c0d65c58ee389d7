// Kernel modules without kmod: modules.dep says what a module needs, modules.alias which devices it drives. A child
// of the shim loads them one after another while PID 1 does other things; no JavaScript runs there.
import { readdirSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { basename, join } from "node:path";
import { launch } from "../run/launch.ts";
import { AT_FDCWD, close, exit, O_RDONLY, openat } from "../sys/calls.ts";
import { chain, EEXIST, SysError } from "../sys/error.ts";
import { type Op, Reg } from "../sys/op.ts";

const FILE = new Reg(0);
const STEPS = 3; // ops per module
const PRIO_PROCESS = 0; // linux/resource.h
/** The niceness of a child that can wait: a tenth of a processor that others want. */
const PATIENT = 10;

const ALIAS = "alias ";
/** Characters of an alias that name the bus and the vendor: "pci:v00008086". */
const KEY = 13;
const WILD = /[*?[]/;
const busOf = (alias: string): string => alias.slice(0, alias.indexOf(":"));

const canonical = (name: string): string => name.replaceAll("-", "_");

/** One module as system calls: open, load (there already is fine), close. async_probe: looking for devices, which
 * takes an idle IDE controller a second, goes on behind our back; uevents tell what was found. */
export const load = (path: string): Op[] => [
  openat(AT_FDCWD, path, O_RDONLY, 0, FILE),
  { call: "finit_module", args: [FILE, "async_probe", 0], allow: EEXIST },
  close(FILE),
];

export class Modules {
  readonly #directory: string;
  /** By name: its path and the paths it needs. */
  readonly #needs = new Map<string, { path: string; needs: string[] }>();
  /** Patterns of modules.alias by how they begin: KEY characters ("pci:v00008086"), or the bus alone where a wildcard
   * comes earlier. There are thousands, and a boot waits for the few that fit. */
  readonly #aliases = new Map<string, string[]>();
  readonly #loaded = new Set<string>();

  constructor(directory: string, dep: string, alias: string) {
    this.#directory = directory;
    for (const line of dep.split("\n")) {
      const [path, rest] = line.split(":");
      if (!path || rest === undefined) continue;
      const needs = rest.split(" ").filter((p) => p !== "");
      this.#needs.set(canonical(basename(path, ".ko")), { path, needs });
    }
    for (const line of alias.split("\n")) {
      const end = line.indexOf(" ", ALIAS.length);
      if (end < 0 || !line.startsWith(ALIAS)) continue;
      const begins = line.slice(ALIAS.length, Math.min(end, ALIAS.length + KEY));
      const key = WILD.test(begins) ? busOf(begins) : begins;
      const list = this.#aliases.get(key);
      if (list) list.push(line);
      else this.#aliases.set(key, [line]);
    }
  }

  static read(directory: string): Modules {
    const text = (name: string) => readFileSync(join(directory, name), "utf8");
    return new Modules(directory, text("modules.dep"), text("modules.alias"));
  }

  /** Names of the modules that say they drive a device with this MODALIAS. */
  drivers(modalias: string): string[] {
    const found = new Set<string>();
    for (const key of new Set([modalias.slice(0, KEY), busOf(modalias)]))
      for (const line of this.#aliases.get(key) ?? []) {
        const [, pattern, module] = line.split(" ");
        if (matches(pattern!, modalias)) found.add(module!);
      }
    return [...found];
  }

  /** Files to load for these names, dependencies first, without what is loaded already. */
  files(names: Iterable<string>): string[] {
    const out: string[] = [];
    const seen = new Set<string>();
    const visit = (name: string): void => {
      const m = this.#needs.get(name);
      if (!m || seen.has(name)) return; // not here: built in, or not our device
      seen.add(name);
      for (const path of m.needs) visit(canonical(basename(path, ".ko")));
      const file = join(this.#directory, m.path);
      if (!this.#loaded.has(file)) out.push(file);
    };
    for (const name of names) visit(canonical(name));
    return out;
  }

  /** Note what the kernel has already, as /proc/modules says: stage0 has sent for some. */
  present(text: string): void {
    for (const line of text.split("\n")) {
      const [name, , , , state] = line.split(" ");
      const m = name && this.#needs.get(name);
      if (m && state === "Live") this.#loaded.add(join(this.#directory, m.path));
    }
  }

  /** Load them in a child; one that the kernel refuses is told to `refused` and the others follow. */
  async load(
    names: Iterable<string>,
    refused: (line: string) => void,
    ours: (pid: number) => void,
    before: readonly Op[] = [],
  ): Promise<void> {
    this.present(readFileSync("/proc/modules", "utf8"));
    const files = this.files(names);
    for (let at = 0; at < files.length; ) {
      const child = launch([...before, ...files.slice(at).flatMap(load), exit(0)]);
      ours(child.pid);
      child.pidfd.close();
      try {
        await child.started();
        break;
      } catch (e) {
        if (!(e instanceof SysError) || e.step === undefined) throw e;
        const which = at + Math.floor((e.step - before.length) / STEPS);
        refused(`${basename(files[which]!)}: ${chain(e)}`);
        at = which + 1;
      }
    }
    for (const file of files) this.#loaded.add(file); // one that was refused is not asked again
  }
}

/** One job after another. Two of these work beside each other: what both want is loaded by the first and there
 * already for the second (the kernel waits for a module that is being loaded). */
export class Loader {
  readonly #modules: () => Modules;
  readonly #say: (line: string) => void;
  readonly #ours: (pid: number) => void;
  readonly #before: readonly Op[];
  #last: Promise<void> = Promise.resolve();

  /** `ours` is told every child, for the reaper. `patient`: others go first. */
  constructor(
    modules: () => Modules,
    say: (line: string) => void,
    ours: (pid: number) => void,
    patient = false,
  ) {
    this.#before = patient ? [{ call: "setpriority", args: [PRIO_PROCESS, 0, PATIENT] }] : [];
    this.#modules = modules;
    this.#say = say;
    this.#ours = ours;
  }

  /** Resolves when they are loaded, or have been refused. `after`: somebody who may be loading them. */
  load(names: readonly string[], after?: Promise<void>): Promise<void> {
    this.#last = this.#last.then(async () => {
      try {
        await after;
        await this.#modules().load(
          names,
          (why) => this.#say(`init: module ${why}`),
          this.#ours,
          this.#before,
        );
      } catch (e) {
        this.#say(`init: modules ${names.join(" ")}: ${chain(e)}`);
      }
    });
    return this.#last;
  }

  /** Resolves when nothing that was asked for is left. */
  async idle(): Promise<void> {
    for (let at: Promise<void> | undefined; at !== this.#last; ) {
      at = this.#last;
      await at;
    }
  }
}

function literal(pattern: string): string {
  const at = pattern.search(WILD);
  return at < 0 ? pattern : pattern.slice(0, at);
}

/** fnmatch(3) with "*", "?" and "[…]", which is what aliases are made of. */
export function matches(pattern: string, text: string): boolean {
  if (!text.startsWith(literal(pattern))) return false; // nearly all of them end here
  const source = pattern.replace(/\[[^\]]*\]|[\s\S]/g, (c) =>
    c === "*" ? ".*" : c === "?" ? "." : c.length > 1 ? c : c.replace(/[\\^$.|+(){}]/, "\\$&"),
  );
  return new RegExp(`^${source}$`).test(text);
}

/** Names that are loaded at every boot, whatever devices there are: the image's own lists. */
export const listed = (list: "core" | "guests", directory = `/usr/lib/modules/${release()}`): string[] =>
  readFileSync(join(directory, `modules.${list}`), "utf8")
    .split("\n")
    .filter((line) => line !== "");

/** MODALIAS of every device that is there now. */
export function devicesPresent(buses = "/sys/bus"): string[] {
  const found = new Set<string>();
  for (const bus of readdirSync(buses)) {
    for (const device of readdirSync(join(buses, bus, "devices"))) {
      try {
        found.add(readFileSync(join(buses, bus, "devices", device, "modalias"), "utf8").trim());
      } catch {
        // a device without one, or gone meanwhile
      }
    }
  }
  found.delete("");
  return [...found];
}
