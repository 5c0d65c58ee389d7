// One executable, many programs: the name it was called by selects one, and only that one is loaded.
import { basename } from "node:path";

type Applet = () => Promise<{ main(args: string[]): Promise<number> }>;

// process.argv0, not argv[0]: a compiled program of this runtime reports argv[0] as "bun".
const applets = new Map<string, Applet>([
  ["init", () => import("./init/main.ts")],
  ["cmld", () => import("./cmld/first.ts")],
  ["scd", () => import("./scd/main.ts")],
  ["fetch", () => import("./fetch/main.ts")],
  ["control", () => import("./control/main.ts")],
  ["guestos", () => import("./guestos/main.ts")],
  ["container", () => import("./guestos/container.ts")],
  ["pki", () => import("./pki/main.ts")],
]);

const USAGE = `usage: cml PROGRAM [ARGUMENT…], or a link to it with the program's name

programs: ${[...applets.keys()].join(" ")}
also: --version, --help
`;

const called = basename(process.argv0);
const args = process.argv.slice(2);
const plain = called.replace(/^cml-/, ""); // the original's names on an ordinary host: cml-control, cml-scd
const name = applets.has(plain) ? plain : (args.shift() ?? "help");
const load = applets.get(name);
if (name === "--version" || name === "-V") {
  const { version } = await import("../package.json");
  process.stdout.write(`cml ${version}\n`);
  process.exit(0);
}
if (!load) {
  const help = ["help", "--help", "-h"].includes(name);
  (help ? process.stdout : process.stderr).write(help ? USAGE : `cml: ${name}: no such program\n${USAGE}`);
  process.exit(help ? 0 : 100);
}
try {
  const { main } = await load();
  process.exitCode = await main(args);
} catch (e) {
  const { chain } = await import("./sys/error.ts");
  console.error(`${name}: ${chain(e)}`);
  process.exitCode = 1;
}
