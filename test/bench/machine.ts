// `make bench`: the machine in QEMU, seen through the test agent. What our processes take of its memory, and where the
// time goes until core0 runs (boot.ts measures how much it is).
//
//   bun test/bench/machine.ts [memory] [timeline]
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "../machine/qemu.ts";
import { keep, report } from "./report.ts";

const DISK_MB = 512;
const MEMORY_MB = 512;
const SMALL_MB = 256;
const CONTAINERS = 10;
/** Between two lines of the timeline: what is shorter is not worth a look. */
const GAP_S = 0.03;

const work = mkdtempSync(join(tmpdir(), "bench-machine-"));
const master = join(work, "master.img");

/** A machine of its own; the disk stays as it was made. */
const machine = (memory: number): Vm => Vm.boot({ memory, disks: [master], more: ["-snapshot"] });

const RUNNING = /\[ *(\d+\.\d+)\] [^\n]*core0: BOOTING → RUNNING/;

// --- memory --------------------------------------------------------------------

interface Memory {
  readonly pss: number;
  readonly own: number;
}

/** MiB: PSS, and the part of it that nobody else maps. */
async function memory(vm: Vm, pid: number): Promise<Memory> {
  const text = await vm.ask("read", { path: `/proc/${pid}/smaps_rollup` });
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)![1]);
  return { pss: kib("Pss") / 1024, own: (kib("Private_Clean") + kib("Private_Dirty")) / 1024 };
}

const daemons = async (vm: Vm): Promise<Record<string, number>> => {
  const state = JSON.parse(await vm.ask("read", { path: "/run/cml/init.json" })) as {
    daemons: Record<string, { pid: number }>;
  };
  return Object.fromEntries(Object.entries(state.daemons).map(([name, { pid }]) => [name, pid]));
};

async function managers(): Promise<void> {
  await using vm = machine(MEMORY_MB);
  await vm.sees(RUNNING);
  const { cmld, agent } = await daemons(vm);
  const start = async (i: number): Promise<void> => {
    const { status, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", "start", `guest${i}`] });
    if (status !== 0) throw new Error(`start guest${i}: ${stderr}`);
    await vm.sees(new RegExp(`guest${i}: BOOTING → RUNNING`));
  };
  const uses: number[] = [];
  for (let i = 0; i < CONTAINERS - 1; i++) {
    await start(i);
    uses.push((await memory(vm, cmld!)).own);
  }
  const [one, two, three] = [await memory(vm, 1), await memory(vm, cmld!), await memory(vm, agent!)];
  // The agent, which no product has, maps the same executable: what it shares would be ours alone without it.
  report("mem.manager_pss_mb", one.pss + two.pss + (three.pss - three.own), "MB", 1);
  report("mem.init_own_mb", one.own, "MB", 1);
  report("mem.cmld_own_mb", two.own, "MB", 1);
  report("mem.per_container_mb", (uses.at(-1)! - uses[0]!) / (uses.length - 1), "MB", uses.length - 1);
}

async function small(): Promise<void> {
  await using vm = machine(SMALL_MB);
  await vm.sees(RUNNING);
  const text = await vm.ask("read", { path: "/proc/meminfo" });
  report(`mem.available_of_${SMALL_MB}_mb`, Number(/MemAvailable:\s+(\d+)/.exec(text)![1]) / 1024, "MB", 1);
}

// --- where the time goes ---------------------------------------------------------

/** The kernel's messages and the CML's in one list; printed is what stands at the ends of its longer gaps. */
async function timeline(): Promise<void> {
  await using vm = machine(MEMORY_MB);
  await vm.sees(RUNNING);
  const kernel = (await vm.ask("kernel", {})).map(({ seconds, text }) => ({ seconds, text }));
  const cml = [...vm.said.matchAll(/^\[ *(\d+\.\d+)\] (.*)$/gm)].map((m) => ({
    seconds: Number(m[1]),
    text: m[2]!.trimEnd(),
  }));
  const all = [...kernel, ...cml].toSorted((a, b) => a.seconds - b.seconds);
  const lines = all.map((l, i) => {
    const gap = l.seconds - (all[i - 1]?.seconds ?? 0);
    return {
      gap,
      text: `${l.seconds.toFixed(3).padStart(8)} ${`+${gap.toFixed(3)}`.padStart(8)}  ${l.text}`,
    };
  });
  writeFileSync("out/boot.txt", lines.map((l) => `${l.text}\n`).join(""));
  console.log(`where the time goes: lines that ${GAP_S} s or more end at; all of them: out/boot.txt`);
  for (const l of lines) if (l.gap >= GAP_S) console.log(l.text.slice(0, 120));
}

const PARTS: Record<string, () => Promise<void>> = {
  timeline,
  memory: async () => {
    await managers();
    await small();
  },
};

const asked = process.argv.slice(2);
try {
  const data = join(work, "data");
  const guests = Array.from({ length: CONTAINERS - 1 }, (_, i) => ({
    name: `guest${i}`,
    guest_os: "busybox",
  }));
  seed(join(data, "cml"), { guests: ["core0-1", "busybox-1"], containers: [CORE0, ...guests] });
  disk(master, DISK_MB, data);
  for (const [name, part] of Object.entries(PARTS))
    if (asked.length === 0 || asked.includes(name)) await part();
  keep();
} finally {
  rmSync(work, { recursive: true, force: true });
}
