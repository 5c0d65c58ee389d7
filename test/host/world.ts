// A small world for tests of containers: a temporary folder with GuestOS images made of busybox, a control group of
// its own, containers with the product's modules, and a list of everything that a start could leave behind.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CryptoHasher } from "bun";
import { ContainerTokenType, ContainerType, GuestOSMount } from "../../proto/gen/proto.js";
import { checkContainer, checkDevice, checkGuestOs, type GuestOsMount } from "../../src/cmld/config.ts";
import { Container, type Surroundings } from "../../src/cmld/container.ts";
import { openHost } from "../../src/cmld/host.ts";
import { forgetImages } from "../../src/cmld/images/mounted.ts";
import { Ledger } from "../../src/cmld/ledger.ts";
import type { Host, Module } from "../../src/cmld/module.ts";
import { forgetPrograms } from "../../src/cmld/modules/devices.ts";
import { modules as all } from "../../src/cmld/modules.ts";
import { dup3 } from "../../src/sys/calls.ts";
import { delegate, make, remove } from "../../src/sys/cgroup.ts";
import { chain } from "../../src/sys/error.ts";
import { type Fd, pipe } from "../../src/sys/fd.ts";
import { readable } from "../../src/sys/poll.ts";

export const Type = GuestOSMount.Type;

/** Above what any distribution hands out in /etc/subuid, below 2^31. */
export const UID_START = 1_500_000_000;
const BUSYBOX = "/bin/busybox";
const APPLETS = [
  "sh",
  "cat",
  "ls",
  "mkdir",
  "touch",
  "true",
  "sleep",
  "mknod",
  "id",
  "hostname",
  "readlink",
  "dd",
  "tail",
  "rm",
  "stat",
];

export type Mounts = readonly (Partial<GuestOsMount> & { mount_point: string })[];

export interface Recipe {
  readonly uuid?: string;
  readonly mounts?: Mounts;
  /** argv of the container's init. */
  readonly init?: readonly string[];
  readonly modules?: readonly Module[];
  readonly config?: Record<string, unknown>;
  readonly osDir?: string;
  readonly uidStart?: number;
  /** Where its own volumes lie. */
  readonly images?: string;
}

/** Fill a root directory with what every guest here has. */
export function busyboxRoot(root: string): void {
  for (const d of ["bin", "sbin", "proc", "sys", "dev", "run", "tmp", "data", "etc", "srv", "mnt"])
    mkdirSync(join(root, d), { recursive: true });
  copyFileSync(BUSYBOX, join(root, "bin/busybox"));
  chmodSync(join(root, "bin/busybox"), 0o755);
  for (const name of APPLETS) symlinkSync("busybox", join(root, "bin", name));
  writeFileSync(join(root, "etc/image"), "from the image\n");
  writeFileSync(join(root, "srv/file"), "");
}

function run(argv: readonly string[]): void {
  const done = spawnSync(argv[0]!, argv.slice(1), { encoding: "utf8" });
  if (done.status !== 0) throw new Error(`${argv.join(" ")}: ${done.stderr}${done.stdout}`);
}

/** What scd does for the product. */
export const hashHere: Host["hash"] = async (file, _name, algorithm) =>
  new CryptoHasher(algorithm).update(readFileSync(`/proc/self/fd/${file.n}`)).digest("hex");

/** What a configuration says of an image that is there. */
function measured(path: string): Partial<GuestOsMount> {
  if (!existsSync(path)) return {};
  const bytes = readFileSync(path);
  return {
    image_size: bytes.length,
    image_sha2_256: new CryptoHasher("sha256").update(bytes).digest("hex"),
  };
}

export const ROOT: Mounts = [{ mount_point: "/" }];

export class World implements AsyncDisposable {
  readonly osDir: string;
  readonly kept = new Map<string, Fd>();

  private constructor(
    readonly directory: string,
    readonly host: Host,
    /** What cmld's log would have. */
    readonly log: string[],
  ) {
    this.osDir = join(directory, "os");
  }

  /** A new one, or the one that another process made. */
  static open(directory?: string): World {
    const base = directory ?? mkdtempSync(join(tmpdir(), "cml-world-"));
    chmodSync(base, 0o755); // the containers' ids pass through it
    const log: string[] = [];
    const machine = openHost({
      base,
      run: join(base, "run"),
      logs: join(base, "logs"),
      device: checkDevice({ hostedmode: true } as never),
      warn: (line) => log.push(line),
      hash: hashHere,
    });
    // The machine's own containers, and other worlds, are elsewhere.
    const cgroup = join(machine.cgroup, base.split("/").at(-1)!);
    make(cgroup);
    delegate(cgroup);
    const world = new World(base, { ...machine, cgroup }, log);
    if (!existsSync(world.osDir)) {
      mkdirSync(world.osDir);
      world.image("root", busyboxRoot);
    }
    return world;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    forgetImages(this.directory);
    await remove(this.host.cgroup);
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** Make `<name>.img` of what `fill` puts into a directory. */
  image(
    name: string,
    fill: (root: string) => void,
    type: "erofs" | "squashfs" = "erofs",
    osDir = this.osDir,
  ): void {
    const root = mkdtempSync(join(this.directory, "tree-"));
    chmodSync(root, 0o755);
    fill(root);
    mkdirSync(osDir, { recursive: true });
    const path = join(osDir, `${name}.img`);
    if (type === "erofs") run(["mkfs.erofs", "--quiet", path, root]);
    else run(["mksquashfs", root, path, "-noappend", "-quiet", "-no-progress"]);
    rmSync(root, { recursive: true });
  }

  container(recipe: Recipe = {}): Container {
    const uuid = recipe.uuid ?? crypto.randomUUID();
    const [path = "/bin/true", ...init_param] = recipe.init ?? [];
    const os = checkGuestOs({
      name: "test",
      version: 1,
      hardware: "x86",
      init_path: path,
      init_param,
      init_env: ["PATH=/bin"],
      mounts: (recipe.mounts ?? ROOT).map((m) => {
        const { image_file = "root" } = m;
        return {
          image_file,
          fs_type: "erofs",
          mount_type: Type.SHARED,
          def_size: 16,
          ...measured(join(recipe.osDir ?? this.osDir, `${image_file}.img`)),
          ...m,
        };
      }),
    } as never);
    const config = checkContainer(
      {
        name: "web",
        guest_os: "test",
        color: 0,
        type: ContainerType.CONTAINER,
        token_type: ContainerTokenType.NONE,
        ...recipe.config,
      } as never,
      { device: this.host.device, provisioned: false, loaded: true },
    );
    const around: Surroundings = {
      host: this.host,
      modules: recipe.modules ?? product(),
      bind: () => ({ config: os, directory: recipe.osDir ?? this.osDir }),
      keep: (name, fd) => void this.kept.set(name, fd),
      kept: (name) => this.kept.get(name),
      forget: (name) => void this.kept.delete(name),
      exitOf: async () => undefined,
      changed: () => {},
      log: (line) => void this.log.push(line),
    };
    const images = recipe.images ?? join(this.directory, "containers", uuid);
    return new Container(uuid, config, 0, recipe.uidStart ?? UID_START, images, around);
  }

  /** Start a container whose init is a shell with this script; what it said and how it ended. */
  async sh(script: string, recipe: Recipe = {}): Promise<{ said: string; status: number | undefined }> {
    const said = new Said();
    const c = this.container({
      ...recipe,
      init: ["/bin/sh", "-c", script],
      modules: [...(recipe.modules ?? product()), said.module],
    });
    try {
      await c.start({ setup: false });
    } catch (e) {
      said.close();
      throw e;
    }
    const text = await said.text();
    await c.whenStopped();
    return { said: text.trim(), status: c.exit?.status };
  }

  /** The sentence with which a start is refused. */
  async failure(recipe: Recipe): Promise<string> {
    const c = this.container(recipe);
    const error = await c.start({ setup: false }).then(() => undefined, chain);
    if (error === undefined) {
      await c.kill();
      throw new Error("it started");
    }
    if (c.state !== "STOPPED") throw new Error(`it is ${c.state} after: ${error}`);
    return error;
  }

  ledgerDirectory(): string {
    return join(this.host.run, "ledger");
  }

  /** As the next cmld does with what a dead one has left: adopt what runs, release the rest. True: adopted. */
  async recover(c: Container): Promise<boolean> {
    let adopted = false;
    for (const { ledger, running } of await Ledger.load(this.ledgerDirectory(), (l) => this.log.push(l))) {
      const os = c.around.bind(c.config);
      if (running && (await c.adopt(ledger, running, os))) adopted = true;
      else await ledger.release();
    }
    return adopted;
  }

  /** Everything a start could leave behind, one line each. */
  snapshot(): string[] {
    forgetImages(this.directory); // shared images are kept on purpose
    forgetPrograms(); // as are programs
    return [
      ...lines("/proc/self/mountinfo")
        .filter((l) => !l.includes("/out/")) // a build that mounts something of its own meanwhile
        .map((l) => `mount ${l}`),
      ...loops(this.directory),
      // Not /sys/class/net: that shows the network namespace in which it was mounted.
      ...lines("/proc/self/net/dev").map((l) => `link ${l.split(":")[0]!.trim()}`),
      ...groups(this.host.cgroup),
      ...below(this.host.run),
      ...descriptors(),
    ].sort();
  }

  /** The same, once nothing goes on any more: of a container that has ended, children of ours still close this and that. */
  async atRest(): Promise<string[]> {
    const children = `/proc/self/task/${process.pid}/children`;
    await until(() => readFileSync(children, "utf8").split(" ").filter(Boolean));
    return this.snapshot();
  }
}

const lines = (path: string): string[] => readFileSync(path, "utf8").trim().split("\n");

/** Loop devices of files below a folder. */
export function loops(directory: string): string[] {
  const found: string[] = [];
  for (const name of readdirSync("/sys/block").filter((n) => n.startsWith("loop"))) {
    let file: string;
    try {
      file = readFileSync(`/sys/block/${name}/loop/backing_file`, "utf8").trim();
    } catch {
      continue; // free
    }
    if (file.startsWith(directory)) found.push(`loop ${file}`);
  }
  return found;
}

const groups = (group: string): string[] =>
  readdirSync(group, { recursive: true, withFileTypes: true })
    .filter((e) => e.isDirectory())
    .map((e) => `cgroup ${join(e.parentPath, e.name)}`);

/** Ledgers, sockets, pipes. */
const below = (directory: string): string[] =>
  (existsSync(directory) ? readdirSync(directory, { recursive: true }) : []).map((f) => `file ${f}`);

function descriptors(): string[] {
  const found: string[] = [];
  for (const n of readdirSync("/proc/self/fd")) {
    try {
      const file = readlinkSync(`/proc/self/fd/${n}`);
      // What the runtime gives a child for its standard input, and closes when it collects.
      if (!file.startsWith("/memfd:spawn_stdio")) found.push(`descriptor ${file.replace(/\d+/g, "N")}`);
    } catch {
      // the one that read the directory
    }
  }
  return found;
}

/** What is in one list and not in the other. */
export function difference(before: readonly string[], after: readonly string[]): string[] {
  const rest = [...after];
  const gone: string[] = [];
  for (const line of before) {
    const at = rest.indexOf(line);
    if (at >= 0) rest.splice(at, 1);
    else gone.push(`- ${line}`);
  }
  return [...gone, ...rest.map((l) => `+ ${l}`)];
}

/** What cmld gives a container, its own control socket aside. */
export const product = (): Module[] => [...all];

/** Mounts of every kind that needs something of the host. */
export const FULL: Mounts = [
  { mount_point: "/", mount_type: Type.SHARED_RW },
  { mount_point: "/data", image_file: "data", fs_type: "ext4", mount_type: Type.EMPTY },
  { mount_point: "/tmp", image_file: "t", fs_type: "tmpfs", mount_type: Type.EMPTY },
  { mount_point: "/etc", image_file: "etc", fs_type: "ext4", mount_type: Type.OVERLAY_RW },
  { mount_point: "/srv/file", image_file: "note", fs_type: "none", mount_type: Type.BIND_FILE },
];

/** A container's standard output and error, through a pipe. */
export class Said {
  readonly #pipe = pipe();
  /** Last in the list: after the modules that have opinions on standard output. */
  readonly module: Module = {
    name: "said",
    last: () => [dup3(this.#pipe.write.n, 1), dup3(this.#pipe.write.n, 2)],
    started: () => this.#pipe.write.close(),
  };
  /** To its end. */
  async text(): Promise<string> {
    using end = this.#pipe.read;
    let text = "";
    for await (const chunk of Bun.file(end.n).stream()) text += Buffer.from(chunk).toString();
    return text;
  }
  /** Up to and including the first line end. */
  async line(): Promise<string> {
    await readable(this.#pipe.read);
    const chunk = Buffer.alloc(4096);
    const { readSync } = await import("node:fs");
    return chunk.toString("utf8", 0, readSync(this.#pipe.read.n, chunk));
  }
  close(): void {
    this.#pipe.read.close();
    this.#pipe.write.close();
  }
}

/** Wait until `look` is satisfied; what it says last is the error. */
export async function until(look: () => string[]): Promise<void> {
  const LIMIT_MS = 10_000;
  const end = performance.now() + LIMIT_MS;
  for (;;) {
    const wrong = look();
    if (wrong.length === 0) return;
    if (performance.now() > end) throw new Error(wrong.join("\n"));
    await Bun.sleep(2);
  }
}
