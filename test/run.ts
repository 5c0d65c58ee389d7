// Run groups of tests and end with the line "N passed, M failed", which CI reads. Each group is a set of folders that
// `bun test` searches; a group that finds no test, or crashes before its summary, counts as one failure.
interface Group {
  readonly paths: readonly string[];
  readonly timeoutMs: number;
  /** What runs the runner. */
  readonly within?: readonly string[];
}
const GROUPS: Record<string, Group> = {
  unit: { paths: ["src", "ffi", "proto", "initramfs", "test/style.test.ts"], timeoutMs: 30_000 },
  // In a network namespace of its own: no test meets the links and rules of the machine, or of another run.
  host: {
    paths: ["test/host"],
    timeoutMs: 120_000,
    within: ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"],
  },
  machine: { paths: ["test/machine"], timeoutMs: 600_000 },
};

let passed = 0;
let failed = 0;

/** Pass the runner's words on as they come, and keep the end, where the totals stand. */
async function group(name: string): Promise<void> {
  const { paths, timeoutMs, within = [] } = GROUPS[name]!;
  console.log(`\n=== ${name}`);
  const began = performance.now();
  const child = Bun.spawn(
    [...within, process.execPath, "test", "--timeout", String(timeoutMs), ...paths.map((p) => `./${p}`)],
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
  console.log(
    `=== ${name}: ${pass} passed, ${fail} failed, ${Math.round((performance.now() - began) / 1000)} s`,
  );
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

export {};
