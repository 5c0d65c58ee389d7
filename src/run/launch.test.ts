import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import {
  AT_FDCWD,
  close,
  dup3,
  execve,
  exit,
  fchdir,
  O_DIRECTORY,
  openat,
  pread64,
  signal,
  wait,
} from "../sys/calls.ts";
import { pipe } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { Reg } from "../sys/op.ts";
import { ended } from "../sys/poll.ts";
import { beside, elsewhere, launch, reap } from "./launch.ts";

const dir = new Reg(0);

test("launch() hands a descriptor from one call to the next, and the exit status comes back", async () => {
  const child = launch([
    openat(AT_FDCWD, "/usr", O_DIRECTORY, 0, dir),
    fchdir(dir),
    execve("/bin/sh", ["sh", "-c", "exit 7"], []),
  ]);
  await child.started();
  await ended(child.pidfd);
  expect(reap(child.pidfd)).toEqual({ status: 7 });
});

test("launch() names the call that failed in the child", async () => {
  const child = launch([openat(AT_FDCWD, "/no/such", 0, 0, dir), execve("/bin/true", ["true"], [])]);
  await expect(child.started()).rejects.toThrow('child: openat(-100, "/no/such", 524288, 0) -> r0: ENOENT');
  await ended(child.pidfd);
  expect(reap(child.pidfd)).toEqual({ status: 127 });
});

test("a child waits for its parent", async () => {
  const gate = pipe();
  const child = launch([wait(gate.read.n), execve("/bin/true", ["true"], [])]);
  now(signal(gate.write.n));
  await child.started();
  await ended(child.pidfd);
  expect(reap(child.pidfd)).toEqual({ status: 0 });
});

test("a child whose parent is gone does not start", async () => {
  const gate = pipe();
  const child = launch([close(gate.write.n), wait(gate.read.n), execve("/bin/true", ["true"], [])]);
  gate.write.close();
  await expect(child.started()).rejects.toThrow("unexpected result");
  await ended(child.pidfd);
  reap(child.pidfd);
});

test("elsewhere() leaves what it opened in our table, and names what failed", () => {
  elsewhere([dup3(2, 900)]);
  now(close(900)); // would be EBADF
  expect(() => elsewhere([close(9999)])).toThrow("child: close(9999): EBADF");
});

test("beside() does its calls in our memory, with a working directory and descriptors of its own, while we go on", async () => {
  const [gate, name] = [pipe(), mem(16)];
  const cwd = process.cwd();
  const child = beside([
    openat(AT_FDCWD, "/proc/self/comm", 0, 0, dir),
    wait(gate.read.n),
    pread64(dir, name, 0),
    openat(AT_FDCWD, "/usr", O_DIRECTORY, 0, dir),
    fchdir(dir),
    close(gate.write.n),
    exit(7),
  ]);
  const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
  const before = name[0];
  now(signal(gate.write.n));
  expect(before).toBe(0);
  expect(status).toMatch(/^SigBlk:\tfffffffffffbfeff$/m); // all but SIGKILL and SIGSTOP
  expect(status).toMatch(/^SigCgt:\t0{16}$/m);
  expect(await child.over).toEqual({ status: 7 });
  expect(name[0]).not.toBe(0);
  expect(process.cwd()).toBe(cwd);
  now(close(gate.write.n)); // would be EBADF
});

test("beside() names the call that failed; many at once, collected in any order", async () => {
  const children = Array.from({ length: 50 }, (_, i) => beside([close(i % 2 ? -1 : 9999), exit(0)]));
  for (const [i, child] of children.entries())
    await expect(child.started()).rejects.toThrow(`child: close(${i % 2 ? -1 : 9999}): EBADF`);
  for (const { over } of children.reverse()) expect(await over).toEqual({ status: 127 });
});
