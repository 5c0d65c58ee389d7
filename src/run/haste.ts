// Haste: while somebody waits for something short (a start), we go before everybody else who wants a processor, and so do the
// children that do a few calls for it (beside(), elsewhere()). Linux gives a new process its first turn after everybody
// else's, and a start has a dozen such children: beside a container that keeps the processor busy each waits some 5 ms.
//
// Only then, and not for long: what a container makes cmld do, again and again, must not take the others' processors
// away. What is executed (launch()) has the ordinary niceness.
import { readdirSync } from "node:fs";
import { attempt } from "../sys/now.ts";
import type { Op } from "../sys/op.ts";

const PRIO_PROCESS = 0; // linux/resource.h: of one thread
/** Nine parts of ten of a processor that others want: sched_prio_to_weight of Linux. */
const HASTY = -10;
/** What takes longer waits for something else than a processor. */
const HASTE_MS = 2000;

const setpriority = (thread: number, nice: number): Op => ({
  call: "setpriority",
  args: [PRIO_PROCESS, thread, nice],
});

let hurried = 0;
/** The niceness that we have when we are not in haste. */
let ordinary = 0;

/** Of every thread: main waits for the one that watches descriptors and for those of the runtime, and a thread that was made
 * in haste would stay so. Where it is not allowed (hosted mode without CAP_SYS_NICE) everything goes on as it is. */
function be(nice: number): void {
  for (const thread of readdirSync("/proc/self/task")) attempt(setpriority(Number(thread), nice));
}

/** In haste until it is disposed of, or until HASTE_MS are over. */
export function haste(): Disposable {
  if (hurried++ === 0) {
    ordinary = 20 - attempt({ call: "getpriority", args: [PRIO_PROCESS, 0] }); // the system call counts down from 20
    be(Math.min(HASTY, ordinary));
  }
  let over = false;
  const end = (): void => {
    if (over) return;
    over = true;
    if (--hurried === 0) be(ordinary);
  };
  const timer = setTimeout(end, HASTE_MS);
  return {
    [Symbol.dispose]() {
      clearTimeout(timer);
      end();
    },
  };
}

/** What a child does first that stays: it has inherited our haste. */
export const unhurried = (): Op[] => (hurried > 0 ? [setpriority(0, ordinary)] : []);
