// The guests that the Makefile builds, each as out/guests/<name>-<version>/root.img and .conf:
//
//   core0    busybox as init, nft, a DHCP client, and a place for cmld to put the executable (`control` is a link to it)
//   debian   Debian 12 as its packages are, with systemd as init
//   busybox  an init and nothing else, for tests
//   classic  the same in the form of every GuestOS made with the original's tools: squashfs, started by /sbin/cservice
//
// Beside each lies NAME-N.packages.json, for docs/LICENSES.md. Run as `bun initramfs/guests.ts NAME...`.
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { GuestOSMount, type IGuestOSConfig } from "../proto/gen/proto.js";
import { build, type Guest, HARDWARE } from "../src/guestos/image.ts";
import { chain } from "../src/sys/error.ts";
import {
  command,
  described,
  licence,
  needed,
  type Origins,
  origin,
  type Package,
  unpacked,
} from "./packages.ts";

const OUT = "out/guests";
const VERSION = 1;
/** 2026-11-01T00:00:00Z, the date of every file: the same packages give the same bytes whenever they are built. */
const DATE = 1793491200;
const LIBRARIES = "usr/lib/x86_64-linux-gnu";

/** Where cmld binds the executable in core0; a file there, because a mount needs a place. */
export const CML_IN_CORE0 = "usr/sbin/cml";

const OURS: Package = { name: "cml", version: "0.1.0", licence: "Apache-2.0" };

/** What nft, and the executable when it runs as control, are linked with. */
const CORE0_PACKAGES = [
  ...[
    "busybox-static",
    "nftables",
    "libnftables1",
    "libedit2",
    "libbsd0",
    "libmd0",
    "libtinfo6",
    "libnftnl11",
  ],
  ...["libmnl0", "libjansson4", "libgmp10", "libxtables12", "libc6"],
];
/** What the executable asks for, and what it loads by name while it runs. */
const EXECUTABLE_NEEDS = ["ld-linux-x86-64.so.2", "libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6"];

/** usr-is-merged: true of a fresh tree, and without it Debian's usrmerge would bring the whole of perl. */
const DEBIAN_PACKAGES = [
  "usr-is-merged",
  "systemd",
  "systemd-sysv",
  "dbus",
  "iproute2",
  "iputils-ping",
  "procps",
  "netbase",
];

interface Recipe {
  /** Fill `tree` and say where its files are from. */
  make(tree: string, origins: Origins): void;
  readonly guest: Pick<Guest, "fs" | "allRoot" | "config">;
}

const plain: Partial<IGuestOSConfig> = {
  init_path: "/sbin/init",
  init_env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
};
const inMemory = (mount_point: string, mount_data?: string) => ({
  image_file: "tmpfs",
  mount_point,
  fs_type: "tmpfs",
  mount_type: GuestOSMount.Type.EMPTY,
  ...(mount_data === undefined ? {} : { mount_data }),
});

const recipes: Record<string, Recipe> = {
  core0: {
    make(tree, origins) {
      busybox(tree, origins);
      const trees = unpacked(CORE0_PACKAGES, "out/packages");
      const libraries = new Map<string, readonly [name: string, file: string]>();
      for (const [name, from] of trees)
        for (const folder of ["lib/x86_64-linux-gnu", LIBRARIES, "lib64"])
          for (const file of existsSync(join(from, folder)) ? readdirSync(join(from, folder)) : [])
            libraries.set(file, [name, join(from, folder, file)]);
      const nft = join(trees.get("nftables")!, "usr/sbin/nft");
      take(tree, origins, described("nftables", trees.get("nftables")!), nft, "usr/sbin/nft");
      const wanted = [...needed(nft), ...EXECUTABLE_NEEDS];
      const taken = new Set<string>();
      for (let library = wanted.pop(); library !== undefined; library = wanted.pop()) {
        if (taken.has(library)) continue;
        taken.add(library);
        const [name, file] = libraries.get(library) ?? [];
        if (!name || !file) throw new Error(`${library} is in none of ${CORE0_PACKAGES.join(" ")}`);
        const folder = library.startsWith("ld-linux") ? "usr/lib64" : LIBRARIES;
        take(tree, origins, described(name, trees.get(name)!), realpathSync(file), join(folder, library));
        wanted.push(...needed(realpathSync(file)));
      }
      own(tree, origins, "core0");
      writeFileSync(join(tree, CML_IN_CORE0), "");
      chmodSync(join(tree, CML_IN_CORE0), 0o755);
      symlinkSync("cml", join(tree, "usr/sbin/control"));
      origin(origins, OURS, `/${CML_IN_CORE0}`);
      origin(origins, OURS, "/usr/sbin/control");
    },
    guest: {
      fs: "erofs",
      allRoot: true,
      config: {
        ...plain,
        mounts: [inMemory("/tmp", "size=16m")],
        description: { en: "core container: network and control" },
      },
    },
  },

  debian: {
    make(tree, origins) {
      const mirror = process.env.DEBIAN_MIRROR ? [process.env.DEBIAN_MIRROR] : [];
      command(
        [
          "mmdebstrap",
          "--quiet",
          "--variant=minbase",
          "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
          `--include=${DEBIAN_PACKAGES.join(",")}`,
          "bookworm",
          tree,
          ...mirror,
        ],
        { env: { SOURCE_DATE_EPOCH: String(DATE) } },
      );
      // Of the build host, not of the guest: a container gets its own.
      for (const file of ["etc/hostname", "etc/resolv.conf"]) rmSync(join(tree, file), { force: true });
      writeFileSync(join(tree, "etc/machine-id"), "");
      for (const name of readdirSync(join(tree, "dev"))) rmSync(join(tree, "dev", name), { recursive: true });
      installed(tree, origins);
      own(tree, origins, "debian");
      const wants = join(tree, "etc/systemd/system/sysinit.target.wants");
      mkdirSync(wants, { recursive: true });
      symlinkSync("../cservice.service", join(wants, "cservice.service"));
    },
    guest: {
      fs: "erofs",
      allRoot: false,
      config: {
        init_path: "/sbin/init",
        init_env: [
          "container=gyroidos",
          "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
          "LC_ALL=C.UTF-8",
        ],
        description: { en: "Debian 12 (bookworm) with systemd" },
        upstream_version: "12",
      },
    },
  },

  busybox: {
    make(tree, origins) {
      busybox(tree, origins);
      own(tree, origins, "busybox");
    },
    guest: { fs: "erofs", allRoot: true, config: { ...plain, description: { en: "tiny busybox guest" } } },
  },

  classic: {
    make: (tree, origins) => recipes.busybox!.make(tree, origins),
    guest: {
      fs: "squashfs",
      allRoot: true,
      config: {
        mounts: [{ ...inMemory("/data/"), def_size: 12 }],
        init_path: "/sbin/cservice",
        init_param: ["init"],
        init_env: ["container=trustm3"],
        description: { en: "tiny busybox guest in the original's form" },
        upstream_version: "",
      },
    },
  },
};

/** Put one file of a package into the tree. */
function take(tree: string, origins: Origins, from: Package, file: string, to: string): void {
  mkdirSync(dirname(join(tree, to)), { recursive: true });
  copyFileSync(file, join(tree, to));
  chmodSync(join(tree, to), statSync(file).mode & 0o755);
  origin(origins, from, `/${to}`);
}

/** The folders of a merged /usr, busybox and the links to it. */
function busybox(tree: string, origins: Origins): void {
  for (const folder of [
    "dev",
    "etc",
    "media",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var",
    "usr/bin",
    "usr/sbin",
    LIBRARIES,
    "usr/lib64",
  ])
    mkdirSync(join(tree, folder), { recursive: true });
  chmodSync(join(tree, "tmp"), 0o1777);
  chmodSync(join(tree, "root"), 0o700);
  for (const folder of ["bin", "sbin", "lib", "lib64"]) symlinkSync(`usr/${folder}`, join(tree, folder));
  const from = unpacked(["busybox-static"], "out/packages").get("busybox-static")!;
  take(tree, origins, described("busybox-static", from), join(from, "bin/busybox"), "usr/bin/busybox");
  for (const path of command([join(from, "bin/busybox"), "--list-full"])
    .trim()
    .split("\n")) {
    const link = join("usr", basename(dirname(path)), basename(path));
    if (!existsSync(join(tree, link)))
      symlinkSync(link.includes("/sbin/") ? "../bin/busybox" : "busybox", join(tree, link));
  }
}

/** Files of this repository. */
function own(tree: string, origins: Origins, name: string): void {
  const from = join(import.meta.dir, "files", name);
  cpSync(from, tree, { recursive: true });
  for (const file of readdirSync(from, { recursive: true, encoding: "utf8" }))
    if (!lstatSync(join(from, file)).isDirectory()) origin(origins, OURS, `/${file}`);
}

/** Every file that dpkg installed in the tree, and every one that maintainer scripts made. */
function installed(tree: string, origins: Origins): void {
  const known = new Set<string>();
  const list = command([
    "dpkg-query",
    `--admindir=${join(tree, "var/lib/dpkg")}`,
    "-W",
    "-f",
    // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own placeholders
    "${binary:Package} ${Version}\n",
  ]);
  for (const [binary, version] of list
    .trim()
    .split("\n")
    .map((line) => line.split(" ") as [string, string])) {
    const name = binary.split(":")[0]!;
    const from = { name, version, licence: licence(join(tree, "usr/share/doc", name, "copyright")) };
    const info = join(tree, "var/lib/dpkg/info");
    const files = [`${binary}.list`, `${name}.list`].map((f) => join(info, f)).find((f) => existsSync(f))!;
    for (const file of readFileSync(files, "utf8").trim().split("\n")) {
      const stat = lstatSync(join(tree, file), { throwIfNoEntry: false });
      if (!stat || stat.isDirectory()) continue;
      known.add(realFile(tree, file));
      origin(origins, from, file);
    }
  }
  const made: Package = { name: "(made while installing)", version: "-", licence: "as the packages" };
  for (const entry of readdirSync(tree, { recursive: true, withFileTypes: true })) {
    const file = `${entry.parentPath.slice(tree.length)}/${entry.name}`;
    if (!entry.isDirectory() && !known.has(file)) origin(origins, made, file);
  }
}

/** /bin/sh is /usr/bin/sh on a merged /usr. */
const realFile = (tree: string, file: string): string =>
  `${realpathSync(join(tree, dirname(file))).slice(realpathSync(tree).length)}/${basename(file)}`;

async function guest(name: string): Promise<void> {
  const recipe = recipes[name];
  if (!recipe) throw new Error(`guest ${name}: not one of ${Object.keys(recipes).join(" ")}`);
  mkdirSync(OUT, { recursive: true });
  const work = mkdtempSync(join(OUT, `.${name}-tree.`));
  chmodSync(work, 0o755); // it becomes the root folder
  try {
    const origins: Origins = new Map();
    recipe.make(work, origins);
    const say = (line: string) => console.log(`guests: ${name}: ${line}`);
    const [version, date, hardware] = [VERSION, DATE, HARDWARE.x86_64!];
    const common = {
      name,
      version,
      date,
      hardware,
      from: work,
      out: OUT,
      root: "shared_rw",
      compress: true,
      force: true,
    } as const;
    const built = await build({ ...recipe.guest, ...common }, say);
    const packages = [...origins.values()].map(({ from, files }) => ({ ...from, files: files.toSorted() }));
    const json = JSON.stringify(
      packages.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
      null,
      1,
    );
    writeFileSync(join(OUT, `${name}-${VERSION}.packages.json`), `${json}\n`);
    say(`${statSync(built.imagePath).size} bytes`);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  try {
    for (const name of process.argv.slice(2)) await guest(name);
  } catch (e) {
    console.error(`guests: ${chain(e)}`);
    process.exit(1);
  }
}
