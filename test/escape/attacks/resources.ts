// Taking everything: processes, memory, space, files, connections.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Module } from "../../../src/cmld/module.ts";
import { Slot } from "../../../src/cmld/module.ts";
import { GUEST, serve, TRUSTED } from "../../../src/cmld/socket.ts";
import { bindUnix, listen } from "../../../src/sys/calls.ts";
import type { Fd } from "../../../src/sys/fd.ts";
import { unbound } from "../../../src/sys/listen.ts";
import { now } from "../../../src/sys/now.ts";
import { NR } from "../../../src/sys/numbers.ts";
import { type Op, show } from "../../../src/sys/op.ts";
import { Client, Command } from "../../host/daemon.ts";
import {
  ATTACKER,
  type Attack,
  type Ground,
  type Guest,
  inside,
  lacking,
  PRELUDE,
  SHOWN,
  verdict,
} from "../attack.ts";

const RESPONDS_MS = 1000;
const CONNECTIONS = 1000;
/** More than a container's socket lets in at once (GUEST of src/cmld/socket.ts). */
const DESCRIPTORS = 3 * GUEST.connections;

const BOUNDED: Guest = {
  name: "bounded",
  writable: true,
  config: { pids_limit: 100, ram_limit: 64, swap_limit: 1 },
};
const SMALL: Guest = { name: "small", writable: true, config: { tmpfs_size: 4 } };
const OTHER: Guest = { name: "other", writable: true };

/** cmld answers in time. The fastest of a few counts: others may use the machine that runs the tests. */
async function late(g: Ground): Promise<string | undefined> {
  let fastest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 5; i++) {
    const began = performance.now();
    await g.ask(Command.GET_CONTAINER_STATUS);
    fastest = Math.min(fastest, performance.now() - began);
  }
  return fastest > RESPONDS_MS ? `cmld answered after ${Math.round(fastest)} ms` : undefined;
}

/** Within its limits it fails; the same command in a container without them does not. */
const bounded = (command: string) => async (g: Ground) => {
  const free = await inside(g, ATTACKER, command);
  if (!free.startsWith("won")) throw new Error(`without a limit: ${free}`);
  const c = await g.start(BOUNDED);
  const said = await c.run(PRELUDE + command);
  await c.end();
  return /^(held|won)/m.test(said) ? verdict(said) : `held: killed: ${said.trim().slice(0, 60)}`;
};

/** Take all that there is of something; another container gets some all the same. `some` prints "ok" then. */
const hoarding = (what: string, some: string) => async (g: Ground) => {
  const [c, other] = [await g.start(ATTACKER), await g.start(OTHER)];
  try {
    const said = await c.run(`attack hoard ${what} > /tmp/hoard 2>&1 &
      for i in $(seq 600); do [ -s /tmp/hoard ] && break; sleep 0.1; done; cat /tmp/hoard`);
    const hoarded = said.trim();
    if (!/^\d{3}/.test(hoarded)) throw new Error(`nothing was hoarded: ${said}`);
    const got = (await other.run(some)).trim();
    await c.run("killall attack");
    return got === "ok" ? `held: ${hoarded}` : `won: ${hoarded}; the other one: ${got}`;
  } finally {
    await other.end();
    await c.end();
  }
};

/** Without a part of what a mount's data says. */
const larger =
  (bound: RegExp) =>
  (ops: readonly Op[]): readonly Op[] => {
    let found = false;
    const less = ops.map((op) => {
      const args = op.args.map((a) => {
        if (typeof a !== "string" || !bound.test(a)) return a;
        found = true;
        return a.replace(bound, "");
      });
      return { ...op, args };
    });
    if (!found) throw new Error(`no mount of the program is bounded by ${bound}`);
    return less;
  };

const listening = new Slot<Fd>();
/** The socket of the container's helper, for as many as come. */
const forAll: Module = {
  name: "service",
  prepare: (s) => void listening.set(s, s.owned.use(unbound())),
  child: (s) => [bindUnix(listening.need(s).n, "/run/socket/cml-service")],
  ready: (s) => void now(listen(listening.need(s).n, CONNECTIONS)),
  started(s) {
    const limits = { ...GUEST, connections: 2 * CONNECTIONS };
    const handle = () => Promise.resolve();
    s.owned.use(
      serve(listening.need(s), {
        limits,
        handle,
        opened: () => {},
        complaint: () => undefined,
        warn: () => {},
      }),
    );
  },
};

export const resources: readonly Attack[] = [
  {
    row: 30,
    name: "more processes than its limit",
    guests: [BOUNDED],
    attempt: bounded("attack forks 300"),
    proof: SHOWN,
    only: "machine",
  },
  {
    row: 30,
    name: "more memory than its limit",
    guests: [BOUNDED],
    attempt: bounded("attack memory 128"),
    proof: SHOWN,
    only: "machine",
  },
  {
    row: 30,
    name: "a fork bomb: cmld answers, and another container runs commands",
    guests: [BOUNDED, OTHER],
    attempt: async (g) => {
      const c = await g.start(BOUNDED);
      const other = await g.start(OTHER);
      try {
        await c.run("bomb() { bomb | bomb & }; bomb 2> /dev/null");
        const slow = await late(g);
        if (slow) return `won: ${slow}`;
        const said = await other.run("attack forks 20");
        return said.includes("won") ? "held: it answers in time" : `won: ${said}`;
      } finally {
        await other.end();
        await c.end();
      }
    },
    proof: SHOWN, // by the two before: what bounds it are those limits
    only: "machine",
  },
  {
    row: 30,
    name: "every watcher of files (inotify) that a user may have",
    guests: [OTHER],
    attempt: hoarding("watchers", `attack call ${NR.inotify_init1[0]} 0`),
    proof: { owner: 0 },
  },
  {
    row: 30,
    name: "every open file that the kernel has",
    guests: [OTHER],
    attempt: hoarding("files", `attack call ${NR.openat[0]} -100 =/ 0`),
    proof: "a setting of the machine's: seen to be won by hand without it, test/escape/attacks/resources.ts",
    only: "machine",
  },
  {
    row: 30,
    name: "threads of the kernel's: one for each group whose pressure is watched",
    attempt: `attack hoard groups > /tmp/groups 2>&1 &
      for i in $(seq 600); do [ -s /tmp/groups ] && break; sleep 0.1; done
      read n rest < /tmp/groups; killall attack; [ "$n" -lt 1000 ] && held "$n $rest"; won "$n $rest"`,
    proof: "a bound by the machine's size: src/cmld/modules/cgroups.test.ts, test/host/hostile.test.ts",
    only: "machine",
  },
  {
    row: 30,
    name: "memory that is nobody's: the ring of a packet socket",
    attempt: "attack ring 16",
    proof: lacking("seccomp"),
  },
  {
    row: 30,
    name: "a full file system in memory",
    guest: SMALL,
    attempt: `dd if=/dev/zero of=/tmp/big bs=1M count=8 2>/dev/null && won "8 MiB"; held "4 MiB"`,
    proof: { program: larger(/size=4m,/) },
  },
  {
    row: 30,
    name: "a file system in memory full of files",
    attempt: `attack files /dev/shm 140000`,
    proof: {
      program: (ops) => ops.filter((op) => op.call !== "fsconfig" || !show(op).includes('"nr_inodes"')),
    },
    only: "host", // 140000 files take too long there
  },
  {
    row: 31,
    name: "1000 connections with half a message each on the socket of its helper",
    guests: [OTHER],
    attempt: async (g) => {
      const [c, other] = [await g.start(ATTACKER), await g.start(OTHER)];
      try {
        const before = await g.descriptors();
        await c.run(`attack connections /run/socket/cml-service ${CONNECTIONS} > /tmp/said 2>&1 &
          for i in $(seq 100); do grep -q connections /tmp/said && break; sleep 0.1; done; cat /tmp/said`);
        const held = (await g.descriptors()) - before;
        if (held > DESCRIPTORS) return `won: ${held} descriptors`;
        const slow = await late(g);
        if (slow) return `won: ${slow}`;
        const served = "timeout 20 /sbin/cservice configure && echo served";
        if (!(await other.run(served)).includes("served")) return "won: another container is not served";
        await c.run("killall attack");
        for (let left = 50; left > 0; left--)
          if ((await c.run(served)).includes("served")) return `held: ${held} descriptors`;
        return "won: its own helper is not served any more";
      } finally {
        await other.end();
        await c.end();
      }
    },
    proof: { modules: (all) => all.map((m) => (m.name === "service" ? forAll : m)) },
  },
  {
    row: 31,
    name: "1000 connections with half a message each on the control socket",
    attempt: async (g) => {
      await using _ = await g.halfFrames!(CONNECTIONS);
      const slow = await late(g);
      return slow ? `won: ${slow}` : "held: others are served";
    },
    only: "host", // where so many can be opened at once
    proof: async () => {
      // With room for as many as a container's socket has, the next client is turned away.
      const folder = mkdtempSync(join(tmpdir(), "crowd-"));
      using socket = unbound();
      now(bindUnix(socket.n, `${folder}/socket`));
      now(listen(socket.n, CONNECTIONS));
      const limits = { ...TRUSTED, connections: GUEST.connections };
      const handle = () => Promise.resolve();
      using _server = serve(socket, {
        limits,
        handle,
        opened: () => {},
        complaint: () => undefined,
        warn: () => {},
      });
      using crowd = new DisposableStack();
      for (let i = 0; i < 2 * GUEST.connections; i++) {
        const client = crowd.use(await Client.to(`${folder}/socket`));
        client.socket.write(Buffer.alloc(2));
      }
      using last = await Client.to(`${folder}/socket`);
      await last.whenClosed();
      rmSync(folder, { recursive: true });
      return "won: the next one is turned away";
    },
  },
];
