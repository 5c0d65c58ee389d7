// Processes that join a container, and those that watch them: `control run` from the inside.

import { exec } from "../../../src/cmld/exec.ts";
import { collected, reap } from "../../../src/run/launch.ts";
import {
  AT_FDCWD,
  dup3,
  fchdir,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  openat,
  prctl,
} from "../../../src/sys/calls.ts";
import { EBADF, ENOENT } from "../../../src/sys/error.ts";
import { type Op, Reg, show } from "../../../src/sys/op.ts";
import { ended } from "../../../src/sys/poll.ts";
import { UID_START, type World } from "../../host/world.ts";
import {
  ATTACKER,
  type Attack,
  type Ground,
  type Guest,
  type Inside,
  PRELUDE,
  verdict,
  without,
} from "../attack.ts";
import { pause } from "../weak.ts";

const PR_SET_DUMPABLE = 4; // linux/prctl.h
const IN_CWD = 20; // names that are tried

/** The position of a call in a program. */
function position(ops: readonly Op[], call: RegExp): number {
  const at = ops.findIndex((op) => call.test(show(op)));
  if (at < 0) throw new Error(`no call of the program is like ${call}`);
  return at;
}

const OUT = new Reg(15);
/** A descriptor that nothing closes at execve. */
const LEAKED = 500;

async function started(g: Ground, act: (c: Inside) => Promise<string>): Promise<string> {
  const c = await g.start(ATTACKER);
  try {
    return await act(c);
  } finally {
    await c.end();
  }
}

/** A container whose init has done something before it sleeps. */
const preparing = (name: string, script: string): Guest => ({
  name,
  writable: true,
  init: ["/bin/sh", "-c", `${script}; touch /tmp/ready; exec sleep 1000000`],
});
const ownProc = preparing(
  "own-proc",
  "mount -t tmpfs none /proc; mkdir /proc/self; : > /proc/self/oom_score_adj",
);
const swappedTerminals = preparing(
  "swapped-terminals",
  `mkdir /tmp/pts; mount --bind /dev/pts /tmp/pts; mount -t tmpfs none /dev/pts; touch /dev/pts/ptmx;
   mount --bind /tmp/pts/ptmx /dev/pts/ptmx; for i in 0 1 2 3; do touch /dev/pts/$i; done`,
);

async function prepared(g: Ground, guest: Guest, act: (c: Inside) => Promise<string>): Promise<string> {
  const c = await g.start(guest);
  try {
    await c.run("until [ -e /tmp/ready ]; do sleep 0.1; done");
    return await act(c);
  } finally {
    await c.end();
  }
}

/** What a spy in the container says, while processes join it. */
const spied = (spy: string, visit: (c: Inside) => Promise<unknown>) => (g: Ground) =>
  started(g, async (c) => {
    let over = false;
    const said = c.run(spy).finally(() => (over = true));
    while (!over) await visit(c);
    return verdict(await said);
  });

/** Everything of a process that could be less confined than the container's init. */
const same =
  (what: string): Attack["attempt"] =>
  (g) =>
    started(g, async (c) =>
      verdict(
        await c.run(`${PRELUDE}
        ${what}
        held "the same as the container's init"`),
      ),
    );
const fields = (names: string) => `
  for k in ${names}; do
    [ "$(grep "^$k:" /proc/1/status)" = "$(grep "^$k:" /proc/self/status)" ] || won "$(grep "^$k:" /proc/self/status)"
  done`;

/** Swap /tmp/a between a folder and a link to the bait, and work in it. */
const workdir = async (g: Ground): Promise<string> =>
  started(g, async (c) => {
    await c.run(`mkdir /tmp/a; ln -s ${g.bait} /tmp/z; (attack swap /tmp/a /tmp/z > /dev/null 2>&1 &)`);
    for (let i = 0; i < IN_CWD; i++) await c.run("touch made", { cwd: "/tmp/a" });
    const found = await g.baited();
    return found.length > 0 ? `won: ${found} outside` : "held: nothing outside";
  });

/** Seconds that ended commands are held, longer than they last. */
const HOLD_S = 1;
/** Time for a container to end: on this host, where one that cannot is made; in the machine everything takes longer. */
const [END_MS, END_IN_MACHINE_MS] = [2_000, 60_000];

async function inTime(end: Promise<void>, ms: number): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const timer = setTimeout(late.resolve, ms, false);
  const over = await Promise.race([end.then(() => true), late.promise]);
  clearTimeout(timer);
  return over;
}

/** One whose client keeps all that comes. */
async function keepsEverything(world: World): Promise<string> {
  const c = world.container({ init: ["/bin/sleep", "1000000"] });
  await c.start({ setup: false });
  const kept: Uint8Array[] = [];
  let bytes = 0;
  const { promise, resolve } = Promise.withResolvers<void>();
  const { pid, pidfd } = c.process!;
  const target = {
    name: "web",
    pid,
    pidfd,
    cgroup: `${c.group}/child`,
    uidStart: UID_START,
    grant: { time: false, modules: false },
  };
  const session = exec(
    target,
    { argv: ["/bin/busybox", "yes"], pty: false, env: [] },
    {
      output(piece) {
        kept.push(piece);
        bytes += piece.length;
        if (bytes > GROWTH_KIB * 1024) resolve();
        return true;
      },
      writable: () => {},
      ended: () => resolve(),
    },
  );
  await promise;
  session.hangup();
  await c.kill();
  return bytes > GROWTH_KIB * 1024 ? `won: ${bytes} bytes in ${kept.length} pieces` : "held";
}
/** Twice the most that a connection may hold. */
const GROWTH_KIB = 32 * 1024;
const FLOOD_S = 5;

export const processes: readonly Attack[] = [
  {
    row: 1,
    name: "tracing a process while it joins, and reading what it has open",
    attempt: spied("attack spy 2", (c) => c.run("true")),
    proof: {
      exec(ops) {
        const at = position(ops, /^setgroups\(0, 0\)/);
        const open = [...ops.slice(0, at + 1), prctl(PR_SET_DUMPABLE, 1), pause(200), ...ops.slice(at + 1)];
        return without(/^close_range/, /^prctl\(4, 0,/)(open);
      },
    },
  },
  {
    row: 1,
    name: "tracing commands, and holding them when they have ended",
    attempt: async (g) => {
      const c = await g.start(ATTACKER);
      const said = c.run(`attack hold ${HOLD_S}`);
      const held = Promise.all([c.run("sleep 0.3"), c.run("sleep 0.4")]);
      const holding = await said;
      const end = c.end();
      const ends = await inTime(end, g.core0 ? END_IN_MACHINE_MS : END_MS);
      await Promise.all([held, end]);
      if (!/held [1-9]/.test(holding)) throw new Error(`nothing was traced: ${holding}`);
      return ends ? "held: they are collected, and the container ends" : "won: the container cannot end";
    },
    proof: {
      async collect(pidfd) {
        await ended(pidfd);
        if (reap(pidfd)) return;
        await Bun.sleep(HOLD_S * 1000 + END_MS); // collected later, so that the test ends
        await collected(pidfd);
      },
    },
  },
  {
    row: 2,
    name: "writing to the executable of cmld",
    attempt: async (g) => {
      const before = await g.executable();
      const evil = ["/bin/evil", "/proc/self/exe"];
      const end = await spied("ln -s /proc/self/exe /bin/evil; attack overwrite 2", async (c) => {
        for (const path of evil) await c.run("", { argv: [path, "1"] });
        await c.run("true");
      })(g);
      return (await g.executable()) === before ? end : "won: it is another file";
    },
    proof:
      "the kernel refuses to write to what is being executed, and the machine's file system is read-only",
  },
  {
    row: 4,
    name: "a working directory that is swapped for a link out, again and again",
    attempt: workdir,
    proof: {
      exec(ops, pid) {
        const at = position(ops, /^chdir/);
        const path = `/proc/${pid}/root${ops[at]!.args[0] as string}`;
        const open = { ...openat(AT_FDCWD, path, O_PATH | O_DIRECTORY, 0, OUT), allow: ENOENT };
        const enter = { ...fchdir(OUT), allow: EBADF };
        return [open, ...without(/^close_range/)([...ops.slice(0, at), enter, ...ops.slice(at + 1)])];
      },
    },
  },
  {
    row: 9,
    name: "output without end for a client that does not read",
    attempt: async (g) => {
      await g.flood(1); // what is loaded at the first time stays
      const before = await g.memory();
      await g.flood(FLOOD_S);
      const grown = (await g.memory()) - before;
      return grown < GROWTH_KIB ? `held: ${grown} KiB` : `won: ${grown} KiB`;
    },
    proof: keepsEverything,
  },
  {
    row: 11,
    name: "a working directory below /proc/self/fd",
    attempt: (g) =>
      started(g, async (c) => {
        const script = `${PRELUDE}
          for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cd ..; done
          [ "$(stat -c %d:%i .)" = "$(stat -c %d:%i /)" ] || won "$(pwd)"; held "$(pwd)"`;
        const ends: string[] = [];
        for (const n of [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, LEAKED])
          ends.push(verdict(await c.run(script, { cwd: `/proc/self/fd/${n}` })));
        return ends.find((e) => e.startsWith("won")) ?? ends[0]!;
      }),
    proof: {
      exec: (ops) => [
        openat(AT_FDCWD, "/", O_RDONLY | O_DIRECTORY, 0, OUT),
        dup3(OUT, LEAKED),
        ...without(/^close_range/)(ops),
      ],
    },
  },
  {
    row: 11,
    name: "descriptors that the container's init has",
    attempt: `
      for f in /proc/1/fd/*; do
        case $f in */[012]) ;; *) [ ! -L $f ] || won "$f $(readlink $f)";; esac
      done; held "three"`,
    proof: { program: (ops) => [dup3(0, LEAKED), ...without(/^close_range/)(ops)] },
  },
  {
    row: 15,
    name: "terminals swapped for files before `control run` opens its own",
    guest: swappedTerminals,
    attempt: (g) =>
      prepared(g, swappedTerminals, async (c) => {
        await c.run("echo words", { pty: true });
        const said = await c.run("cat /dev/pts/0 /dev/pts/1 /dev/pts/2 /dev/pts/3");
        return said.includes("words") ? "won: it wrote to a file" : "held: its terminal is its own";
      }),
    proof: {
      exec: (ops, _pid, { pty }) => {
        if (!pty) return ops;
        // A terminal by its name in the container's tree, in place of the master's other end.
        const at = position(ops, /^umask/);
        const own: Op[] = [openat(AT_FDCWD, "/dev/pts/0", 2, 0, OUT), ...[0, 1, 2].map((n) => dup3(OUT, n))];
        return [...ops.slice(0, at), ...own, ...ops.slice(at)];
      },
    },
  },
  {
    row: 16,
    name: "a /proc of the container's making, where `control run` writes to its own",
    guest: ownProc,
    attempt: (g) =>
      prepared(g, ownProc, async (c) => {
        await c.run("true");
        const said = await c.run("cat /proc/self/oom_score_adj");
        return said.trim() === "" ? "held: nothing was written" : `won: ${said.trim()}`;
      }),
    proof: {
      exec(ops) {
        const at = position(ops, /^openat\(-100, "\/proc\/self\/oom_score_adj"/);
        const moved = ops.slice(at, at + 2);
        const rest = ops.toSpliced(at, 2);
        const later = position(rest, /^umask/);
        return [...rest.slice(0, later), ...moved, ...rest.slice(later)];
      },
    },
  },
  {
    row: 33,
    name: "a command without the container's filter",
    attempt: same(fields("Seccomp Seccomp_filters NoNewPrivs")),
    proof: { exec: without(/^seccomp/) },
  },
  {
    row: 33,
    name: "a command with more capabilities than the container's init",
    attempt: same(fields("CapInh CapPrm CapEff CapBnd CapAmb")),
    proof: { exec: without(/^capset/, /^prctl\(24,/) },
  },
  {
    row: 33,
    name: "a command outside the container's control group and namespaces",
    attempt: same(`
      for n in cgroup ipc mnt net pid user uts time; do
        [ "$(readlink /proc/1/ns/$n)" = "$(readlink /proc/self/ns/$n)" ] || won $n
      done
      case "$(grep ^0 /proc/self/cgroup)" in 0::/..*) won "$(grep ^0 /proc/self/cgroup)";; esac`),
    proof: { exec: without(/^write\(\d+, "0", 1\)/) },
  },
];
