// A process that starts a container as cmld does and can be killed at any point of it: `manager.ts JSON`. Says "up"
// when the container has started.
import type { Module } from "../../src/cmld/module.ts";
import { close, read, SOCK_STREAM, signal } from "../../src/sys/calls.ts";
import { chain } from "../../src/sys/error.ts";
import { pair } from "../../src/sys/fd.ts";
import { mem } from "../../src/sys/mem.ts";
import { readable } from "../../src/sys/poll.ts";
import { hooksFail, opsReplaced } from "./faults.ts";
import { product, World } from "./world.ts";

export interface Task {
  readonly directory: string;
  readonly uuid: string;
  readonly mounts: ConstructorParameters<typeof Array>[0];
  readonly init: readonly string[];
  readonly config?: Record<string, unknown>;
  /** Die when the child is at this call. */
  readonly op?: number;
  /** Die at this hook, before or after it has done its work. */
  readonly hook?: { readonly module: string; readonly hook: string; readonly after: boolean };
}

const die = (): never => {
  process.kill(process.pid, "SIGKILL");
  throw new Error("still here");
};

if (import.meta.main) {
  const task = JSON.parse(process.argv[2]!) as Task;
  const world = World.open(task.directory);
  let list: readonly Module[] = product();
  if (task.hook) list = hooksFail(list, task.hook, die);
  if (task.op !== undefined) {
    const [ours, theirs] = pair(SOCK_STREAM);
    void readable(ours).then(die);
    // The child says that it is there and goes on once we are dead, until it finds the gate closed.
    list = opsReplaced(list, task.op, (op) => [
      close(ours.n),
      signal(theirs.n),
      { ...read(theirs.n, mem(1)) },
      op,
    ]);
  }
  const c = world.container({
    uuid: task.uuid,
    mounts: task.mounts as never,
    init: task.init,
    ...(task.config && { config: task.config }),
    modules: list,
  });
  try {
    await c.start({ setup: false });
    console.log("up");
  } catch (e) {
    console.log(chain(e));
    process.exit(1);
  }
  await c.whenStopped();
  process.exit(0);
}
