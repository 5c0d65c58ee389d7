// A reader of the extended BPF that device programs are made of, for tests that need no kernel.
import type { Instruction } from "../src/sys/ebpf.ts";

/** What the kernel's device controller would be told: 1 allowed, 0 denied. */
export function judgeDevice(
  program: readonly Instruction[],
  asked: { readonly type: number; readonly access: number; readonly major: number; readonly minor: number },
): number {
  const context = new DataView(new ArrayBuffer(12)); // struct bpf_cgroup_dev_ctx
  context.setUint32(0, (asked.access << 16) | asked.type, true);
  context.setUint32(4, asked.major, true);
  context.setUint32(8, asked.minor, true);
  const r = new Uint32Array(11); // no value of ours needs 64 bits
  let written = 1 << 1;
  for (let pc = 0; ; pc++) {
    const { code, to, from, offset, value } = program[pc]!;
    if (value < 0) throw new Error(`instruction ${pc}: ${value} has 64 bits`);
    const seen = (register: number): number => {
      if (!(written & (1 << register)))
        throw new Error(`instruction ${pc} reads r${register} before it is written`);
      return r[register]!;
    };
    if (code === 0x61) r[to] = context.getUint32(offset, true);
    else if (code === 0xbf) r[to] = seen(from);
    else if (code === 0xb7) r[to] = value;
    else if (code === 0x57) r[to] = seen(to) & value;
    else if (code === 0x77) r[to] = seen(to) >>> value;
    else if (code === 0x55) pc += seen(to) !== value ? offset : 0;
    else if (code === 0x95) return seen(0);
    else throw new Error(`instruction ${code}`);
    if ((code & 7) !== 5) written |= 1 << to;
  }
}
