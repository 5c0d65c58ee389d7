import { expect, test } from "bun:test";
import { mkdir, sethostname, umask } from "../sys/calls.ts";
import { show } from "../sys/op.ts";
import type { Module, Start } from "./module.ts";
import { hostname } from "./modules/hostname.ts";
import { users } from "./modules/users.ts";
import { program } from "./program.ts";

const start = {
  name: "web",
  config: { name: "web", init_env: ["B=2"] },
  guestos: { init_path: "/sbin/init", init_param: ["--now"], init_env: ["A=1"] },
} as unknown as Start;
const text = (modules: readonly Module[]): string =>
  `\n${program(start, modules, { ours: 8, theirs: 9 }, 7).map(show).join("\n")}`;

test("program() puts the modules' calls between the gates, in their order", () => {
  expect(text([users, hostname])).toBe(`
close(8)
setsid()
read(9, <1 bytes>, 1)
setresgid(0, 0, 0)
setresuid(0, 0, 0)
setgroups(0, 0)
sethostname("web", 3)
write(9, <1 bytes>, 1)
read(9, <1 bytes>, 1)
umask(18)
close_range(3, 6, 0)
close_range(8, 4294967295, 0)
openat2(-100, "/sbin/init", {flags=2621440, mode=0, resolve=2}, 24)
execve("/sbin/init", [/sbin/init --now], [A=1 B=2])
execve("/sbin/cservice", [/sbin/init --now], [A=1 B=2])`);
});

test("last() comes after everybody's child(), and then nothing is open but the report", () => {
  const a: Module = {
    name: "a",
    child: () => [mkdir("/a", 0o755)],
    last: () => [umask(1)],
    env: () => ["C=3"],
  };
  const b: Module = { name: "b", child: () => [sethostname("b")], last: () => [umask(2)] };
  expect(text([a, b])).toBe(`
close(8)
setsid()
read(9, <1 bytes>, 1)
mkdirat(-100, "/a", 493)
sethostname("b", 1)
write(9, <1 bytes>, 1)
read(9, <1 bytes>, 1)
umask(18)
umask(1)
umask(2)
close_range(3, 6, 0)
close_range(8, 4294967295, 0)
openat2(-100, "/sbin/init", {flags=2621440, mode=0, resolve=2}, 24)
execve("/sbin/init", [/sbin/init --now], [A=1 B=2 C=3])
execve("/sbin/cservice", [/sbin/init --now], [A=1 B=2 C=3])`);
});

test("only a missing init falls through to the helper", () => {
  const [first, second] = program(start, [], { ours: 8, theirs: 9 }, 7).slice(-2);
  expect([first?.allow, second?.allow]).toEqual([2 /* ENOENT */, undefined]);
});
