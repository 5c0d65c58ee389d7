// Everything that is in the ramdisk, and everything that is in the runtime image inside it. What is not named here
// is not in the machine: no shell, no busybox, no kmod, no udev.
import { readFileSync, realpathSync } from "node:fs";
import type { Entry } from "./cpio.ts";
import { closure } from "./libraries.ts";
import {
  CORE,
  CRC32C,
  canonical,
  DATA,
  DISK,
  DRIVERS,
  FIRST,
  GUESTS,
  type Module,
  ON_NEED,
  select,
} from "./modules.ts";

export interface Inputs {
  readonly cml: string;
  readonly stage0: string;
  /** What stands in the dynamic loader's place, and the file of pages that it lays (hot.ts). */
  readonly loader: string;
  readonly hot: string;
  /** The list of them for this machine. */
  readonly touched: string;
  /** The unpacked kernel's modules directory, and its release. */
  readonly modules: string;
  readonly release: string;
  /** Where generated files lie: modules.dep, modules.alias, modules.core, modules.guests. */
  readonly generated: string;
  /** "x86_64-linux-gnu" */
  readonly triplet: string;
  /** Debian packages that are unpacked, not installed. */
  readonly packages: string;
}

/** What `make` has put below `out` for this machine. */
export function inputs(out: string): Inputs {
  const machine = process.arch === "arm64" ? "aarch64" : "x86_64";
  return {
    cml: `${out}/cml`,
    stage0: `${out}/${machine}/stage0`,
    loader: `${out}/${machine}/loader`,
    hot: `${out}/hot`,
    touched: `initramfs/hot.${machine}`,
    modules: `${out}/kernel/modules`,
    release: readFileSync(`${out}/kernel/release`, "utf8").trim(),
    generated: `${out}/generated`,
    triplet: `${machine}-linux-gnu`,
    packages: `${out}/packages`,
  };
}

const directories = (...paths: string[]): Entry[] =>
  paths.map((path) => ({ kind: "dir", path, mode: 0o755 }));

/** The archive itself: what stage0 needs to reach the runtime image. */
export const ramdisk = (from: Inputs, runtime: string): Entry[] => [
  ...directories("dev", "proc", "sys", "root"),
  { kind: "node", path: "dev/console", mode: 0o600, major: 5, minor: 1 },
  { kind: "file", path: "init", mode: 0o755, from: from.stage0 },
  ...select(from.modules, FIRST).map(
    (m): Entry => ({ kind: "file", path: `${m.name}.ko`, mode: 0o444, from: `${from.modules}/${m.path}` }),
  ),
  { kind: "file", path: "runtime.squashfs", mode: 0o444, from: runtime },
  { kind: "file", path: "hot", mode: 0o555, from: from.hot },
];

/** Programs beside our own: cmld makes, checks and grows ext4 volumes, init checks the data partition. */
const PROGRAMS = ["/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/sbin/resize2fs"];

/** lxcfs: /proc/meminfo and its like in containers (docs/decisions/procviews.md). Its package starts a service where it
 * is installed, so it is taken out of the package. */
export const UNPACKED = ["lxcfs"];
const lxcfs = (from: Inputs): { program: string; library: string } => ({
  program: `${from.packages}/lxcfs/usr/bin/lxcfs`,
  library: `${from.packages}/lxcfs/usr/lib/${from.triplet}/lxcfs/liblxcfs.so`,
});

/** Libraries that our executable opens by name. libgcc_s: glibc wants it when a thread ends itself (argon2's do). */
const opened = (triplet: string) =>
  ["libcryptsetup.so.12", "libgcc_s.so.1"].map((name) => realpathOf(name, triplet));

function realpathOf(name: string, triplet: string): string {
  for (const directory of [`/usr/lib/${triplet}`, `/lib/${triplet}`]) {
    try {
      realpathSync(`${directory}/${name}`);
      return `${directory}/${name}`;
    } catch {
      // the other one
    }
  }
  throw new Error(`${name}: not on this machine`);
}

export const machineModules = (from: Inputs): Module[] =>
  select(from.modules, [...FIRST, ...CORE, ...GUESTS, ...ON_NEED, ...DRIVERS]);

/** modules.core and modules.guests: what init loads without being asked, by name; first: what stage0's children load while
 * init starts, by path, dependencies before what needs them: the data partition's file system, its disk's drivers, what core0 needs. */
export const lists = (from: Inputs): Record<string, string> => ({
  // They are loaded beside each other: what two need for its algorithm, each asks for.
  first:
    part(from, DATA, FIRST) +
    part(from, DISK, FIRST) +
    part(from, CORE, [...FIRST, ...DISK, ...DATA.filter((name) => name !== CRC32C)]),
  "modules.core": CORE.map((name) => `${canonical(name)}\n`).join(""),
  "modules.guests": GUESTS.map((name) => `${canonical(name)}\n`).join(""),
});

/** One part of the errand: what `names` need beyond `before`, and an empty line. */
function part(from: Inputs, names: readonly string[], before: readonly string[]): string {
  const there = new Set(select(from.modules, before).map((m) => m.name));
  const paths = select(from.modules, names).filter((m) => !there.has(m.name));
  return `${paths.map((m) => `/usr/lib/modules/${from.release}/${m.path}\n`).join("")}\n`;
}

/** The runtime image: PID 1's root, read-only. */
export function runtime(from: Inputs): Entry[] {
  const libraries = `usr/lib/${from.triplet}`;
  const modules = `usr/lib/modules/${from.release}`;
  const asked = opened(from.triplet);
  const names = [
    ...closure([from.cml, ...PROGRAMS, lxcfs(from).program, ...asked]),
    ...asked.map((path) => ({ name: path.slice(path.lastIndexOf("/") + 1), from: realpathSync(path) })),
  ];
  const loader = names.find((l) => l.name.startsWith("ld-linux"))!;
  const moduleFiles = machineModules(from);
  const file = (path: string, source: string, mode = 0o644): Entry => ({
    kind: "file",
    path,
    mode,
    from: source,
  });
  const below = new Set<string>();
  for (const m of moduleFiles)
    for (let at = m.path.indexOf("/"); at >= 0; at = m.path.indexOf("/", at + 1))
      below.add(`${modules}/${m.path.slice(0, at)}`);

  return [
    // mount points
    ...directories("boot", "data", "dev", "proc", "run", "sys", "tmp"),
    ...directories("etc", "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", libraries),
    ...directories(`${libraries}/lxcfs`),
    file("usr/bin/lxcfs", lxcfs(from).program, 0o755),
    file(`${libraries}/lxcfs/liblxcfs.so`, lxcfs(from).library),
    ...directories("usr/lib/modules", modules, ...[...below].toSorted()),
    ...["bin", "sbin", "lib", "lib64"].map((path): Entry => ({ kind: "link", path, to: `usr/${path}` })),
    file("usr/sbin/cml", from.cml, 0o755),
    ...["init", "cmld", "control"].map(
      (name): Entry => ({ kind: "link", path: `usr/sbin/${name}`, to: "cml" }),
    ),
    ...PROGRAMS.map((path) => file(path.slice(1), path, 0o755)),
    { kind: "link", path: "usr/sbin/mkfs.ext4", to: "mke2fs" },
    // Ours goes first, and lays pages of the executable where they belong (loader.c).
    file(`usr/lib64/${loader.name}`, from.loader, 0o755),
    file("usr/lib/loader", loader.from, 0o755),
    // stage0 mounts the file of pages over it.
    file("usr/lib/hot", `${from.generated}/hot`),
    ...names.filter((l) => l !== loader).map((l) => file(`${libraries}/${l.name}`, l.from)),
    ...["modules.dep", "modules.alias", "modules.core", "modules.guests"].map((name) =>
      file(`${modules}/${name}`, `${from.generated}/${name}`),
    ),
    file("usr/lib/modules/first", `${from.generated}/first`),
    ...moduleFiles.map((m) => file(`${modules}/${m.path}`, `${from.modules}/${m.path}`)),
    file("etc/mke2fs.conf", "/etc/mke2fs.conf"),
    ...["group", "hosts", "os-release", "passwd"].map((name) =>
      file(`etc/${name}`, `initramfs/files/etc/${name}`),
    ),
    { kind: "link", path: "etc/resolv.conf", to: "/run/cml/resolv.conf" },
  ];
}
