// `make bench`: a start with limits of memory, processors and processes, a pair of links, device program and filter, beside
// crun with the same, in QEMU: this host has no such controllers in cgroup2. crun and ip(8) are Debian's; they and their
// libraries lie on the machine's data disk. Their root is a folder, so ours is an image without dm-verity, which has a
// benchmark of its own (verity.ts). Times are the machine's own, which counts instructions. Ours is timed by cmld's log
// (STARTING to STOPPED), theirs by who starts them.
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { closure } from "../../initramfs/libraries.ts";
import type { Guest } from "../escape/attack.ts";
import { Machine } from "../escape/machine.ts";
import { busyboxRoot } from "../host/world.ts";
import { bundle, linkBatch } from "./peers.ts";
import { keep, median, report } from "./report.ts";

const SAMPLES = 50; // as on the host
const WARM = 2;
const MEMORY = 64 << 20;
const [CPU_WEIGHT, PIDS] = [200, 100];
const PEERS = ["/usr/bin/crun", "/usr/bin/ip"];
const [AT, NETNS] = ["/data/peer", "bench"];
const OURS: Guest = {
  name: "ours",
  hashed: true,
  init: ["/bin/true"],
  config: { ram_limit: MEMORY >> 20, cpu_weight: CPU_WEIGHT, pids_limit: PIDS },
};
const LIMITS = {
  memory: { limit: MEMORY, swap: MEMORY },
  pids: { limit: PIDS },
  unified: { "cpu.weight": String(CPU_WEIGHT), "memory.oom.group": "1" },
};

function peers(data: string): void {
  const to = join(data, "peer");
  mkdirSync(join(to, "lib"), { recursive: true });
  for (const program of PEERS) copyFileSync(program, join(to, basename(program)));
  for (const { name, from } of closure(PEERS)) copyFileSync(from, join(to, "lib", name));
  const root = mkdtempSync(join(tmpdir(), "limits-"));
  busyboxRoot(root);
  bundle(join(to, "bundle"), root, ["/bin/true"], NETNS, LIMITS);
  rmSync(root, { recursive: true });
}

await using machine = await Machine.boot([OURS], { add: peers, counted: true });
const { vm } = machine;

async function ours(): Promise<number> {
  const from = vm.said.length;
  await machine.control("start", OURS.name);
  await vm.sees(new RegExp(`${OURS.name}: [A-Z]+ → STOPPED`));
  const said = vm.said.slice(from);
  const at = (words: string): number =>
    Date.parse(
      new RegExp(`(\\d{4}-\\d\\d-\\d\\dT[\\d:.]+)\\+0000 [^\\n]*${OURS.name}: ${words}`).exec(said)![1]!,
    );
  return at("[A-Z]+ → STOPPED") - at("STOPPED → STARTING");
}

const env = { LD_LIBRARY_PATH: `${AT}/lib`, PATH: "/usr/sbin:/usr/bin" };
async function run(argv: string[], stdin = ""): Promise<number> {
  const { status, stderr, ms } = await vm.ask("run", { argv, stdin, env });
  if (status !== 0) throw new Error(`${argv.join(" ")}: exit status ${status}: ${stderr.trim()}`);
  return ms;
}
const lines = (batch: readonly string[]): string => batch.map((line) => `${line}\n`).join("");
async function theirs(): Promise<number> {
  const made = await run([`${AT}/ip`, "-batch", "-"], lines(linkBatch(NETNS)));
  const ran = await run([`${AT}/crun`, "run", "--bundle", `${AT}/bundle`, "theirs"]);
  await run([`${AT}/ip`, "netns", "del", NETNS]);
  return made + ran;
}

for (let i = 0; i < WARM; i++) {
  await ours();
  await theirs();
}
const times = { ours: [] as number[], theirs: [] as number[] };
for (let i = 0; i < SAMPLES; i++) {
  times.ours.push(await ours());
  times.theirs.push(await theirs());
}
report("start.limits_ms", median(times.ours), "ms", SAMPLES);
report("start.limits_crun_ms", median(times.theirs), "ms", SAMPLES);
report("start.limits_vs_crun", median(times.ours) / median(times.theirs), "ratio", SAMPLES);
keep();
process.exit(0);
