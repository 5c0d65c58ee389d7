// `make deb`: the hosted product as a Debian package, staged and packed without helpers: what is in it is this list.
// The same inputs give the same bytes: every date is that of the last commit, or SOURCE_DATE_EPOCH.
import {
  chmodSync,
  copyFileSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { bash, fish, zsh } from "../src/control/completion.ts";
import { pages } from "../src/man.ts";
import { chain } from "../src/sys/error.ts";

const HERE = import.meta.dir;
const ARCHITECTURES: Record<string, string> = { x86_64: "amd64", aarch64: "arm64" };
/** As the original's package for ordinary hosts calls it. */
const CONTROL = "cml-control";

const { version } = JSON.parse(readFileSync(join(HERE, "../package.json"), "utf8")) as { version: string };

function run(argv: string[], env: Record<string, string> = {}): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(argv, {
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...env },
  });
  if (exitCode !== 0) throw new Error(`${argv[0]}: exit status ${exitCode}: ${stderr.toString().trim()}`);
  return stdout.toString().trim();
}

/** The command is called otherwise here than in core0. */
const named = (script: string): string => script.replaceAll("control list", `${CONTROL} list`);

/** Path in the package → content, or the file that it is a copy of. */
function files(
  executable: string,
): Record<string, { readonly text: string | Uint8Array } | { from: string }> {
  const own = (name: string) => ({ from: join(HERE, name) });
  // dpkg-policy: manual pages are compressed, without the name and date of what they were made of.
  const manual = Object.entries(pages()).map(([name, text]) => {
    const volume = name.at(-1)!;
    return [`usr/share/man/man${volume}/${name}.gz`, { text: gzipSync(text, { level: 9 }) }] as const;
  });
  return {
    "usr/lib/cml/cml": { from: executable },
    "usr/lib/systemd/system/cmld.service": own("cmld.service"),
    "usr/lib/systemd/system/cmld.socket": own("cmld.socket"),
    "usr/lib/systemd/system/cml-containers.service": own("cml-containers.service"),
    "etc/cml/device.conf": own("device.conf"),
    [`usr/share/bash-completion/completions/${CONTROL}`]: { text: named(bash()) },
    [`usr/share/zsh/vendor-completions/_${CONTROL}`]: { text: named(zsh()) },
    [`usr/share/fish/vendor_completions.d/${CONTROL}.fish`]: { text: named(fish()) },
    "usr/share/doc/cml/copyright": own("copyright"),
    "usr/share/doc/cml/README.Debian": own("README.Debian"),
    ...Object.fromEntries(manual),
  };
}

const LINKS: Record<string, string> = {
  "usr/sbin/cmld": "../lib/cml/cml",
  [`usr/sbin/${CONTROL}`]: "../lib/cml/cml",
  // For members of the group, who are not root.
  [`usr/bin/${CONTROL}`]: "../lib/cml/cml",
  "usr/bin/cml": "../lib/cml/cml",
  [`usr/share/man/man1/${CONTROL}.1.gz`]: "control.1.gz",
  "usr/share/man/man8/cmld.8.gz": "cml.8.gz",
};

const control = (architecture: string, kib: number): string => `Package: cml
Version: ${version}
Architecture: ${architecture}
Maintainer: the authors of cml <root@localhost>
Installed-Size: ${kib}
Depends: libc6 (>= 2.17), libssl3, libcryptsetup12, e2fsprogs, passwd, init-system-helpers (>= 1.52)
Recommends: systemd (>= 244), erofs-utils, bash-completion
Suggests: squashfs-tools
Section: admin
Priority: optional
Description: container management layer in hosted mode
 Complete guest operating systems in containers, each with user ids of its own, limits and a network, compatible with
 GyroidOS: same sockets, messages, configurations and files. This package is for an ordinary Linux system: cmld, which
 manages containers, its client cml-control, and cml-guestos, which makes guest operating systems.
`;

/** Everything in `tree` gets the date, links included. */
function date(tree: string, seconds: number): void {
  for (const entry of readdirSync(tree, { recursive: true, withFileTypes: true }))
    lutimesSync(join(entry.parentPath, entry.name), seconds, seconds);
  lutimesSync(tree, seconds, seconds);
}

function build(executable: string, machine: string, out: string): string {
  const architecture = ARCHITECTURES[machine];
  if (!architecture) throw new Error(`${machine}: not one of ${Object.keys(ARCHITECTURES).join(" ")}`);
  const seconds = Number(
    process.env.SOURCE_DATE_EPOCH ?? run(["git", "-C", HERE, "log", "-1", "--format=%ct"]),
  );
  const tree = mkdtempSync(join(out, ".deb."));
  try {
    chmodSync(tree, 0o755);
    process.umask(0o022);
    const sums: string[] = [];
    let bytes = 0;
    for (const [path, what] of Object.entries(files(executable))) {
      const to = join(tree, path);
      mkdirSync(dirname(to), { recursive: true });
      if ("from" in what) copyFileSync(what.from, to);
      else writeFileSync(to, what.text);
      chmodSync(to, basename(path) === "cml" ? 0o755 : 0o644);
      bytes += statSync(to).size;
      sums.push(`${new Bun.CryptoHasher("md5").update(readFileSync(to)).digest("hex")}  ${path}\n`);
    }
    for (const [path, target] of Object.entries(LINKS)) {
      mkdirSync(dirname(join(tree, path)), { recursive: true });
      symlinkSync(target, join(tree, path));
    }
    const about = join(tree, "DEBIAN");
    mkdirSync(about);
    writeFileSync(join(about, "control"), control(architecture, Math.ceil(bytes / 1024)));
    writeFileSync(join(about, "conffiles"), "/etc/cml/device.conf\n");
    writeFileSync(join(about, "md5sums"), sums.join(""));
    for (const script of ["postinst", "prerm", "postrm"]) {
      copyFileSync(join(HERE, script), join(about, script));
      chmodSync(join(about, script), 0o755);
    }
    date(tree, seconds);
    const deb = join(out, `cml_${version}_${architecture}.deb`);
    run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", tree, deb], {
      SOURCE_DATE_EPOCH: String(seconds),
    });
    return deb;
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
}

const [executable, machine] = process.argv.slice(2);
if (!executable || !machine) {
  console.error("build.ts: EXECUTABLE MACHINE");
  process.exit(2);
}
try {
  const deb = build(executable, machine, dirname(executable));
  console.log(`${deb}: ${(statSync(deb).size / 1e6).toFixed(1)} MB`);
} catch (e) {
  console.error(`deb: ${chain(e)}`);
  process.exit(1);
}
