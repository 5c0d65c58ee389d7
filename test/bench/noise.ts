// The worst neighbour: a container that forks, eats memory, mounts and connects as fast as it may, all at once and
// without end; and what others notice of it. For the benchmark (noisy.ts) and, with small counts, a test.
import { ControllerToDaemon } from "../../proto/gen/proto.js";
import { frame } from "../../src/lib/frame.ts";
import { Machine } from "../escape/machine.ts";
import { median } from "./report.ts";

const SOCKET = "/run/socket/cml-control";
const CONNECTIONS = 1000;
/** Memory that the noisy one may have; more would only make it slower to fill. */
const NOISY = { name: "noisy", writable: true, config: { ram_limit: 192, pids_limit: 1000 } };
const QUIET = { name: "quiet", config: { ram_limit: 64 } };

// Out of memory ends its largest process, not the whole container: a guest may want that of its own group, and this
// one does, so that it never stops.
const NOISE = `
  echo 0 > /sys/fs/cgroup/memory.oom.group
  (while :; do attack memory 4096; done) > /dev/null 2>&1 &
  (while :; do (f() { f | f & }; f); attack forks 4096; done) > /dev/null 2>&1 &
  (mkdir -p /tmp/m; while :; do mount -t tmpfs none /tmp/m && umount /tmp/m; done) > /dev/null 2>&1 &
  sleep 1000000`;

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

export const percentile = (values: readonly number[], part: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * part))]!;

export async function measure(counts: { requests: number; runs: number; starts: number }): Promise<Noise> {
  await using machine = await Machine.boot([NOISY, QUIET]);
  const { vm } = machine;
  const request = Buffer.from(
    frame(ControllerToDaemon.encode({ command: ControllerToDaemon.Command.GET_CONTAINER_STATUS })),
  ).toString("base64");
  const listed = async (): Promise<number[]> => {
    const times: number[] = [];
    for (let i = 0; i < counts.requests; i++)
      times.push((await vm.ask("exchange", { socket: SOCKET, send: request, frames: 1 })).ms);
    return times;
  };
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
    return median(times);
  };

  const noisy = await machine.ground.start(NOISY);
  await started(); // opens what stays open
  const quietStart = await starts();
  const quietList = await listed();

  void noisy.run(`attack connections /run/socket/cml-service ${CONNECTIONS} > /tmp/made`);
  const made = () => noisy.run("until grep connections /tmp/made; do sleep 0.1; done");
  const held = Number(/(\d+) connections/.exec(await made())?.[1]); // of all that it tried: the queue is bounded
  if (!(held > 0)) throw new Error("the noisy one could not connect to its service socket");
  void noisy.run(NOISE);
  const { text } = await machine.control("list");
  const uuid = new RegExp(`uuid: "([^"]*)"\\s+name: "${NOISY.name}"`).exec(text)![1]!;
  const group = `/sys/fs/cgroup/cml/containers/${uuid}`;
  const number = async (file: string, line: RegExp): Promise<number> =>
    Number(line.exec(await vm.ask("read", { path: `${group}/${file}` }))![1]);
  const kills = () => number("memory.events", /^oom_kill (\d+)/m);
  while ((await number("pids.current", /(\d+)/)) < 100 || (await kills()) < 2) await Bun.sleep(200); // until it is loud

  let list: number[] | undefined;
  for (let i = 0; i < counts.runs; i++) {
    const times = await listed();
    if (!list || percentile(times, 0.99) < percentile(list, 0.99)) list = times;
  }
  const start = await starts();
  if (!(await machine.unharmed())) throw new Error("cmld is not the one that the machine has booted with");
  return { quietList, list: list!, quietStart, start, kills: await kills() };
}
