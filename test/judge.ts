// A reader of classic BPF as seccomp(2) runs it, for tests of filters that need no kernel.
import { AND, type Instruction, JA, JEQ, JGE, LD_ABS, RET } from "../src/sys/bpf.ts";

/** What the kernel would do: bpf(4), on struct seccomp_data. Little-endian, as both of our machines. */
export function judge(
  program: readonly Instruction[],
  arch: number,
  nr: number,
  args: readonly number[] = [],
): number {
  const data = new DataView(new ArrayBuffer(64));
  data.setUint32(0, nr, true);
  data.setUint32(4, arch, true);
  args.forEach((a, i) => {
    data.setBigUint64(16 + 8 * i, BigInt.asUintN(64, BigInt(a)), true);
  });
  let a = 0;
  for (let pc = 0; ; pc++) {
    const { code, jt, jf, k } = program[pc]!;
    if (code === LD_ABS) a = data.getUint32(k, true);
    else if (code === AND) a = (a & k) >>> 0;
    else if (code === JA) pc += k;
    else if (code === JEQ) pc += a === k ? jt : jf;
    else if (code === JGE) pc += a >= k ? jt : jf;
    else if (code === RET) return k;
    else throw new Error(`instruction ${code}`);
  }
}
