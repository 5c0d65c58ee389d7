// Kernel modules without kmod: modules.dep says what a module needs, modules.alias which devices it drives. A child
// of the shim loads them one after another while PID 1 does other things; no JavaScript runs there.
import { existsSync, readdirSync, readFileSync } from "node:fs";
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
/** Characters of an alias that name bus, vendor and device: "pci:v00008086d0000100E", "usb:v0421p0019". */
const KEY: Readonly<Record<string, number>> = { pci: 22, usb: 14 };
const KEY_ELSEWHERE = 13; // "virtio:d00000"
const WILD = /[*?[]/;
/** "acpi*:" is acpi's as well. */
const busOf = (alias: string): string => {
  const bus = alias.slice(0, alias.indexOf(":"));
  return bus.endsWith("*") ? bus.slice(0, -1) : bus;
};

const keyOf = (alias: string): string => alias.slice(0, KEY[busOf(alias)] ?? KEY_ELSEWHERE);

/** Whether a pattern has a wildcard among those. */
export const isWide = (pattern: string): boolean => WILD.test(keyOf(pattern));

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
  /** Lines of modules.dep, a path and the paths it needs, by name. */
  readonly #needs = new Map<string, string>();
  /** Wide patterns of modules.alias, with their modules, by bus. */
  readonly #wide = new Map<string, [pattern: string, module: string][]>();
  /** The lines with the others: thousands, which are searched and not read, since a boot waits for the few that fit. */
  readonly #aliases: string;
  readonly #loaded = new Set<string>();

  constructor(directory: string, dep: string, alias: string) {
    this.#directory = directory;
    for (const line of dep.split("\n")) {
      const end = line.indexOf(".ko:");
      if (end >= 0) this.#needs.set(canonical(line.slice(line.lastIndexOf("/", end) + 1, end)), line);
    }
    // initramfs/modules.ts writes the wide ones first, and an empty line after them.
    const [wide, others = ""] = alias.split("\n\n");
    this.#aliases = `\n${others}`;
    for (const line of wide!.split("\n")) {
      const [, pattern, module] = line.split(" ");
      if (pattern === undefined || module === undefined) continue;
      const bus = busOf(pattern);
      this.#wide.set(bus, [...(this.#wide.get(bus) ?? []), [pattern, module]]);
    }
  }

  static read(directory: string): Modules {
    const text = (name: string) => readFileSync(join(directory, name), "utf8");
    return new Modules(directory, text("modules.dep"), text("modules.alias"));
  }

  /** Names of the modules that say they drive a device with this MODALIAS. */
  drivers(modalias: string): string[] {
    const found = new Set<string>();
    for (const [pattern, module] of this.#wide.get(busOf(modalias)) ?? [])
      if (matches(pattern, modalias)) found.add(module);
    const begins = `\n${ALIAS}${keyOf(modalias)}`;
    for (let at = this.#aliases.indexOf(begins); at >= 0; at = this.#aliases.indexOf(begins, at + 1)) {
      const [, pattern, module] = this.#aliases.slice(at + 1, this.#aliases.indexOf("\n", at + 1)).split(" ");
      if (matches(pattern!, modalias)) found.add(module!);
    }
    return [...found];
  }

  /** Files to load for these names, dependencies first, without what is loaded already. */
  files(names: Iterable<string>): string[] {
    const out: string[] = [];
    const seen = new Set<string>();
    const visit = (name: string): void => {
      const line = this.#needs.get(name);
      if (line === undefined || seen.has(name)) return; // not here: built in, or not our device
      seen.add(name);
      for (const path of line.split(" ").slice(1)) if (path !== "") visit(canonical(basename(path, ".ko")));
      const file = this.#file(line);
      if (!this.#loaded.has(file)) out.push(file);
    };
    for (const name of names) visit(canonical(name));
    return out;
  }

  #file = (line: string): string => join(this.#directory, line.slice(0, line.indexOf(":")));

  /** Note what the kernel has already, as /proc/modules says: stage0 has sent for some. */
  present(text: string): void {
    for (const line of text.split("\n")) {
      const [name, , , , state] = line.split(" ");
      const ours = name && this.#needs.get(name);
      if (ours && state === "Live") this.#loaded.add(this.#file(ours));
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

/** Text that is these pieces, with anything between two of them. */
function matchesStars(pieces: readonly string[], text: string): boolean {
  const last = pieces.at(-1)!;
  if (pieces.length === 1) return text === last;
  let at = pieces[0]!.length; // which it begins with
  for (const piece of pieces.slice(1, -1)) {
    const found = text.indexOf(piece, at);
    if (found < 0) return false;
    at = found + piece.length;
  }
  return text.length - last.length >= at && text.endsWith(last);
}

/** fnmatch(3) with "*", "?" and "[…]", which is what aliases are made of. */
export function matches(pattern: string, text: string): boolean {
  if (!text.startsWith(literal(pattern))) return false; // nearly all of them end here
  if (!/[?[]/.test(pattern)) return matchesStars(pattern.split("*"), text); // and nearly all others
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
      const path = join(buses, bus, "devices", device, "modalias");
      if (!existsSync(path)) continue; // most have none
      try {
        found.add(readFileSync(path, "utf8").trim());
      } catch {
        // gone meanwhile
      }
    }
  }
  found.delete("");
  return [...found];
}
