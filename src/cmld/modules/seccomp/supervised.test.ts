import { expect, test } from "bun:test";
import { hasCapability, readCaller } from "./caller.ts";
import { split } from "./mknod.ts";
import { begin, int } from "./supervised.ts";

const AT_FDCWD = -100;

test("where a path begins", () => {
  expect(begin(AT_FDCWD, "/a/b")).toEqual({ from: undefined, path: "/a/b" });
  expect(begin(5, "/a/b")).toEqual({ from: undefined, path: "/a/b" });
  expect(begin(5, "a")).toEqual({ from: 5, path: "a" });
  expect(begin(AT_FDCWD, "a")).toEqual({ from: undefined, path: "a" });
  expect(begin(AT_FDCWD, "/proc/self/fd/7")).toEqual({ from: 7, path: "" });
  expect(begin(3, "/proc/thread-self/fd/7/x/y")).toEqual({ from: 7, path: "x/y" });
  expect(begin(AT_FDCWD, "/proc/self/fd/7x")).toEqual({ from: undefined, path: "/proc/self/fd/7x" });
  expect(begin(AT_FDCWD, "/proc/self/fd/../7")).toEqual({ from: undefined, path: "/proc/self/fd/../7" });
});

test("a path's last name", () => {
  expect(split("/dev/x")).toEqual({ directory: "/dev/", name: "x" });
  expect(split("/x")).toEqual({ directory: "/", name: "x" });
  expect(split("x")).toEqual({ directory: ".", name: "x" });
  for (const path of ["", "/", "x/", ".", "..", "/dev/.."])
    expect([path, split(path)]).toEqual([path, undefined]);
});

test("an int in a register", () => {
  expect(int(0xffffff9cn)).toBe(AT_FDCWD);
  expect(int(0xffffffffffffff9cn)).toBe(AT_FDCWD);
  expect(int(0xdead00000005n)).toBe(5);
});

test("a caller, as /proc says", () => {
  const status =
    "Name:\tx\nUmask:\t0027\nTgid:\t70\nUid:\t1\t2\t3\t100004\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000008000001\n";
  const caller = readCaller(71, status, "user:[1]");
  expect(caller).toEqual({
    pid: 71,
    process: 70,
    uid: 100004,
    gid: 8,
    groups: [9, 10],
    umask: 0o27,
    namespace: "user:[1]",
    capabilities: 0x8000001n,
  });
  expect([hasCapability(caller, "MKNOD"), hasCapability(caller, "SYS_ADMIN")]).toEqual([true, false]);
  expect(() => readCaller(1, "", "")).toThrow("/proc/1/status has no Tgid");
});
