// `make bench-protobuf`: our protobuf codec (src/lib/protobuf.ts, text.ts) beside protobufjs 8, whose static module and
// text-format extension would be the other choice. docs/decisions/protobuf.md has a table of one run. Each figure is
// taken in processes of its own, the variants alternating, so that neither inherits the other's heap or compiled code.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

const WORK = "out/bench-protobuf";
const STARTS = 21;
const ROUNDS = 15;
/** Messages of one round: long enough for the clock, short enough for 30 rounds. */
const BATCH = 500;
const MiB = 2 ** 20;

/** What a variant offers; generated as one file per variant, so that each bundle holds its own codec only. */
interface Codec {
  encode(m: object): Uint8Array;
  decode(bytes: Uint8Array): { container_status: unknown[] };
  /** A message without a required field. */
  decodeStatus(bytes: Uint8Array): object;
  decodeCommand(bytes: Uint8Array): object;
  decodeQuote(bytes: Uint8Array): object;
  decodeStats(bytes: Uint8Array): { disk_system: unknown };
}

const methods = (end: string): string =>
  `export const encode = (m) => DaemonToController.encode(m)${end};\n` +
  Object.entries({
    decode: "DaemonToController",
    decodeStatus: "ContainerStatus",
    decodeCommand: "ControllerToDaemon",
    decodeQuote: "Tpm2dToRemote",
    decodeStats: "DeviceStats",
  })
    .map(([name, type]) => `export const ${name} = (b) => ${type}.decode(b);\n`)
    .join("");
const TYPES = "{ ContainerStatus, ControllerToDaemon, DaemonToController, DeviceStats, Tpm2dToRemote }";

const VARIANTS: Record<string, string> = {
  ours: `import ${TYPES} from "../../proto/gen/proto.js";\n${methods("")}`,
  static: `import ${TYPES} from "./generated.js";\n${methods(".finish()")}`,
  reflected:
    `import protobuf from "protobufjs/light.js";\nimport json from "./protocol.json";\n` +
    `const root = protobuf.Root.fromJSON(json);\nconst ${TYPES} = root.nested;\n${methods(".finish()")}`,
};

/** As much as a busy machine's `control list` carries. */
const STATUS = {
  code: 3,
  container_status: Array.from({ length: 50 }, (_, i) => ({
    uuid: `11868459-a4f8-4933-a4db-cfa8ac84${String(i).padStart(4, "0")}`,
    name: `container-${i}`,
    type: 1,
    state: 4,
    uptime: 86_400 + i,
    created: 1_793_491_200 + i,
    guestos: "debian",
    trust_level: 3,
    cryptfs_mode: 1,
  })),
};

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;
const message = (work: () => unknown): string => {
  try {
    const result = work();
    return result === undefined ? "accepted" : `accepted: ${JSON.stringify(result)}`;
  } catch (e) {
    return (e as Error).message;
  }
};

// --- in a child: one task of one variant ---------------------------------------------

const kib = (field: string): number =>
  Number(readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${field}:\\s+(\\d+) kB`, "m"))![1]);

/** Largest growth of the process while it decodes `size` bytes of elements that are empty, MiB. */
function hostile(size: number, head: string, element: string, decode: (b: Uint8Array) => unknown): string {
  const frame = Buffer.alloc(size, element, "hex");
  frame.write(head, 0, "hex");
  Bun.gc(true);
  writeFileSync("/proc/self/clear_refs", "5"); // VmHWM begins anew: proc(5)
  const before = kib("VmRSS");
  const began = performance.now();
  const said = message(() => void decode(frame));
  const ms = performance.now() - began;
  return `${((kib("VmHWM") - before) / 1024).toFixed(0)} MiB, ${ms.toFixed(0)} ms, ${said}`;
}

const tasks: Record<string, (c: Codec) => unknown> = {
  /** Microseconds of processor time per message: encode, decode. Time by the clock says little on a busy machine. */
  speed(c) {
    const bytes = c.encode(STATUS);
    const time = (work: () => unknown): number => {
      const rounds: number[] = [];
      for (let round = 0; round < 2 * ROUNDS; round++) {
        const began = process.cpuUsage();
        for (let i = 0; i < BATCH; i++) work();
        const { user, system } = process.cpuUsage(began);
        if (round >= ROUNDS) rounds.push((user + system) / BATCH);
      }
      return median(rounds);
    };
    return [time(() => c.encode(STATUS)), time(() => c.decode(bytes))];
  },
  strings1: (c) => hostile(MiB, "08010801", "5200", c.decodeCommand),
  strings64: (c) => hostile(64 * MiB, "08010801", "5200", c.decodeCommand),
  messages1: (c) => hostile(MiB, "08010801", "3200", c.decodeQuote),
  messages64: (c) => hostile(64 * MiB, "08010801", "3200", c.decodeQuote),
  unknown64: (c) => hostile(64 * MiB, "08010801", "a006", c.decodeCommand),
  required: (c) => message(() => c.decodeStatus(Buffer.from("0a0161", "hex"))),
  cut: (c) => message(() => c.decodeCommand(Buffer.from("08015205", "hex"))),
  utf8: (c) => message(() => c.decodeCommand(Buffer.from("08015202c328", "hex"))),
  nul: (c) => message(() => c.decodeCommand(Buffer.from("0801520361006a", "hex"))),
  wire: (c) => message(() => c.decodeCommand(Buffer.from("0d00000000", "hex"))),
  uint64: (c) =>
    message(() => {
      const { disk_system } = c.decodeStats(Buffer.from("08ffffffffffffffffff0110001800", "hex"));
      return typeof disk_system === "number" && disk_system === 2 ** 64 ? "2^64-1 (as 2^64)" : disk_system;
    }),
};

/** The text format: what each reader says. */
const TEXTS: Record<string, string> = {
  "required numbers missing": 'name: "a"\nguest_os: "b"\n',
  "comment, hexadecimal":
    'name: "a" # c\nguest_os: "b"\ncolor: 0xff00ff00\ntype: CONTAINER\ntoken_type: NONE\n',
  "wrong type": 'name: "a"\nguest_os: 5\n',
  "unknown field": 'name: "a"\nguest_os: "b"\nnope: 1\n',
  "bad bool in a block":
    'name: "a"\nguest_os: "b"\ncolor: 1\nvnet_configs {\n  if_name: "x"\n  configure: maybe\n}\n',
  "required string missing": 'name: "a"\ncolor: 1\n',
  "number too large": 'name: "a"\nguest_os: "b"\ncolor: 1\nram_limit: 4294967296\n',
};

interface TextReader {
  read(type: string, source: string): object;
  print(type: string, m: object): string;
}

async function textReader(variant: string): Promise<TextReader> {
  if (variant === "ours") {
    const { parse, print } = await import("../../src/lib/text.ts");
    const proto = (await import("../../proto/gen/proto.js")) as unknown as Record<string, never>;
    return { read: (t, s) => parse(proto[t]!, s), print: (t, m) => print(proto[t]!, m) };
  }
  const { default: protobuf } = await import("protobufjs");
  const { default: textformat } = await import("protobufjs/ext/textformat.js");
  textformat.install();
  const root = protobuf.Root.fromJSON(await Bun.file(join(WORK, "protocol.json")).json());
  return {
    read: (t, s) => root.lookupType(t).fromText(s),
    print: (t, m) => root.lookupType(t).toText(m),
  };
}

async function texts(variant: string): Promise<object> {
  const { read, print } = await textReader(variant);
  const said: Record<string, string> = {};
  for (const [name, source] of Object.entries(TEXTS))
    said[name] = message(() => void read("ContainerConfig", source));
  const golden = "test/data/golden/state";
  let accepted = 0;
  let same = 0;
  let all = 0;
  for (const [folder, type] of [
    ["containers", "ContainerConfig"],
    ["operatingsystems", "GuestOSConfig"],
    ["tokens", "DeviceId"],
  ] as const)
    for (const f of readdirSync(join(golden, folder)).filter((name) => name.endsWith(".conf"))) {
      const source = readFileSync(join(golden, folder, f), "utf8");
      all++;
      try {
        const m = read(type, source);
        accepted++;
        if (print(type, m).trimEnd() === source.trimEnd()) same++;
      } catch {} // counted by what is missing
    }
  said["files of the original"] = `${accepted} of ${all} read, ${same} printed as they were`;
  return said;
}

// --- the parent --------------------------------------------------------------------------

function run(argv: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(argv, { stdout: "pipe", stderr: "pipe" });
  if (exitCode !== 0)
    throw new Error(`${argv.join(" ")}: exit status ${exitCode}: ${stderr.toString().trim().slice(-500)}`);
  return stdout.toString().trim();
}

function prepare(): void {
  rmSync(WORK, { recursive: true, force: true });
  mkdirSync(WORK, { recursive: true });
  const files = readdirSync("proto")
    .filter((f) => f.endsWith(".proto"))
    .map((f) => `proto/${f}`);
  const pbjs = [process.execPath, "node_modules/.bin/pbjs", "--keep-case"];
  const lean = [
    "--no-verify",
    "--no-convert",
    "--no-delimited",
    "--no-create",
    "--no-service",
    "--no-comments",
  ];
  run([...pbjs, "-t", "static-module", "-w", "esm", ...lean, "-o", join(WORK, "generated.js"), ...files]);
  run([...pbjs, "-t", "json", "-o", join(WORK, "protocol.json"), ...files]);
  for (const [name, source] of Object.entries(VARIANTS)) {
    writeFileSync(join(WORK, `${name}.js`), source);
    // The time until a first message has gone both ways, counted from the start of the process.
    const first = `import { decode, encode } from "./${name}.js";\nconst m = decode(encode(${JSON.stringify(STATUS)}));\n`;
    const say = "process.stdout.write(String(m.container_status.length === 50 && performance.now()));\n";
    writeFileSync(join(WORK, `${name}-start.js`), first + say);
  }
  writeFileSync(join(WORK, "nothing-start.js"), "process.stdout.write(String(performance.now()));\n");
}

const bundled = (name: string): number => {
  const to = join(WORK, `${name}.min.js`);
  run([process.execPath, "build", "--minify", "--target=bun", join(WORK, `${name}.js`), "--outfile", to]);
  return Bun.file(to).size;
};

function startUps(names: string[]): Record<string, number> {
  const compile = ["--compile", "--minify-syntax", "--bytecode", "--format=esm"];
  const samples: Record<string, number[]> = {};
  for (const name of names) {
    const executable = join(WORK, `${name}-start`);
    run([process.execPath, "build", ...compile, `${executable}.js`, "--outfile", executable]);
    samples[name] = [];
  }
  for (let i = 0; i < STARTS; i++)
    for (const name of names) samples[name]!.push(Number(run([join(process.cwd(), WORK, `${name}-start`)])));
  return Object.fromEntries(names.map((name) => [name, median(samples[name]!)]));
}

const child = (...words: string[]): string => run([process.execPath, import.meta.path, "child", ...words]);

async function parent(): Promise<void> {
  prepare();
  try {
    const names = Object.keys(VARIANTS);
    const row = (what: string, cells: Record<string, string>): void => {
      console.log(`${what}\n${names.map((n) => `  ${n.padEnd(10)} ${cells[n] ?? "-"}`).join("\n")}`);
    };
    const each = (f: (name: string) => string): Record<string, string> =>
      Object.fromEntries(names.map((n) => [n, f(n)]));
    row(
      "bundle, minified",
      each((n) => `${bundled(n)} bytes`),
    );
    const starts = startUps(["nothing", ...names]);
    row(
      `start of the process to the first message there and back, compiled with bytecode, median of ${STARTS} (a program that does nothing: ${starts.nothing!.toFixed(2)} ms)`,
      each((n) => `${starts[n]!.toFixed(2)} ms`),
    );
    const speed: Record<string, number[][]> = Object.fromEntries(names.map((n) => [n, []]));
    for (let i = 0; i < 3; i++)
      for (const n of names) speed[n]!.push(JSON.parse(child(n, "speed")) as number[]);
    row(
      "status of 50 containers, encode / decode, processor time, median of 3 processes",
      each((n) =>
        speed[n]![0]!.map((_, i) => `${median(speed[n]!.map((s) => s[i]!)).toFixed(1)} µs`).join(" / "),
      ),
    );
    for (const task of Object.keys(tasks).filter((t) => t !== "speed")) {
      row(
        task,
        each((n) => child(n, task)),
      );
    }
    const said = Object.fromEntries(
      ["ours", "reflected"].map((n) => [n, JSON.parse(child(n, "texts")) as Record<string, string>]),
    );
    for (const what of Object.keys(said.ours!))
      row(`text: ${what}`, { ours: said.ours![what]!, reflected: said.reflected![what]! });
  } finally {
    rmSync(WORK, { recursive: true, force: true });
  }
}

const [mode, variant, task] = process.argv.slice(2);
if (mode !== "child") await parent();
else if (task === "texts") console.log(JSON.stringify(await texts(variant!)));
else {
  const codec = (await import(join(process.cwd(), WORK, `${basename(variant!)}.js`))) as Codec;
  const result = tasks[task!]!(codec);
  console.log(typeof result === "string" ? result : JSON.stringify(result));
}
