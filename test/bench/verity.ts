// `make bench`: what dm-verity costs a start, in the machine. Compared are starts of the same image: with a root hash, where
// each start makes a verity device and its last user takes it away; and without, hashed in a first start that does not
// count, so that only a mount is left to do. The time is that of the answer to CONTAINER_START.
//
//   bun test/bench/verity.ts [verity] [size]
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { ControllerToDaemon, DaemonToController } from "../../proto/gen/proto.js";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { Chance, SEED } from "../chance.ts";
import { Vm } from "../machine/qemu.ts";
import { beside, sleeper, without } from "../machine/sleeper.ts";
import { keep, median, report } from "./report.ts";

const SOCKET = "/run/socket/cml-control";
const MIB = 2 ** 20;
const [TEN, LARGE] = [10 * MIB, 1024 * MIB];
const [ROUNDS, LARGE_ROUNDS] = [20, 5];
const { CONTAINER_START, CONTAINER_STOP } = ControllerToDaemon.Command;

const work = mkdtempSync(join(tmpdir(), "bench-verity-"));
const guests = join(work, "guests");

async function build(): Promise<string> {
  mkdirSync(guests);
  beside(guests, "core0-1");
  const noise = new Chance(SEED).bytes(9 * MIB);
  const fill = (tree: string) => writeFileSync(join(tree, "noise"), noise);
  await sleeper({ name: "plain", out: guests, fill, change: without("image_verity_sha256") });
  await sleeper({ name: "verity", out: guests, fill });
  await sleeper({ name: "ten", out: guests, size: TEN });
  await sleeper({ name: "large", out: guests, size: LARGE });
  const names = ["plain", "verity", "ten", "large"];
  const data = join(work, "data");
  seed(join(data, "cml"), {
    from: guests,
    guests: ["core0-1", ...names.map((name) => `${name}-1`)],
    containers: [CORE0, ...names.map((name) => ({ name, guest_os: name, loopback_only: true }))],
  });
  const file = join(work, "disk.img");
  disk(file, 512, data);
  return file;
}

async function main(): Promise<void> {
  const file = await build();
  await using vm = Vm.boot({ disks: [file], more: ["-snapshot"] });
  await vm.sees("core0: BOOTING → RUNNING");
  const { stdout } = await vm.ask("run", { argv: ["/usr/sbin/control", "list"] });
  const uuids = new Map(
    [...stdout.matchAll(/uuid: "([^"]*)"\s+name: "([^"]*)"/g)].map((m) => [m[2]!, m[1]!] as const),
  );
  const ask = async (command: ControllerToDaemon.Command, name: string): Promise<number> => {
    const message = ControllerToDaemon.encode({ command, container_uuids: [uuids.get(name)!] });
    const send = Buffer.from(frame(message)).toString("base64");
    const { received, ms } = await vm.ask("exchange", { socket: SOCKET, send, frames: 1 });
    const [bytes] = new Unframer().push(Buffer.from(received, "base64"));
    const said = DaemonToController.decode(bytes!);
    if (said.error_text) throw new Error(`${name}: ${said.error_text}`);
    return ms;
  };
  const started = async (name: string): Promise<number> => {
    const ms = await ask(CONTAINER_START, name);
    await vm.sees(`${name}: BOOTING → RUNNING`);
    await ask(CONTAINER_STOP, name);
    await vm.sees(`${name}: SHUTDOWN → STOPPED`);
    return ms;
  };
  /** Medians of both, alternating, after one start of each that does not count. */
  const compared = async (one: string, other: string, rounds: number): Promise<[number, number]> => {
    const [mine, theirs]: [number[], number[]] = [[], []];
    for (const name of [one, other]) await started(name);
    for (let i = 0; i < rounds; i++) {
      mine.push(await started(one));
      theirs.push(await started(other));
    }
    return [median(mine), median(theirs)];
  };
  const asked = process.argv.slice(2);
  const wanted = (part: string) => asked.length === 0 || asked.includes(part);
  if (wanted("verity")) {
    const [verity, plain] = await compared("verity", "plain", ROUNDS);
    report("start.verity_ms", verity, "ms", ROUNDS);
    report("start.plain_ms", plain, "ms", ROUNDS);
    report("start.verity_vs_plain", verity / plain, "ratio", ROUNDS);
  }
  if (wanted("size")) {
    const [large, ten] = await compared("large", "ten", LARGE_ROUNDS);
    report("start.verity_1g_vs_10m", large / ten, "ratio", LARGE_ROUNDS);
  }
  const opened = [...vm.said.matchAll(/(\w+)-1-root \((\d+) ms\)/g)];
  for (const name of ["verity", "large", "ten"]) {
    const times = opened.filter((m) => m[1] === name).map((m) => Number(m[2]));
    if (times.length > 0) report(`start.open_${name}_ms`, median(times), "ms", times.length);
  }
  keep();
}

try {
  await main();
} finally {
  rmSync(work, { recursive: true, force: true });
}
