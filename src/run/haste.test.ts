import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { execve, exit, signal, wait } from "../sys/calls.ts";
import { ENOENT, ESRCH, isErrno } from "../sys/error.ts";
import { pipe } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { haste } from "./haste.ts";
import { beside, collected, launch } from "./launch.ts";

/** proc_pid_stat(5): field 19, counted behind the name. */
const nice = (process: string): number =>
  Number(readFileSync(`/proc/${process}/stat`, "latin1").split(") ")[1]!.split(" ")[16]);

/** What niceness our threads have. */
function ours(): number[] {
  const all = readdirSync("/proc/self/task").flatMap((thread) => {
    try {
      return [nice(`self/task/${thread}`)];
    } catch (e) {
      if (isErrno(e, ENOENT) || isErrno(e, ESRCH)) return []; // the runtime's come and go
      throw e;
    }
  });
  return [...new Set(all)];
}

test("in haste we and the children beside us go first, programs do not; afterwards nobody does", async () => {
  const before = nice("self");
  const { read, write } = pipe();
  {
    using _outer = haste();
    const inner = haste();
    expect(ours()).toEqual([-10]);
    const quick = beside([wait(read.n), exit(0)]);
    expect(nice(String(quick.pid))).toBe(-10);
    const program = launch([execve("/bin/cat", ["cat", "/dev/null"], [])]);
    await program.started();
    expect(nice(String(program.pid))).toBe(before); // not collected yet
    expect(await collected(program.pidfd)).toEqual({ status: 0 });
    inner[Symbol.dispose]();
    inner[Symbol.dispose]();
    expect(ours()).toEqual([-10]); // somebody else is in haste
    now(signal(write.n));
    expect(await quick.over).toEqual({ status: 0 });
    for (const fd of [read, write, quick.pidfd, program.pidfd]) fd.close();
  }
  expect(ours()).toEqual([before]);
});
