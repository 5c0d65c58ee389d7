// Classic BPF for seccomp(2): a decision per system call number, compiled to a program. The numbers are cut into
// ranges that share a verdict and searched by halves, so any call costs about log2(ranges) comparisons, and those
// whose verdict is plain are remembered by the kernel (Linux 5.11) and cost nothing afterwards.
import { mem } from "./mem.ts";
import type { Data } from "./op.ts";

/** struct sock_filter. */
export interface Instruction {
  readonly code: number;
  readonly jt: number;
  readonly jf: number;
  readonly k: number;
}

// linux/filter.h, linux/bpf_common.h
export const LD_ABS = 0x20; // BPF_LD | BPF_W | BPF_ABS
export const JA = 0x05;
export const JEQ = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
export const JGE = 0x35;
export const AND = 0x54; // BPF_ALU | BPF_AND | BPF_K
export const RET = 0x06;

// linux/seccomp.h
export const RET_KILL_PROCESS = 0x80000000;
export const RET_ALLOW = 0x7fff0000;
/** The call waits until whoever has the filter's listener answers it. */
export const RET_USER_NOTIF = 0x7fc00000;
const RET_ERRNO = 0x00050000;
export const errnoVerdict = (errno: number): number => RET_ERRNO | errno;

export type Arch = "x64" | "arm64";
/** linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64. */
export const AUDIT_ARCH: Readonly<Record<Arch, number>> = { x64: 0xc000003e, arm64: 0xc00000b7 };

// struct seccomp_data
const NR_AT = 0;
const ARCH_AT = 4;
const ARG_AT = (n: number): number => 16 + 8 * n;

/** An argument of which the kernel uses 32 bits, or some of their bits, is one of some values. */
export interface Test {
  readonly arg: number;
  readonly mask?: number;
  readonly in: readonly number[];
}

/** A verdict, or one that depends on an argument. */
export type Verdict = number | { readonly when: Test; readonly yes: Verdict; readonly no: Verdict };

const op = (code: number, k: number, jt = 0, jf = 0): Instruction => ({ code, jt, jf, k: k >>> 0 });
const ret = (verdict: number): Instruction => op(RET, verdict);

function leaf(verdict: Verdict): Instruction[] {
  if (typeof verdict === "number") return [ret(verdict)];
  const { when, yes, no } = verdict;
  const otherwise = leaf(no);
  const last = when.in.length - 1;
  return [
    op(LD_ABS, ARG_AT(when.arg)),
    ...(when.mask === undefined ? [] : [op(AND, when.mask)]),
    ...when.in.map((value, i) => op(JEQ, value, last - i + otherwise.length, 0)),
    ...otherwise,
    ...leaf(yes),
  ];
}

interface Range {
  readonly from: number;
  readonly verdict: Verdict;
}

function search(ranges: readonly Range[]): Instruction[] {
  if (ranges.length === 1) return leaf(ranges[0]!.verdict);
  const half = ranges.length >> 1;
  const low = search(ranges.slice(0, half));
  const high = search(ranges.slice(half));
  const FAR = 255; // a conditional jump's reach
  const from = ranges[half]!.from;
  return low.length <= FAR
    ? [op(JGE, from, low.length, 0), ...low, ...high]
    : [op(JGE, from, 0, 1), op(JA, low.length), ...low, ...high];
}

/** A filter: `verdicts` by number, `otherwise` for every number that is not in it; a process whose calls have another
 * architecture's numbers is killed. */
export function compile(
  arch: number,
  verdicts: ReadonlyMap<number, Verdict>,
  otherwise: number,
): Instruction[] {
  const ranges: Range[] = [];
  const add = (from: number, verdict: Verdict): void => {
    if (ranges.at(-1)?.verdict !== verdict) ranges.push({ from, verdict });
  };
  let next = 0;
  for (const [n, verdict] of [...verdicts].sort(([a], [b]) => a - b)) {
    if (n > next) add(next, otherwise);
    add(n, verdict);
    next = n + 1;
  }
  add(next, otherwise);
  return [
    op(LD_ABS, ARCH_AT),
    op(JEQ, arch, 1, 0),
    ret(RET_KILL_PROCESS),
    op(LD_ABS, NR_AT),
    ...search(ranges),
  ];
}

/** struct sock_fprog and the instructions it points to. */
export function fprog(program: readonly Instruction[]): Data {
  const code = mem(8 * program.length);
  const view = new DataView(code.buffer);
  program.forEach(({ code: c, jt, jf, k }, i) => {
    view.setUint16(8 * i, c, true);
    view.setUint8(8 * i + 2, jt);
    view.setUint8(8 * i + 3, jf);
    view.setUint32(8 * i + 4, k, true);
  });
  const head = mem(16);
  new DataView(head.buffer).setUint16(0, program.length, true);
  const text = `[${program.length} instructions]`;
  return { data: head, text, pointers: [[8, { data: code, text }]] };
}
