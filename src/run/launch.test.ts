import { expect, test } from "bun:test";
import { AT_FDCWD, close, dup3, execve, fchdir, O_DIRECTORY, openat, signal, wait } from "../sys/calls.ts";
import { pipe } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { Reg } from "../sys/op.ts";
import { ended } from "../sys/poll.ts";
import { elsewhere, launch, reap } from "./launch.ts";

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
