// What bootfloor.ts puts in the place of init, cmld and scd: three programs of our runtime that do nothing but what no machine
// of this shape can leave out. Each says when it has come to its first line. No check, no confinement, no dm-verity, no journal.
import { mkdirSync, readFileSync, readSync, writeSync } from "node:fs";
import { basename } from "node:path";
import { launch } from "../../src/run/launch.ts";
import {
  AT_FDCWD,
  chdir,
  chroot,
  execve,
  MS_NODEV,
  MS_RDONLY,
  mount,
  O_RDONLY,
  openat,
} from "../../src/sys/calls.ts";
import { Fd } from "../../src/sys/fd.ts";
import { attachLoop } from "../../src/sys/loop.ts";
import { attempt, now } from "../../src/sys/now.ts";
import type { Op } from "../../src/sys/op.ts";

const say = (what: string): void =>
  void writeSync(1, `least: ${what}: ${readFileSync("/proc/uptime", "utf8").split(" ")[0]} s\n`);

/** Until the disk has appeared and its modules are loaded. */
async function patiently(op: Op): Promise<void> {
  while (attempt(op) < 0) await Bun.sleep(2); // nobody tells a program of one line
}

const run = (...argv: string[]): Bun.Subprocess =>
  Bun.spawn(argv, { stdio: ["ignore", "inherit", "inherit"] });

const programs: Record<string, () => Promise<void>> = {
  async init() {
    say("init");
    readSync(3, Buffer.alloc(1)); // stage0's children: ext4 or the disk's drivers are there
    await patiently(mount("/dev/vda1", "/data", "ext4", MS_NODEV));
    say("data");
    await run("/usr/sbin/cmld").exited;
  },
  async cmld() {
    say("cmld");
    await run("/usr/sbin/cml", "scd").exited;
    now(mount("tmpfs", "/run", "tmpfs", MS_NODEV));
    mkdirSync("/run/core0");
    using file = new Fd(now(openat(AT_FDCWD, "/data/cml/operatingsystems/core0-1/root.img", O_RDONLY)));
    const loop = attachLoop(file, true, "core0");
    await patiently(mount(loop.path, "/run/core0", "erofs", MS_RDONLY));
    const core0 = launch([chroot("/run/core0"), chdir("/"), execve("/sbin/init", ["init"], [])]);
    await core0.started();
    say("core0");
    await Bun.sleep(60_000); // bootfloor.ts ends the machine
  },
  async scd() {
    say("scd");
  },
};
await programs[process.argv[2] ?? basename(process.argv0)]!();
