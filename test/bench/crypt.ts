// `make bench`: sealed volumes, in a machine: the first start beside writing zeros over the whole volume as the original
// does, a later start beside the same container with its volume in clear, and the speed of the volume beside the same stack
// set up by dmsetup(8).
//
//   bun test/bench/crypt.ts [first] [start] [throughput]
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { ControllerToDaemon, DaemonToController } from "../../proto/gen/proto.js";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { Vm } from "../machine/qemu.ts";
import { guest, inside } from "../machine/sealed.ts";
import { keep, median, report } from "./report.ts";

const FIRST_MB = 256;
const SPEED_MB = 32;
const FIRSTS = 3;
const ROUNDS = 10;

const work = mkdtempSync(join(tmpdir(), "bench-crypt-"));
const [image, plain] = [join(work, "disk.img"), join(work, "plain.img")];
const UUIDS = {
  sealed: "11111111-1111-4111-8111-111111111111",
  open: "33333333-3333-4333-8333-333333333333",
};

async function first(vm: Vm): Promise<void> {
  const ratios: number[] = [];
  for (let i = 0; i < FIRSTS; i++) {
    const { ours, theirs } = (await inside(vm).volumes("first", "/data/bench", FIRST_MB)) as Record<
      "ours" | "theirs",
      number
    >;
    console.log(`first use of ${FIRST_MB} MiB: ${ours.toFixed(0)} ms, with zeros ${theirs.toFixed(0)} ms`);
    ratios.push(theirs / ours);
  }
  report("crypt.first_start_vs_zeroing", median(ratios), "times", FIRSTS);
}

/** ms from the request to CONTAINER_START_OK. */
async function started(vm: Vm, name: keyof typeof UUIDS): Promise<number> {
  const command = ControllerToDaemon.Command.CONTAINER_START;
  const send = frame(ControllerToDaemon.encode({ command, container_uuids: [UUIDS[name]] }));
  const { received, ms } = await vm.ask("exchange", {
    socket: "/run/socket/cml-control",
    send: Buffer.from(send).toString("base64"),
    frames: 1,
  });
  const [bytes] = [...new Unframer().push(Buffer.from(received, "base64"))];
  const { response, error_text } = DaemonToController.decode(bytes!);
  if (response !== DaemonToController.Response.CONTAINER_START_OK) throw new Error(`${name}: ${error_text}`);
  await vm.sees(`${name}: BOOTING → RUNNING`);
  const stopped = await inside(vm).control("stop", name);
  if (!stopped.startsWith("0")) throw new Error(stopped);
  await vm.sees(`${name}: SHUTDOWN → STOPPED`);
  return ms;
}

async function start(vm: Vm): Promise<void> {
  for (const name of ["sealed", "open"] as const) await started(vm, name); // the first makes its volume
  const [sealed, open]: [number[], number[]] = [[], []];
  for (let i = 0; i < ROUNDS; i++) {
    sealed.push(await started(vm, "sealed"));
    open.push(await started(vm, "open"));
  }
  console.log(`start: ${median(sealed).toFixed(0)} ms sealed, ${median(open).toFixed(0)} ms in clear`);
  report("crypt.start_vs_plain", median(sealed) / median(open), "ratio", ROUNDS);
}

interface Speed {
  readonly write: number;
  readonly read: number;
}

async function throughput(vm: Vm): Promise<void> {
  const { ours, theirs } = (await inside(vm).volumes(
    "throughput",
    "/data/speed",
    SPEED_MB,
    ROUNDS,
  )) as Record<"ours" | "theirs", Speed[]>;
  const of = (all: readonly Speed[], what: keyof Speed) => median(all.map((s) => s[what]));
  const ratio = (what: keyof Speed) => of(ours, what) / of(theirs, what);
  console.log(`MiB/s: write ${of(ours, "write").toFixed(1)}, read ${of(ours, "read").toFixed(1)}`);
  report("crypt.write_vs_dmsetup", ratio("write"), "ratio", ROUNDS);
  report("crypt.read_vs_dmsetup", ratio("read"), "ratio", ROUNDS);
  report("crypt.throughput_vs_dmsetup", Math.min(ratio("write"), ratio("read")), "ratio", ROUNDS);
}

const PARTS: Record<string, (vm: Vm) => Promise<void>> = { first, start, throughput };
const asked = process.argv.slice(2);
try {
  const data = join(work, "data");
  const base = join(data, "cml");
  const containers = [
    { uuid: UUIDS.sealed, name: "sealed", guest_os: "vault" },
    { uuid: UUIDS.open, name: "open", guest_os: "clear" },
  ];
  seed(base, { guests: ["core0-1", "busybox-1"], containers: [CORE0, ...containers] });
  guest(base, "vault", "data", "EMPTY");
  guest(base, "clear", "/dev/vdb", "DEVICE_RW");
  disk(image, 2048, data);
  const made = Bun.spawnSync(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", plain, "64M"]);
  if (!made.success) throw new Error(made.stderr.toString());
  await using vm = Vm.boot({ disks: [image, plain] });
  await vm.sees("core0: BOOTING → RUNNING");
  if ((await vm.disk("disk1")) !== "vdb")
    throw new Error("the kernel has named the disks the other way round");
  for (const [name, part] of Object.entries(PARTS))
    if (asked.length === 0 || asked.includes(name)) await part(vm);
  keep();
} finally {
  rmSync(work, { recursive: true, force: true });
}
