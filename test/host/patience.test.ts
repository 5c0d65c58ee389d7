// Patience that takes minutes, in no time: real containers, and the one timer that counts goes off at once.
import { afterAll, expect, spyOn, test } from "bun:test";
import { chmodSync, copyFileSync, readFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { busyboxRoot, until, World } from "./world.ts";

const world = World.open();
afterAll(async () => await world[Symbol.asyncDispose]());

/** The timer of exactly `ms` that `set` sets, so that it can go off at once. Every other one runs as always. */
async function timerOf(ms: number, set: () => Promise<unknown>): Promise<() => void> {
  const found: (() => void)[] = [];
  const real = globalThis.setTimeout;
  const watched = spyOn(globalThis, "setTimeout").mockImplementation(((does: () => void, after?: number) => {
    if (after === ms) found.push(does);
    return real(does, after);
  }) as typeof setTimeout);
  try {
    await set();
  } finally {
    watched.mockRestore();
  }
  expect(found).toBeArrayOfSize(1);
  return found[0]!;
}

const SIGUSR2 = constants.signals.SIGUSR2; // what busybox stops by
const catches = (pid: number, signal: number): boolean => {
  const caught = /^SigCgt:\t([0-9a-f]+)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]!;
  return (BigInt(`0x${caught}`) & (1n << BigInt(signal - 1))) !== 0n;
};

test("who was asked to stop and goes on is killed after 45 s", async () => {
  const c = world.container({ init: ["/bin/sh", "-c", "trap : USR2; while :; do sleep 0.05; done"] });
  await c.start({ setup: false });
  await until(() => (catches(c.pid!, SIGUSR2) ? [] : ["it does not hear us yet"]));
  const over = await timerOf(45_000, () => c.stop());
  expect(c.state).toBe("SHUTDOWN");
  over();
  await c.whenStopped();
  expect(c.exit).toEqual({ signal: 9 });
  expect(world.log.at(-1)).toBe("web: not stopped after 45 s: killed");
});

test("who never says that it has booted is killed after 800 s", async () => {
  const osDir = join(world.directory, "silent");
  // By its name it is a systemd, and it does not say READY=1.
  const fill = (root: string): void => {
    busyboxRoot(root);
    copyFileSync("out/attack", join(root, "bin/systemd"));
    chmodSync(join(root, "bin/systemd"), 0o755);
  };
  world.image("root", fill, "erofs", osDir);
  const c = world.container({ init: ["/bin/systemd", "pose", "/"], osDir });
  const over = await timerOf(800_000, () => c.start({ setup: false }));
  expect(c.state).toBe("BOOTING");
  over();
  await c.whenStopped();
  expect(c.exit).toEqual({ signal: 9 });
  expect(world.log.at(-1)).toBe("web: not booted after 800 s: killed");
});
