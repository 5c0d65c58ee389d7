import { expect, test } from "bun:test";
import { judge } from "../../test/judge.ts";
import { compile, errnoVerdict, RET_ALLOW, RET_KILL_PROCESS, type Verdict } from "./bpf.ts";

const ARCH = 7;
const EPERM = errnoVerdict(1);
const ENOSYS = errnoVerdict(38);

const ARGUMENTS = [0, 3, 4, 5, 9, 0x15, 0x25, 0x35].flatMap((arg) => [
  [0, arg],
  [1, arg],
]);

test("every number finds its verdict, whatever the table looks like", () => {
  let seed = 1; // a fixed linear congruence: the same tables every time
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % n;
  };
  const low = { when: { arg: 1, mask: 0xf, in: [5] }, yes: EPERM, no: RET_ALLOW };
  const choices: readonly Verdict[] = [
    RET_ALLOW,
    EPERM,
    { when: { arg: 1, in: [3, 5, 9] }, yes: RET_ALLOW, no: EPERM },
    {
      when: { arg: 0, in: [1] },
      yes: { when: { arg: 1, mask: 0xf0, in: [0x10, 0x20] }, yes: ENOSYS, no: low },
      no: low,
    },
  ];
  const decide = (v: Verdict, args: readonly number[]): number =>
    typeof v === "number"
      ? v
      : decide(v.when.in.includes(args[v.when.arg]! & (v.when.mask ?? ~0)) ? v.yes : v.no, args);
  for (let round = 0; round < 50; round++) {
    const table = new Map(
      Array.from({ length: 1 + random(400) }, () => [random(600), choices[random(choices.length)]!] as const),
    );
    const program = compile(ARCH, table, ENOSYS);
    for (let n = 0; n < 620; n++) {
      const verdict = table.get(n) ?? ENOSYS;
      for (const args of ARGUMENTS)
        if (judge(program, ARCH, n, args) !== decide(verdict, args))
          throw new Error(`round ${round}, call ${n}(${args})`); // an expect() for each takes a minute
    }
    expect(judge(program, ARCH + 1, 0)).toBe(RET_KILL_PROCESS);
    expect(judge(program, ARCH, 0xffffffff)).toBe(ENOSYS);
  }
});
