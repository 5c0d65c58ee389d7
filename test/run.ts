// Run groups of tests and end with the line "N passed, M failed", which CI reads. Each group is a set of folders that
// `bun test` searches; a group that finds no test, or crashes before its summary, counts as one failure.
import { appendFileSync } from "node:fs";

interface Group {
  readonly paths: readonly string[];
  readonly timeoutMs: number;
  /** What runs the runner. */
  readonly within?: readonly string[];
  /** Only tests whose name matches. */
  readonly named?: string;
}

const MINUTE = 60_000;
/** Namespaces of its own: no test meets the links, rules and mounts of the machine, or of another run. */
const APART = [
  "unshare",
  "--net",
  "--mount",
  "--propagation",
  "private",
  "sh",
  "-c",
  'ip link set lo up && exec "$@"',
  "sh",
];
const GROUPS: Record<string, Group> = {
  unit: { paths: ["src", "ffi", "proto", "initramfs", "test/style.test.ts"], timeoutMs: MINUTE },
  host: { paths: ["test/host"], timeoutMs: 3 * MINUTE, within: APART },
  machine: { paths: ["test/machine"], timeoutMs: 10 * MINUTE },
  escape: { paths: ["test/escape"], timeoutMs: 3 * MINUTE, within: APART },
  // parts of `make soak`
  leak: { paths: ["test/host"], timeoutMs: 60 * MINUTE, within: APART, named: "leave nothing|nothing grows" },
  leakmachine: { paths: ["test/machine"], timeoutMs: 60 * MINUTE, named: "leave nothing" },
  races: {
    paths: ["test/escape/host.test.ts"],
    timeoutMs: 60 * MINUTE,
    within: APART,
    named: "swapped for a link out",
  },
  crash: { paths: ["test/host"], timeoutMs: 60 * MINUTE, within: APART, named: "kill -9|next cmld|next one" },
  crashinit: { paths: ["test/machine"], timeoutMs: 60 * MINUTE, named: "fatal signal" },
  hotplug: { paths: ["test/host"], timeoutMs: 60 * MINUTE, within: APART, named: "hot-plug" },
  hotplugmachine: { paths: ["test/machine"], timeoutMs: 60 * MINUTE, named: "hot-plug" },
  power: { paths: ["test/host"], timeoutMs: 60 * MINUTE, within: APART, named: "power cuts" },
  powermachine: { paths: ["test/machine"], timeoutMs: 60 * MINUTE, named: "power cuts" },
  tampermachine: { paths: ["test/machine"], timeoutMs: 60 * MINUTE, named: "what is changed" },
  fuzz: { paths: ["src", "test/host"], timeoutMs: 60 * MINUTE, within: APART, named: "fuzz" },
};

/** What soaking has shown, with its date and commit. */
const SOAK_RECORD = "docs/soak.md";
const soaking = process.env.CML_SOAK === "1";

let passed = 0;
let failed = 0;

/** Pass the runner's words on as they come, and keep the end, where the totals stand. */
async function group(name: string): Promise<void> {
  const { paths, timeoutMs, within = [], named } = GROUPS[name]!;
  const only = named === undefined ? [] : ["-t", named];
  console.log(`\n=== ${name}`);
  const began = performance.now();
  const child = Bun.spawn(
    [
      ...within,
      process.execPath,
      "test",
      "--timeout",
      String(timeoutMs),
      ...only,
      ...paths.map((p) => `./${p}`),
    ],
    { stdin: "ignore", stdout: "inherit", stderr: "pipe", env: { ...process.env, FORCE_COLOR: "0" } },
  );
  let tail = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stderr) {
    const text = decoder.decode(chunk, { stream: true });
    process.stderr.write(text);
    tail = (tail + text).slice(-4096);
  }
  const code = await child.exited;
  const count = (word: string) => Number(tail.match(new RegExp(`^\\s*(\\d+) ${word}$`, "m"))?.[1] ?? 0);
  const [pass, fail] = [count("pass"), count("fail")];
  passed += pass;
  failed += fail;
  if (fail === 0 && (code !== 0 || pass === 0)) {
    console.log(`${name}: the runner ended with ${code} after ${pass} tests`);
    failed += 1;
  }
  const seconds = Math.round((performance.now() - began) / 1000);
  console.log(`=== ${name}: ${pass} passed, ${fail} failed, ${seconds} s`);
  if (soaking) record([new Date().toISOString().slice(0, 10), commit(), name, pass, fail, seconds]);
}

const commit = (): string =>
  Bun.spawnSync(["git", "rev-parse", "--short", "HEAD"]).stdout.toString().trim() || "unknown";

function record(cells: readonly (string | number)[]): void {
  appendFileSync(SOAK_RECORD, `| ${cells.join(" | ")} |\n`);
}

const names = process.argv.slice(2);
const unknown = names.filter((n) => !(n in GROUPS));
if (names.length === 0 || unknown.length > 0) {
  console.error(`run.ts: ${unknown.join(" ") || "no group"}: groups are ${Object.keys(GROUPS).join(" ")}`);
  process.exit(2);
}
for (const name of names) await group(name);
console.log(`\n${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
