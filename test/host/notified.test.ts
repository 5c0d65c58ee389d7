// Calls that a filter has left to us, answered here one by one, as cmld answers them and as it must not: rows 23 and 24 of
// the attacks. A caller in a user namespace of its own has every capability there, and is given nothing. A caller that
// is killed when its call was received leaves its pid to a process of another container, which has a path at the same
// address; nothing is made there.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Container } from "../../src/cmld/container.ts";
import { program } from "../../src/cmld/exec.ts";
import { type Caller, callerOf, namespaceOf } from "../../src/cmld/modules/seccomp/caller.ts";
import { type Contained, Supervised } from "../../src/cmld/modules/seccomp/supervised.ts";
import { Channel, handlers, Supervisor } from "../../src/cmld/modules/seccomp/supervisor.ts";
import { UnderWay } from "../../src/cmld/modules/seccomp/underway.ts";
import { type Child, collected, launch } from "../../src/run/launch.ts";
import { AT_FDCWD, O_RDWR, O_WRONLY, openat } from "../../src/sys/calls.ts";
import { Fd, pipe } from "../../src/sys/fd.ts";
import { mem } from "../../src/sys/mem.ts";
import {
  decode,
  type Ends,
  isWaiting,
  NOTIFICATION,
  type Notification,
  receive,
} from "../../src/sys/notify.ts";
import { now } from "../../src/sys/now.ts";
import { readable } from "../../src/sys/poll.ts";
import { kill, SIGKILL } from "../../src/sys/process.ts";
import { receiveMessage } from "../../src/sys/scm.ts";
import { busyboxRoot, UID_START, World } from "./world.ts";

const LAST_PID = "/proc/sys/kernel/ns_last_pid";
/** Others on this machine take pids, too. */
const TRIES = 1000;
const PATH = "/dev/made";
const NOTHING = { time: false, modules: false, memory: false };
const ROOT = { uid: 0, gid: 0, groups: [], name: "root", home: "/" };
const folder = mkdtempSync(join(tmpdir(), "notified-"));

let world: World;
let web: Container;
let victim: Container;
beforeAll(async () => {
  world = World.open();
  world.image("attack", (root) => {
    busyboxRoot(root);
    copyFileSync(resolve("out/attack"), join(root, "bin/attack"));
    chmodSync(join(root, "bin/attack"), 0o755);
  });
  const recipe = { init: ["/bin/sleep", "100000"], mounts: [{ mount_point: "/", image_file: "attack" }] };
  [web, victim] = [world.container(recipe), world.container(recipe)];
  for (const c of [web, victim]) await c.start({ setup: false });
});
afterAll(async () => {
  for (const c of [web, victim]) await c?.kill();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

type Command = Child & { readonly said: Fd };

/** A command in a container, as `control run` starts it, whose filter's listener goes where `ends` says. */
async function begin(c: Container, argv: readonly string[], ends?: Ends): Promise<Command> {
  const cgroup = join(c.group, "child");
  const target = {
    name: "",
    ...c.process!,
    cgroup,
    uidStart: UID_START,
    grant: { time: false, modules: false },
  };
  using group = new Fd(now(openat(AT_FDCWD, join(cgroup, "cgroup.procs"), O_WRONLY)));
  using nothing = new Fd(now(openat(AT_FDCWD, "/dev/null", O_RDWR)));
  const said = pipe();
  using output = said.write;
  const stdio = { input: nothing.n, output: output.n };
  const plan = { user: ROOT, argv, env: [], cwd: "/", stdio };
  const child = launch((report) => program(target, plan, group.n, report, ends), 0n, -1, target.pidfd);
  await child.started();
  return { ...child, said: said.read };
}

async function end({ pidfd, said }: Command): Promise<void> {
  kill(pidfd, SIGKILL);
  await collected(pidfd);
  for (const fd of [pidfd, said]) fd.close();
}

/** In the victim, with that pid. */
async function posing(pid: number): Promise<Command> {
  for (let i = 0; i < TRIES; i++) {
    writeFileSync(LAST_PID, String(pid - 1));
    const child = await begin(victim, ["/bin/attack", "pose", PATH]);
    if (child.pid === pid) {
      await readable(child.said); // it has the path in its memory
      return child;
    }
    await end(child);
  }
  throw new Error(`nobody could be given pid ${pid}`);
}

const contained = (): Contained => ({
  name: "web",
  uidStart: UID_START,
  namespace: namespaceOf(web.process!.pid),
  group: web.group,
  modules: [],
  access: () => 7,
  log: () => {},
});

/** A call that was received, and who made it. */
interface Call extends AsyncDisposable {
  readonly child: Command;
  readonly channel: Channel;
  readonly listener: Fd;
  readonly bytes: Uint8Array;
  readonly notification: Notification;
}

async function made(argv = ["/bin/attack", "node", PATH]): Promise<Call> {
  const channel = new Channel();
  const child = await begin(web, argv, channel.ends);
  channel.theirs.close();
  const got = receiveMessage(channel.ours, 1, true);
  if (typeof got === "string") throw new Error("no listener came");
  const [listener] = got.descriptors as [Fd];
  await readable(listener);
  const bytes = mem(NOTIFICATION);
  expect(receive(listener, bytes)).toBe(true);
  return {
    child,
    channel,
    listener,
    bytes,
    notification: decode(bytes)!,
    async [Symbol.asyncDispose]() {
      listener.close();
      channel[Symbol.dispose]();
    },
  };
}

/** Whether the node is there now; it is removed. */
function found(c: Container): boolean {
  const path = `/proc/${c.process!.pid}/root${PATH}`;
  const there = existsSync(path);
  rmSync(path, { force: true });
  return there;
}

async function answer(call: Call, container: Contained, caller: Caller, valid: () => boolean): Promise<void> {
  using underWay = new UnderWay(join(folder, crypto.randomUUID()), 1);
  underWay.received(0, (into) => into.set(call.bytes) === undefined);
  const supervised = new Supervised(container, call.notification, caller, valid, underWay, 0);
  await handlers[call.notification.call]!(supervised);
  supervised[Symbol.dispose]();
  await supervised.idle();
}

const waits = (call: Call): boolean => isWaiting(call.listener, call.notification.id);

/** Root of a user namespace below the container's, which has all of its ids. */
const NESTED = `cd /run; busybox mkfifo mapped
  busybox unshare -U -m sh -c 'read go < mapped; exec attack node ${PATH}' &
  while [ "$(busybox readlink /proc/$!/ns/user)" = "$(busybox readlink /proc/self/ns/user)" ]; do :; done
  for m in uid gid; do echo 0 0 65536 > /proc/$!/\${m}_map; done; echo > mapped; busybox rm mapped; wait`;

/** Answer a call from a nested user namespace, judged in `namespace`. */
async function nested(namespace: (caller: Caller) => string): Promise<boolean> {
  await using call = await made(["/bin/busybox", "sh", "-c", `PATH=/bin; ${NESTED}`]);
  const caller = callerOf(call.notification.pid);
  await answer(call, { ...contained(), namespace: namespace(caller) }, caller, () => waits(call));
  await end(call.child);
  return found(web);
}

test("row 23: a caller with every capability in a user namespace of its own is given nothing", async () => {
  expect(await nested(() => contained().namespace)).toBe(false);
});

test("row 23: … and would have the node if it were judged there", async () => {
  expect(await nested((caller) => caller.namespace)).toBe(true);
});

/** Answer a call whose caller was looked at in time, and is another one from then on. */
async function late(valid: (call: Call) => boolean): Promise<boolean> {
  await using call = await made();
  const caller = callerOf(call.notification.pid);
  await end(call.child);
  const other = await posing(call.notification.pid);
  await answer(call, contained(), caller, () => valid(call));
  await end(other);
  return found(victim);
}

test("row 24: a pid that is another's by now: what was read of the caller does not count", async () => {
  expect(await late(waits)).toBe(false);
});

test("row 24: … and without that look the other container would have the node", async () => {
  expect(await late(() => true)).toBe(true);
});

test("row 24: a call that an earlier cmld has received, whose caller is another by now, is dropped", async () => {
  await using call = await made();
  const file = join(folder, "calls");
  {
    using before = new UnderWay(file, 2);
    before.received(0, (into) => into.set(call.bytes) === undefined);
  }
  await end(call.child);
  const other = await posing(call.notification.pid);
  const keeping = {
    keep: () => {},
    kept: (name: string) => (name === "calls.0" ? call.channel.ours : undefined),
    forget: () => {},
  };
  // As if the other were of the container: its namespace is the one that counts.
  const theirs = { ...contained(), namespace: namespaceOf(victim.process!.pid) };
  using supervisor = new Supervisor(crypto.randomUUID(), NOTHING, theirs, keeping, file);
  expect(supervisor.adopt()).toBe(1);
  using looking = new UnderWay(file, 2);
  while (looking.left().length > 0) await Bun.sleep(5); // nothing tells; the test's time is the limit
  expect(found(victim)).toBe(false);
  await end(other);
});
