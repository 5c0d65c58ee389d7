import { expect, test } from "bun:test";
import { bootOffset, within } from "./sysinfo.ts";

const [UPTIME, TOTAL, FREE, SHARED, BUFFERS, SWAP, SWAP_FREE, PROCESSES, UNIT] = [
  0, 32, 40, 48, 56, 64, 72, 80, 104,
];

function machine(): DataView {
  const view = new DataView(new ArrayBuffer(112));
  view.setBigInt64(UPTIME, 5000n, true);
  for (const [at, value] of [
    [TOTAL, 8000],
    [FREE, 3000],
    [SHARED, 70],
    [BUFFERS, 60],
    [SWAP, 500],
    [SWAP_FREE, 400],
  ] as const)
    view.setBigUint64(at, BigInt(value), true);
  view.setUint16(PROCESSES, 900, true);
  view.setUint32(UNIT, 4096, true);
  return view;
}

const bytes = (view: DataView): Uint8Array => new Uint8Array(view.buffer);

test("a container's limits in the machine's answer, in its unit", () => {
  const view = machine();
  const files: Record<string, string> = {
    "memory.max": `${1000 * 4096}\n`,
    "memory.current": `${400 * 4096}\n`,
    "memory.stat": "anon 5\nshmem 8192\n",
    "memory.swap.max": "0\n",
    "pids.current": "7\n",
  };
  within(bytes(view), (file) => files[file], -4900);
  const seen = [TOTAL, FREE, SHARED, BUFFERS, SWAP, SWAP_FREE].map((at) =>
    Number(view.getBigUint64(at, true)),
  );
  expect(seen).toEqual([1000, 600, 2, 0, 0, 0]);
  expect([view.getBigInt64(UPTIME, true), view.getUint16(PROCESSES, true)]).toEqual([100n, 7]);
});

test("no more than the machine has, nothing below zero, no limit no change", () => {
  const view = machine();
  within(bytes(view), (file) => ({ "memory.max": "99999999999", "memory.current": "99999999999" })[file], 0);
  expect([view.getBigUint64(TOTAL, true), view.getBigUint64(FREE, true)]).toEqual([8000n, 0n]);
  const same = machine();
  within(bytes(same), (file) => (file.endsWith(".max") ? "max\n" : undefined), 0);
  expect(bytes(same)).toEqual(bytes(machine()));
});

test("the time namespace's offset", () => {
  expect(bootOffset("monotonic        -10         0\nboottime         -12         0\n")).toBe(-12);
  expect(bootOffset("")).toBe(0);
});
