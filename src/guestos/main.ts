// `cml guestos`: makes what cmld starts. Runs on a developer's machine, not on a device.
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { GuestOSConfig, GuestOSMount, type IGuestOSMount } from "../../proto/gen/proto.js";
import { harmless } from "../lib/harmless.ts";
import { parse } from "../lib/text.ts";
import { Refused, type Signed } from "../pki/verify.ts";
import { out } from "../sys/output.ts";
import { oneOf, type Run, runTool, Usage, whole } from "../tool/commands.ts";
import { build, check, FILE_SYSTEMS, HARDWARE, type RootMount } from "./image.ts";
import { beside, bytesOf, judge, sign, signer, signerOf } from "./sign.ts";
import { COMMANDS, SUMMARY } from "./table.ts";

const MIB_MAX = 1 << 20; // a TiB: what def_size holds, and what an 80-disk array might

const run: Run<typeof COMMANDS> = {
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
    const text = (option: string) => {
      const value = args[option] as string | undefined;
      return value === undefined ? undefined : plain(`--${option}`, value);
    };
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
          init_path: text("init")!,
          init_param: many("param").map((words) => lines("--param", words)),
          init_env: many("env").map(assignment),
          mounts: [
            ...many("volume").map((words) => volume("--volume", GuestOSMount.Type.EMPTY, words)),
            ...many("overlay").map((words) => volume("--overlay", GuestOSMount.Type.OVERLAY_RW, words)),
            ...many("tmpfs").map(tmpfs),
            ...many("bind").map(bind),
          ],
          ...optional("description", description === undefined ? undefined : { en: description }),
          ...optional("upstream_version", text("upstream")),
          ...optional("update_base_url", url("--update-url", text("update-url"))),
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
    await out(`${built.confPath}\n`);
    return 0;
  },

  async sign(args, many) {
    const conf = String(args.conf);
    const source = await bytesOf(conf);
    parsed(conf, source);
    for (const path of await sign(conf, signer(args, many), source)) await out(`${path}\n`);
    return 0;
  },

  async verify(args, many) {
    const conf = String(args.conf);
    const [ca, localCa] = [many("ca"), many("local-ca")];
    if (ca.length + localCa.length === 0) throw new Usage("whom to believe: --ca FILE or --local-ca FILE");
    const file = (name: "sig" | "cert") =>
      args[name] === undefined ? beside(conf, name) : String(args[name]);
    const source = await bytesOf(conf);
    let signed: Signed;
    try {
      const roots = { ca, localCa, revocation: many("revocation"), ignoreTime: args["ignore-time"] === true };
      signed = await judge(source, file("sig"), file("cert"), roots);
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      console.error(`guestos: ${conf}: ${e.message}`);
      return 1;
    }
    await out(`${conf}: ${signed.level}: ${signed.signer} (root ${signed.root})\n`);
    const config = parsed(conf, source);
    if (!existsSync(join(dirname(conf), `${config.name}-${config.version}`))) {
      await out(`${conf}: its images are not here, nothing said about them\n`);
      return 0;
    }
    const wrong = await check(config, conf);
    for (const line of wrong) console.error(`guestos: ${harmless(line)}`);
    return wrong.length ? 1 : 0;
  },

  async inspect(args) {
    const path = String(args.conf);
    const config = parsed(path, await bytesOf(path));
    const wrong = await check(config, path);
    const by = await signerOf(path);
    const shown =
      args.json === true
        ? JSON.stringify(
            { config: GuestOSConfig.plain(config), signer: by ?? null, problems: wrong },
            null,
            2,
          )
        : [
            ...table(config),
            `signed by    ${by ?? "nobody"}`, // verify tells whether it holds
            ...wrong.map((w) => `problem: ${harmless(w)}`),
          ].join("\n");
    await out(`${shown}\n`);
    return wrong.length ? 1 : 0;
  },
};

function parsed(path: string, source: Uint8Array): GuestOSConfig {
  try {
    return parse(GuestOSConfig, source);
  } catch (cause) {
    throw new Error(path, { cause });
  }
}

/** C0, DEL and C1, which no line of a configuration has, and cmld refuses. */
const CONTROL = /[\x00-\x1f\x7f-\x9f]/;

/** In quotes, and no terminal acts upon it. */
const quoted = (words: string): string => harmless(JSON.stringify(words));

function plain(option: string, words: string): string {
  const [found] = CONTROL.exec(words) ?? [];
  if (found !== undefined)
    throw new Usage(`${option} ${quoted(words)}: a control character (${quoted(found)})`);
  return words;
}

/** What programs take as it is: newlines and tabs are fine. */
function lines(option: string, words: string): string {
  plain(option, words.replace(/[\n\t]/g, " "));
  return words;
}

function url(option: string, words: string | undefined): string | undefined {
  if (words === undefined || /^(https?|file):\/\/[^\s"'\\]+$/.test(words)) return words;
  throw new Usage(`${option} ${quoted(words)}: http://, https:// or file://, without blanks and quotes`);
}

function assignment(words: string): string {
  lines("--env", words);
  if (!/^[A-Za-z_][A-Za-z0-9_]*=/.test(words)) throw new Usage(`--env ${words}: NAME=VALUE`);
  return words;
}

/** A place in the guest: absolute, without tricks. */
function place(what: string, words: string, path: string | undefined): string {
  plain(what, words);
  if (!path?.startsWith("/") || path.split("/").includes(".."))
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
  return rows.map(([key, value]) => `${key.padEnd(12)} ${harmless(value).replaceAll("\n", "\\n")}`);
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

export const main = (rawArgs: string[]): Promise<number> =>
  runTool(
    {
      program: "guestos",
      summary: SUMMARY,
      commands: COMMANDS,
      run,
      statuses: { verify: { usage: 2, failed: 2 } },
    },
    rawArgs,
  );
