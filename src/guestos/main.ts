// `cml guestos`: makes what cmld starts. Runs on a developer's machine, not on a device.
import { type ArgDef, type ArgsDef, type CommandDef, defineCommand, renderUsage, runCommand } from "citty";
import { GuestOSConfig, GuestOSMount, type IGuestOSMount } from "../../proto/gen/proto.js";
import { parse } from "../lib/text.ts";
import { chain } from "../sys/error.ts";
import { build, check, FILE_SYSTEMS, HARDWARE, type RootMount } from "./image.ts";
import { COMMANDS, SUMMARY } from "./table.ts";

type Values = Readonly<Record<string, unknown>>;

class Usage extends Error {}

const MIB_MAX = 1 << 20; // a TiB: what def_size holds, and what an 80-disk array might

const run: Record<
  (typeof COMMANDS)[number][0],
  (args: Values, many: (option: string) => string[]) => Promise<number>
> = {
  async build(args, many) {
    const fs = oneOf("--fs", args.fs, FILE_SYSTEMS);
    const root = oneOf("--root", args.root, ["shared_rw", "shared", "overlay_ro"] satisfies RootMount[]);
    const arch = oneOf(
      "--arch",
      args.arch ?? { x64: "x86_64", arm64: "aarch64" }[process.arch as string],
      Object.keys(HARDWARE),
    );
    const optional = <K extends string, V>(key: K, value: V | undefined) =>
      value === undefined ? {} : ({ [key]: value } as Record<K, V>);
    const text = (option: string) => args[option] as string | undefined;
    const description = text("description");
    const built = await build(
      {
        name: String(args.name),
        version: whole("--version", args.version, 1, Number.MAX_SAFE_INTEGER),
        from: String(args.from),
        out: String(args.out),
        fs,
        root,
        hardware: HARDWARE[arch]!,
        compress: args.compress !== false,
        allRoot: args["all-root"] === true,
        force: args.force === true,
        date: args.date === undefined ? undefined : whole("--date", args.date, 0, 2 ** 32 - 1),
        config: {
          init_path: String(args.init),
          init_param: many("param"),
          init_env: many("env").map(assignment),
          mounts: [
            ...many("volume").map((words) => volume("--volume", GuestOSMount.Type.EMPTY, words)),
            ...many("overlay").map((words) => volume("--overlay", GuestOSMount.Type.OVERLAY_RW, words)),
            ...many("tmpfs").map(tmpfs),
            ...many("bind").map(bind),
          ],
          ...optional("description", description === undefined ? undefined : { en: description }),
          ...optional("upstream_version", text("upstream")),
          ...optional("update_base_url", text("update-url")),
          ...optional(
            "def_ram_limit",
            args.ram === undefined ? undefined : whole("--ram", args.ram, 1, MIB_MAX),
          ),
          ...optional(
            "min_ram_limit",
            args["min-ram"] === undefined ? undefined : whole("--min-ram", args["min-ram"], 1, MIB_MAX),
          ),
          ...optional("feature_install_guest", args["install-guest"] === true ? true : undefined),
        },
      },
      (line) => console.error(`guestos: ${line}`),
    );
    console.log(built.confPath);
    return 0;
  },

  async inspect(args) {
    const path = String(args.conf);
    const source = await Bun.file(path).bytes();
    let config: GuestOSConfig;
    try {
      config = parse(GuestOSConfig, source);
    } catch (cause) {
      throw new Error(path, { cause });
    }
    const wrong = await check(config, path);
    if (args.json === true)
      console.log(JSON.stringify({ config: GuestOSConfig.plain(config), problems: wrong }, null, 2));
    else console.log([...table(config), ...wrong.map((w) => `problem: ${w}`)].join("\n"));
    return wrong.length ? 1 : 0;
  },
};

function oneOf<T extends string>(what: string, value: unknown, allowed: readonly T[]): T {
  const found = allowed.find((one) => one === value);
  if (found === undefined) throw new Usage(`${what} ${value}: not one of ${allowed.join(" ")}`);
  return found;
}

function whole(what: string, value: unknown, least: number, most: number): number {
  const n = /^[0-9]{1,16}$/.test(String(value)) ? Number(value) : Number.NaN;
  if (!(n >= least && n <= most))
    throw new Usage(`${what} ${value}: a whole number from ${least} to ${most}`);
  return n;
}

function assignment(words: string): string {
  if (!/^[A-Za-z_][A-Za-z0-9_]*=/.test(words)) throw new Usage(`--env ${words}: NAME=VALUE`);
  return words;
}

/** A place in the guest: absolute, without tricks. */
function place(what: string, words: string, path: string | undefined): string {
  if (!path?.startsWith("/") || path.split("/").includes("..") || path.includes("\n"))
    throw new Usage(`${what} ${words}: the mount point must be an absolute path`);
  return path;
}

function imageName(what: string, words: string, name: string | undefined): string {
  if (!name || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name))
    throw new Usage(`${what} ${words}: the name: 1 to 63 of A-Z a-z 0-9 . _ -`);
  return name;
}

function volume(what: string, type: GuestOSMount.Type, words: string): IGuestOSMount {
  const [name, path, size = "1024", fs = "ext4", ...more] = words.split(":");
  if (more.length) throw new Usage(`${what} ${words}: NAME:/MOUNT/POINT[:MiB[:ext4]]`);
  return {
    image_file: imageName(what, words, name),
    mount_point: place(what, words, path),
    fs_type: oneOf(`${what} ${words}: file system`, fs, ["ext4", "btrfs"]),
    mount_type: type,
    def_size: whole(`${what} ${words}: size`, size, 10, MIB_MAX), // 10: the least that the original makes
  };
}

function tmpfs(words: string): IGuestOSMount {
  const [path, size, ...more] = words.split(":");
  if (more.length) throw new Usage(`--tmpfs ${words}: /MOUNT/POINT[:MiB]`);
  const data =
    size === undefined ? {} : { mount_data: `size=${whole(`--tmpfs ${words}: size`, size, 1, MIB_MAX)}m` };
  return {
    image_file: "tmpfs",
    mount_point: place("--tmpfs", words, path),
    fs_type: "tmpfs",
    mount_type: GuestOSMount.Type.EMPTY,
    ...data,
  };
}

function bind(words: string): IGuestOSMount {
  const [name, path, mode, ...more] = words.split(":");
  if (more.length || (mode !== undefined && mode !== "rw"))
    throw new Usage(`--bind ${words}: FILE:/MOUNT/POINT[:rw]`);
  return {
    image_file: imageName("--bind", words, name),
    mount_point: place("--bind", words, path),
    fs_type: "none",
    mount_type: mode === "rw" ? GuestOSMount.Type.BIND_FILE_RW : GuestOSMount.Type.BIND_FILE,
  };
}

function table(config: GuestOSConfig): string[] {
  const rows: [string, string][] = [
    ["name", config.name],
    ["version", String(config.version)],
    ["hardware", config.hardware],
    ["description", config.description.en],
    ["built", config.build_date ?? "unknown"],
    ["init", [config.init_path, ...config.init_param].join(" ")],
    ...config.init_env.map((one): [string, string] => ["environment", one]),
    ...config.mounts.map((mount): [string, string] => ["mount", mountLine(mount)]),
    ...config.mounts_setup.map((mount): [string, string] => ["setup mount", mountLine(mount)]),
  ];
  return rows.map(([key, value]) => `${key.padEnd(12)} ${value}`);
}

function mountLine(m: GuestOSMount): string {
  const size =
    m.image_size === undefined
      ? m.fs_type === "tmpfs"
        ? (m.mount_data ?? "")
        : `${m.def_size} MiB`
      : `${m.image_size} bytes`;
  return `${m.mount_point} ${GuestOSMount.Type[m.mount_type]} ${m.image_file} ${m.fs_type} ${size}`.trimEnd();
}

/** The values of an option that may be given more than once, in order: `--env A=1 --env=B=2`. */
function repeated(rawArgs: readonly string[], option: string): string[] {
  const values: string[] = [];
  for (let i = 0; i < rawArgs.length && rawArgs[i] !== "--"; i++) {
    const word = rawArgs[i]!;
    if (word === `--${option}`) values.push(rawArgs[++i] ?? "");
    else if (word.startsWith(`--${option}=`)) values.push(word.slice(option.length + 3));
  }
  return values;
}

/** citty passes over options that it doesn't know; a mistyped one must not be passed over. */
function known(rawArgs: readonly string[], args: ArgsDef): void {
  const names = new Map<string, ArgDef>();
  for (const [name, def] of Object.entries(args)) {
    const alias = "alias" in def ? (def.alias ?? []) : [];
    for (const one of [name, alias].flat()) names.set(one, def);
  }
  for (let i = 0; i < rawArgs.length && rawArgs[i] !== "--"; i++) {
    const [, name, value] = /^--?([a-z-]+)(=.*)?$/s.exec(rawArgs[i]!) ?? [];
    if (name === undefined) continue;
    const def = names.get(name) ?? names.get(name.replace(/^no-/, ""));
    if (!def) throw new Usage(`${rawArgs[i]}: no such option`);
    if (def.type === "string" && value === undefined) i++;
  }
}

const tree = (status: (n: number) => void): CommandDef =>
  defineCommand({
    meta: { name: "cml guestos", description: SUMMARY },
    subCommands: Object.fromEntries(
      COMMANDS.map(([name, description, args]) => [
        name,
        defineCommand({
          meta: { name, description },
          args: args as ArgsDef,
          async run({ args: values, rawArgs }) {
            known(rawArgs, args);
            status(await run[name](values, (option) => repeated(rawArgs, option)));
          },
        }),
      ]),
    ),
  });

export async function main(rawArgs: string[]): Promise<number> {
  let status = 0;
  const root = tree((n) => {
    status = n;
  });
  const sub = COMMANDS.find(([name]) => name === rawArgs[0]);
  if (rawArgs.length === 0 || rawArgs.includes("--help") || rawArgs.includes("-h")) {
    const command = sub
      ? defineCommand({ meta: { name: sub[0], description: sub[1] }, args: sub[2] as ArgsDef })
      : root;
    const usage = await renderUsage(command, sub ? root : undefined);
    console.log(process.stdout.isTTY ? usage : Bun.stripANSI(usage));
    return rawArgs.length ? 0 : 255;
  }
  try {
    await runCommand(root, { rawArgs });
    return status;
  } catch (e) {
    console.error(`guestos: ${chain(e)}`);
    return e instanceof Usage || (e as Error).name === "CLIError" ? 255 : 1;
  }
}
