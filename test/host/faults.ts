// Lists of modules that go wrong at one point: the product has no switch for it, a test composes its container of
// these instead.
import type { Module } from "../../src/cmld/module.ts";
import type { Op } from "../../src/sys/op.ts";

export const HOOKS = ["prepare", "attach", "ready", "started"] as const;

export interface Point {
  readonly module: string;
  readonly hook: string;
  readonly after: boolean;
}

/** Where a hook can fail: before and after it has done its work; the lists of calls, while they are composed. */
export const points = (list: readonly Module[]): Point[] =>
  list.flatMap((m) => [
    ...HOOKS.filter((h) => m[h]).flatMap((hook) =>
      [false, true].map((after) => ({ module: m.name, hook, after })),
    ),
    ...(["namespaces", "child", "last", "env"] as const)
      .filter((h) => m[h])
      .map((hook) => ({ module: m.name, hook, after: false })),
  ]);

/** The list, one hook of which calls `fail`. */
export const hooksFail = (list: readonly Module[], at: Point, fail: () => never): Module[] =>
  list.map((m) => {
    if (m.name !== at.module) return m;
    const original = m[at.hook as "prepare"]!.bind(m) as (...args: unknown[]) => unknown;
    if (!at.after) return { ...m, [at.hook]: fail };
    const hook = async (...args: unknown[]) => {
      await original(...args);
      fail();
    };
    return { ...m, [at.hook]: hook };
  });

/** The list, whose calls in the child pass through `change`: all child() in order, then all last(). */
function through(list: readonly Module[], change: (op: Op, index: number) => Op[]): Module[] {
  let index = 0;
  const wrap = (ops: Op[]): Op[] => ops.flatMap((op) => change(op, index++));
  return list.map((m, i) => ({
    ...m,
    child(s) {
      if (i === 0) index = 0;
      return wrap(m.child?.(s) ?? []);
    },
    last: (s) => wrap(m.last?.(s) ?? []),
  }));
}

/** How many calls the modules make; ask after a program was composed. */
export function counted(list: readonly Module[]): { list: Module[]; calls: () => Op[] } {
  let calls: Op[] = [];
  return {
    list: through(list, (op, index) => {
      if (index === 0) calls = [];
      calls.push(op);
      return [op];
    }),
    calls: () => calls,
  };
}

export const opsReplaced = (list: readonly Module[], at: number, by: (op: Op) => Op[]): Module[] =>
  through(list, (op, index) => (index === at ? by(op) : [op]));
