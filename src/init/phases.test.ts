import { expect, test } from "bun:test";
import { execve } from "../sys/calls.ts";
import { show } from "../sys/op.ts";
import { delay, program } from "./daemons.ts";
import { boot, describe, ground, machine, type Phase } from "./phases.ts";
import { hasBit } from "./power.ts";
import { waitStatus } from "./reaper.ts";
import { mountPoints } from "./shutdown.ts";

test("the ground is prepared in this order", () => {
  expect(describe([...ground, ...machine(() => {})])).toBe(`file systems (vital)
  mount("tmpfs", "/run", "tmpfs", 6, "mode=755,size=20%")
  mount("tmpfs", "/tmp", "tmpfs", 6, "mode=1777,size=20%")
  mkdirat(-100, "/dev/pts", 493)
  mount("devpts", "/dev/pts", "devpts", 10, "mode=620,ptmxmode=666")
  mkdirat(-100, "/dev/shm", 1023)
  mount("tmpfs", "/dev/shm", "tmpfs", 6, "mode=1777")
  mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 14, "nsdelegate,memory_recursiveprot")
  mount("/data", "/data", "none", 4096, 0)
  mount("none", "/data", "none", 1048576, 0)
  mkdirat(-100, "/run/cml", 457)
  mkdirat(-100, "/run/socket", 493)
limits
  prlimit64(0, 4, {0, 0}, 0)
  prlimit64(0, 7, {65536, 65536}, 0)
ctrl-alt-del
  reboot(4276215469, 672274793, 0, 0)
host name
  sethostname("cml", 3)
loopback
control groups
settings`);
});

const list = (ran: string[]): Phase[] => [
  { name: "once", vital: true, run: () => void ran.push("once") },
  { name: "own", vital: true, own: true, run: () => void ran.push("own") },
  {
    name: "optional",
    vital: false,
    run: () => {
      throw new Error("no such thing");
    },
  },
];

test("boot() goes on after an optional phase, and repeats only what belongs to the process", async () => {
  const [ran, told, said]: [string[], string[], string[]] = [[], [], []];
  const progress = { tell: (n: string) => void told.push(n), say: (l: string) => void said.push(l) };
  await boot(list(ran), { done: new Set(), ...progress });
  await boot(list(ran), { done: new Set(told), ...progress });
  expect(ran).toEqual(["once", "own", "own"]);
  expect(told).toEqual(["once", "optional"]);
  expect(said).toEqual(["init: optional: no such thing; going on"]);
});

test("boot() ends at a vital phase that fails, and says which", async () => {
  const vital: Phase = { name: "data", vital: true, ops: [execve("/no/such/program", ["x"], [])] };
  const progress = { done: new Set<string>(), tell() {}, say() {} };
  await expect(boot([vital], progress)).rejects.toThrow("data");
});

test("a daemon's program: no descriptor but three, its own /tmp, the environment that is written down", () => {
  const text = program({ name: "cmld", argv: ["/usr/sbin/cmld"], env: ["A=b"] }, 8)
    .map(show)
    .join("\n");
  expect("\n" + text).toBe(`
setsid()
openat(-100, "/dev/null", 524288, 0) -> r0
dup3(r0, 0, 0)
dup3(8, 1, 0)
dup3(8, 2, 0)
close(r0)
openat(-100, "/proc/self/oom_score_adj", 524289, 0) -> r1
write(r1, "-900", 4)
unshare(131072)
mount("none", "/", "none", 540672, 0)
mount("tmpfs", "/tmp", "tmpfs", 6, "size=64m,nr_inodes=16k,mode=1777")
close_range(3, 4294967295, 4)
execve("/usr/sbin/cmld", [cmld], [A=b])`);
});

test("a daemon that is started ahead keeps one descriptor more, and is told which", () => {
  const cmld = { name: "cmld", argv: ["/usr/sbin/cmld"], env: ["A=b"], ahead: true };
  const end = (gate: number) => program(cmld, 8, gate).slice(-3).map(show).join("\n");
  expect("\n" + end(9)).toBe(`
dup3(9, 3, 0)
close_range(4, 4294967295, 4)
execve("/usr/sbin/cmld", [cmld], [A=b CML_GATE=3])`);
  expect(end(3)).toStartWith("fcntl(3, 2, 0)\n"); // it is there already, but would be closed
});

test("a daemon that ends again and again is started ever later, up to 10 s", () => {
  expect([0, 1, 2, 3, 8, 100].map(delay)).toEqual([0, 100, 200, 400, 10_000, 10_000]);
});

test("mountPoints() gives what is below, innermost first", () => {
  const info = `22 1 7:0 / / ro - squashfs /dev/loop0 ro
40 22 253:1 / /data rw - ext4 /dev/vda1 rw
41 40 0:40 / /data/with\\040space rw - tmpfs tmpfs rw
42 22 0:41 / /database rw - tmpfs tmpfs rw
`;
  expect(mountPoints(info, ["/data"])).toEqual(["/data/with space", "/data"]);
});

test("hasBit() reads a bitmap of sysfs", () => {
  expect(hasBit("10000000000000 0\n", 116)).toBe(true); // a power button
  expect(hasBit("10000000000000 0\n", 115)).toBe(false);
  expect(hasBit("0\n", 116)).toBe(false);
});

test("waitStatus() is what wait(2) would give", () => {
  expect(waitStatus({ status: 7 })).toBe(0x700);
  expect(waitStatus({ signal: 9 })).toBe(9);
});
