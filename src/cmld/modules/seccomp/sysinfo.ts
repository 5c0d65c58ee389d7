// sysinfo(2) of a container that has a limit on memory: how much there is for it, how much of that is free, how many
// processes it has, how long it runs. The kernel's own answer is of the whole machine, by which free(1), runtimes and
// databases choose how much to take.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pwrite64 } from "../../../sys/calls.ts";
import { mem } from "../../../sys/mem.ts";
import type { Answer } from "../../../sys/notify.ts";
import { now } from "../../../sys/now.ts";
import type { Supervised } from "./supervised.ts";

const EFAULT = 14;
const SIZE = 112; // struct sysinfo
const [UPTIME, TOTAL, FREE, SHARED, BUFFERS, SWAP, SWAP_FREE, PROCESSES, UNIT] = [
  0, 32, 40, 48, 56, 64, 72, 80, 104,
];
const PROCESSES_MAX = 65535;

/** A file of the control group, or undefined where the kernel or the machine has none. */
export type Read = (file: string) => string | undefined;

/** Change the machine's answer into the container's. `offset`: of its time namespace, seconds. */
export function within(machine: Uint8Array, read: Read, offset: number): void {
  const view = new DataView(machine.buffer, machine.byteOffset);
  const unit = BigInt(view.getUint32(UNIT, true));
  const get = (at: number): bigint => view.getBigUint64(at, true) * unit;
  const put = (at: number, bytes: bigint): void =>
    view.setBigUint64(at, (bytes > 0n ? bytes : 0n) / unit, true);
  const number = (file: string): bigint | undefined => {
    const text = read(file)?.trim();
    return text === undefined || !/^\d+$/.test(text) ? undefined : BigInt(text); // "max": no limit
  };
  const least = (a: bigint, b: bigint): bigint => (a < b ? a : b);

  view.setBigInt64(UPTIME, view.getBigInt64(UPTIME, true) + BigInt(offset), true);
  const limit = number("memory.max");
  if (limit !== undefined) {
    const total = least(limit, get(TOTAL));
    put(FREE, least(total - (number("memory.current") ?? 0n), get(FREE)));
    put(TOTAL, total);
    put(SHARED, BigInt(/^shmem (\d+)$/m.exec(read("memory.stat") ?? "")?.[1] ?? 0));
    put(BUFFERS, 0n);
  }
  const swap = number("memory.swap.max");
  if (swap !== undefined) {
    const total = least(swap, get(SWAP));
    put(SWAP_FREE, least(total - (number("memory.swap.current") ?? 0n), get(SWAP_FREE)));
    put(SWAP, total);
  }
  const processes = number("pids.current");
  if (processes !== undefined)
    view.setUint16(PROCESSES, Number(least(processes, BigInt(PROCESSES_MAX))), true);
}

/** time_namespaces(7): seconds that its boot time is ahead of the machine's. */
export const bootOffset = (offsets: string): number =>
  Number(/^(?:boottime|7)\s+(-?\d+)\s/m.exec(offsets)?.[1] ?? 0);

const attempted: (path: string) => string | undefined = (path) => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined; // a controller that is not there; a caller that is gone
  }
};

export async function sysinfo(call: Supervised): Promise<Answer> {
  const at = call.args[0]!;
  const bytes = mem(SIZE);
  now({ call: "sysinfo", args: [bytes] });
  const offset = bootOffset(attempted(`/proc/${call.caller.pid}/timens_offsets`) ?? "");
  within(bytes, (file) => attempted(join(call.container.group, file)), offset);
  const { memory } = call;
  if (!memory) return { error: EFAULT };
  const made = await call.do([memory.n], [pwrite64(memory.n, bytes, at)]);
  return "errno" in made ? { error: EFAULT } : { value: 0 };
}
