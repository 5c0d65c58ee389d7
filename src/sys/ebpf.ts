// Extended BPF (bpf(2), Documentation/bpf/standardization/instruction-set.rst of Linux): instructions as values, and the
// few commands that hang a program on a control group. A program that is attached belongs to the group: it stays when
// we end, and goes with the group.
import { address } from "./encode.ts";
import { Fd } from "./fd.ts";
import { mem, Struct } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Data, Op } from "./op.ts";

/** struct bpf_insn. */
export interface Instruction {
  readonly code: number;
  readonly to: number;
  readonly from: number;
  readonly offset: number;
  readonly value: number;
}

// linux/bpf_common.h, linux/bpf.h: class, operation and source of an instruction
const [LDX, JMP, ALU64] = [0x61, 0x05, 0x07];
const FROM_REGISTER = 0x08;
const [AND, RSH, MOV] = [0x50, 0x70, 0xb0];
const [JNE, EXIT] = [0x50, 0x90];

const insn = (code: number, to: number, from: number, offset: number, value: number): Instruction => ({
  code,
  to,
  from,
  offset,
  value,
});
/** to = 32 bits of memory at from + offset */
export const load32 = (to: number, from: number, offset: number): Instruction =>
  insn(LDX, to, from, offset, 0);
export const move = (to: number, from: number): Instruction =>
  insn(ALU64 | MOV | FROM_REGISTER, to, from, 0, 0);
export const set = (to: number, value: number): Instruction => insn(ALU64 | MOV, to, 0, 0, value);
export const and = (to: number, value: number): Instruction => insn(ALU64 | AND, to, 0, 0, value);
export const shiftRight = (to: number, value: number): Instruction => insn(ALU64 | RSH, to, 0, 0, value);
/** Skip `offset` instructions if it has another value. */
export const ifNotEqual = (to: number, value: number, offset: number): Instruction =>
  insn(JMP | JNE, to, 0, offset, value);
export const exit: Instruction = insn(JMP | EXIT, 0, 0, 0, 0);

const encode = (program: readonly Instruction[]): Data => ({
  data: program.reduce(
    (s, i) =>
      s
        .u8(i.code)
        .u8(i.to | (i.from << 4))
        .u16(i.offset & 0xffff)
        .i32(i.value),
    new Struct(8 * program.length),
  ).bytes,
  text: `[${program.length} instructions]`,
});

// linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type
const [PROG_LOAD, PROG_ATTACH, PROG_DETACH, PROG_QUERY] = [5, 8, 9, 16];
const PROG_TYPE_CGROUP_DEVICE = 15;
const CGROUP_DEVICE = 6;
const NAME_MAX = 15;
const LOG_SIZE = 1 << 16;

const bpf = (command: number, attributes: Data): Op => ({
  call: "bpf",
  args: [command, attributes, attributes.data.length],
});

function loading(name: string, program: readonly Instruction[], log?: Uint8Array): Op {
  const code = encode(program);
  const attributes = new Struct(72)
    .u32(PROG_TYPE_CGROUP_DEVICE)
    .u32(program.length)
    .skip(16) // insns, license
    .u32(log ? 1 : 0)
    .u32(log?.length ?? 0)
    .skip(16) // log_buf, kern_version, prog_flags
    .raw(Buffer.from(name.slice(0, NAME_MAX)))
    .skip(Math.max(0, NAME_MAX + 1 - name.length) + 4) // prog_ifindex
    .u32(CGROUP_DEVICE); // expected_attach_type
  return bpf(PROG_LOAD, {
    data: attributes.bytes,
    text: `{${name}, ${code.text}}`,
    pointers: [[8, code], [16, "GPL"], ...(log ? ([[32, log]] as const) : [])],
  });
}

/** Load a program of the device controller; what the verifier did not like is the error. */
export function loadDeviceProgram(name: string, program: readonly Instruction[]): Fd {
  const fd = attempt(loading(name, program));
  if (fd >= 0) return new Fd(fd);
  const log = mem(LOG_SIZE);
  try {
    return new Fd(now(loading(name, program, log)));
  } catch (cause) {
    const said = Buffer.from(log.subarray(0, log.indexOf(0)))
      .toString()
      .trim();
    throw new Error(`loading program ${name}${said && ` (${said.split("\n").slice(-3).join("; ")})`}`, {
      cause,
    });
  }
}

const hanging = (group: Fd, program: Fd): Data => ({
  data: new Struct(20).i32(group.n).i32(program.n).u32(CGROUP_DEVICE).bytes,
  text: `{group=${group.n}, program=${program.n}}`,
});

/** Make `program` the group's only one: what hung there before is replaced in one step, whoever attached it. Groups
 * above keep theirs, and all must agree. */
export const attach = (group: Fd, program: Fd): number => now(bpf(PROG_ATTACH, hanging(group, program)));

export const detach = (group: Fd, program: Fd): number => now(bpf(PROG_DETACH, hanging(group, program)));

/** Ids of the device programs that hang on a group itself. */
export function attached(group: Fd): number[] {
  const MANY = 64;
  const ids = mem(4 * MANY);
  // Not as a value: the kernel writes to it.
  const query = new Struct(32).i32(group.n).u32(CGROUP_DEVICE).skip(8).u64(address(ids)).u32(MANY).bytes;
  now({ call: "bpf", args: [PROG_QUERY, query, query.length] });
  const count = new DataView(query.buffer).getUint32(24, true);
  const view = new DataView(ids.buffer);
  return Array.from({ length: count }, (_, i) => view.getUint32(4 * i, true));
}
