import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { documents } from "../../../test/documents.ts";
import { judge } from "../../../test/judge.ts";
import { AUDIT_ARCH, errnoVerdict, RET_ALLOW, RET_KILL_PROCESS, RET_USER_NOTIF } from "../../sys/bpf.ts";
import { NR } from "../../sys/numbers.ts";
import type { Call } from "../../sys/op.ts";
import type { Supervision } from "./seccomp/supervisor.ts";
import { filter } from "./seccomp.ts";

const EPERM = errnoVerdict(1);
const ENOSYS = errnoVerdict(38);
const EAFNOSUPPORT = errnoVerdict(97);
const ARCHES = ["x64", "arm64"] as const;
const I386 = 0x40000003;
const ARM = 0x40000028;

const number = (arch: (typeof ARCHES)[number], call: Call): number | null =>
  NR[call][arch === "arm64" ? 1 : 0];

const TABLE: readonly (readonly [call: Call, verdict: number, ...args: number[]])[] = [
  ["read", RET_ALLOW],
  ["openat", RET_ALLOW],
  ["open", RET_ALLOW],
  ["clone3", RET_ALLOW],
  ["unshare", RET_ALLOW, 0x10000000],
  ["mount", RET_USER_NOTIF, 0, 0, 0, 0],
  ["mount", RET_USER_NOTIF, 0, 0, 0, 1 | 2 | 8 | 1024],
  ["mount", RET_ALLOW, 0, 0, 0, 4],
  ["mount", RET_ALLOW, 0, 0, 0, 32],
  ["mount", RET_ALLOW, 0, 0, 0, 4096 | 16384],
  ["mount", RET_ALLOW, 0, 0, 0, 8192],
  ["mount", RET_ALLOW, 0, 0, 0, (1 << 18) | 16384],
  ["mount", RET_ALLOW, 0, 0, 0, 1 << 20],
  ["mount", RET_USER_NOTIF, 0, 0, 0, 0xc0ed0000],
  ["mount", RET_ALLOW, 0, 0, 0, 0xc0ed0004],
  ["mknod", RET_ALLOW, 0, 0o644, 0x103],
  ["mknod", RET_ALLOW, 0, 0o010644, 0x103],
  ["mknod", RET_ALLOW, 0, 0o140644, 0x103],
  ["mknod", RET_ALLOW, 0, 0o100245, 0x103],
  ["mknod", RET_ALLOW, 0, 0o020000, 0],
  ["mknod", RET_USER_NOTIF, 0, 0o020644, 0x103],
  ["mknod", RET_USER_NOTIF, 0, 0o060644, 0],
  ["mknodat", RET_ALLOW, 0, 0, 0o140644, 0x103],
  ["mknodat", RET_USER_NOTIF, 0, 0, 0o020000, 0x103],
  ["mknodat", RET_USER_NOTIF, 0, 0, 0o060000, 0x103],
  ["sysinfo", RET_ALLOW],
  ["adjtimex", RET_ALLOW],
  ["clock_adjtime", RET_ALLOW],
  ["pivot_root", RET_ALLOW],
  ["reboot", RET_ALLOW],
  ["seccomp", RET_ALLOW],
  ["execve", RET_ALLOW],
  ["futex_waitv", RET_ALLOW],
  ["keyctl", EPERM, 0],
  ["keyctl", EPERM, 11],
  ["keyctl", RET_ALLOW, 1],
  ["add_key", EPERM],
  ["bpf", EPERM],
  ["kexec_load", EPERM],
  ["kexec_file_load", EPERM],
  ["init_module", EPERM],
  ["finit_module", EPERM],
  ["open_by_handle_at", EPERM],
  ["perf_event_open", EPERM],
  ["clock_settime", EPERM],
  ["settimeofday", EPERM],
  ["syslog", EPERM],
  ["swapon", EPERM],
  ["iopl", EPERM],
  ["userfaultfd", ENOSYS],
  ["io_uring_setup", ENOSYS],
  ["fsopen", ENOSYS],
  ["open_tree", ENOSYS],
  ["move_mount", ENOSYS],
  ["mount_setattr", ENOSYS],
  ["socket", RET_ALLOW, 1, 1, 0],
  ["socket", RET_ALLOW, 2, 1, 0],
  ["socket", RET_ALLOW, 16, 3, 0],
  ["socket", EAFNOSUPPORT, 40, 1, 0],
  ["socket", EAFNOSUPPORT, 38, 5, 0],
  ["socketpair", RET_ALLOW, 1, 1, 0],
  ["personality", RET_ALLOW, 0],
  ["personality", RET_ALLOW, 0xffffffff],
  ["personality", EPERM, 0x40000],
  ["ioctl", RET_ALLOW, 0, 0x5401],
  ["ioctl", EPERM, 0, 0x5412],
  ["ioctl", EPERM, 0, 0x541c],
];

test("the filter's verdicts, by call and argument, on both machines", () => {
  for (const arch of ARCHES) {
    const program = filter(arch);
    for (const [call, verdict, ...args] of TABLE) {
      const n = number(arch, call);
      if (n === null) continue;
      expect([arch, call, args, judge(program, AUDIT_ARCH[arch], n, args)]).toEqual([
        arch,
        call,
        args,
        verdict,
      ]);
    }
  }
});

test("what is left to cmld besides, by what the container may", () => {
  const table: readonly (readonly [keyof Supervision, Call, ...number[]])[] = [
    ["time", "clock_settime"],
    ["time", "settimeofday"],
    ["time", "clock_adjtime"],
    ["time", "adjtimex"],
    ["time", "ioctl", 0, 0x4024700a],
    ["time", "ioctl", 0, 0x4008700e],
    ["time", "ioctl", 0, 0x40187014],
    ["modules", "finit_module"],
    ["memory", "sysinfo"],
  ];
  for (const arch of ARCHES)
    for (const [what, call, ...args] of table)
      for (const key of ["time", "modules", "memory"] as const) {
        const given = { time: false, modules: false, memory: false, [key]: true };
        const n = number(arch, call)!;
        const verdict = judge(filter(arch, given), AUDIT_ARCH[arch], n, args);
        expect([call, key, verdict === RET_USER_NOTIF]).toEqual([call, key, key === what]);
      }
  const time = filter("x64", { time: true, modules: false, memory: false });
  expect(judge(time, AUDIT_ARCH.x64, NR.ioctl[0], [0, 0x5412])).toBe(EPERM);
  expect(judge(time, AUDIT_ARCH.x64, NR.ioctl[0], [0, 0x5401])).toBe(RET_ALLOW);
  expect(judge(time, AUDIT_ARCH.x64, NR.init_module[0])).toBe(EPERM);
});

test("the upper half of an int argument changes nothing", () => {
  const program = filter("x64");
  const high = 2 ** 32;
  expect(judge(program, AUDIT_ARCH.x64, NR.ioctl[0], [0, 0x5412 + high])).toBe(EPERM);
  expect(judge(program, AUDIT_ARCH.x64, NR.socket[0], [40 + high, 1, 0])).toBe(EAFNOSUPPORT);
});

test("another architecture's calls kill, x32's and numbers newer than the list are ENOSYS", () => {
  expect(judge(filter("x64"), I386, 3)).toBe(RET_KILL_PROCESS);
  expect(judge(filter("x64"), AUDIT_ARCH.arm64, 63)).toBe(RET_KILL_PROCESS);
  expect(judge(filter("arm64"), ARM, 3)).toBe(RET_KILL_PROCESS);
  expect(judge(filter("x64"), AUDIT_ARCH.x64, 0x40000000)).toBe(ENOSYS);
  expect(judge(filter("x64"), AUDIT_ARCH.x64, 0xffffffff)).toBe(ENOSYS);
  for (const arch of ARCHES)
    for (let n = 451; n < 600; n++) expect(judge(filter(arch), AUDIT_ARCH[arch], n)).toBe(ENOSYS);
});

test("a search stays short: no call takes more than 20 instructions", () => {
  for (const arch of ARCHES) {
    const program = filter(arch);
    let most = 0;
    for (let n = 0; n < 500; n++) {
      let steps = 0;
      const counted = new Proxy(program, {
        get(target, key) {
          if (typeof key === "string" && /^\d+$/.test(key)) steps++;
          return Reflect.get(target, key);
        },
      });
      judge(counted, AUDIT_ARCH[arch], n, [0, 0]);
      most = Math.max(most, steps);
    }
    expect(most).toBeLessThanOrEqual(20);
  }
});

test("the documents are what the tables say (bun test/documents.ts writes them)", () => {
  for (const [path, print] of Object.entries(documents)) expect(readFileSync(path, "utf8")).toBe(print());
});
