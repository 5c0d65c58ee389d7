import { expect, test } from "bun:test";
import { judge } from "../../test/judge.ts";
import { compile, errnoVerdict, RET_ALLOW, RET_KILL_PROCESS } from "./bpf.ts";

const ARCH = 7;
const EPERM = errnoVerdict(1);
const ENOSYS = errnoVerdict(38);

test("every number finds its verdict, whatever the table looks like", () => {
  let seed = 1; // a fixed linear congruence: the same tables every time
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % n;
  };
  const choices = [RET_ALLOW, EPERM, { when: { arg: 1, in: [3, 5, 9] }, yes: RET_ALLOW, no: EPERM }];
  for (let round = 0; round < 50; round++) {
    const table = new Map(
      Array.from({ length: 1 + random(400) }, () => [random(600), choices[random(3)]!] as const),
    );
    const program = compile(ARCH, table, ENOSYS);
    for (let n = 0; n < 620; n++) {
      const verdict = table.get(n) ?? ENOSYS;
      for (const arg of [0, 3, 4, 5, 9]) {
        const want =
          typeof verdict === "number" ? verdict : [3, 5, 9].includes(arg) ? verdict.yes : verdict.no;
        expect(judge(program, ARCH, n, [0, arg])).toBe(want);
      }
    }
    expect(judge(program, ARCH + 1, 0)).toBe(RET_KILL_PROCESS);
    expect(judge(program, ARCH, 0xffffffff)).toBe(ENOSYS);
  }
});
