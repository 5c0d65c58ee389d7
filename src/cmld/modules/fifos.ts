// fifos: the container's named pipes from core0 (../fifos.ts). Its own ends are in its /dev before its init runs; the
// others are core0's, made when both are up, and again when core0 has restarted or there is a new cmld.
import { C0 } from "../../lib/uuid.ts";
import { chain } from "../../sys/error.ts";
import type { Fd } from "../../sys/fd.ts";
import { type FifoResource, Forwarder, giveBack, makeFifo, makeSource, take } from "../fifos.ts";
import type { Module, Start } from "../module.ts";
import { devFolder } from "./devices.ts";

const MODE = 0o666; // octal

interface Member {
  readonly start: Start;
  /** Those of its pipes that lead to no other container. */
  readonly names: readonly string[];
  /** What passes through them, while core0 is there. */
  readonly open: Map<string, Forwarder>;
}

/** The containers that are up and have pipes. */
const members = new Map<string, Member>();
/** First id of core0's range, while it is up. */
let core0: number | undefined;

const sourceOf = (s: Start, name: string): FifoResource => ({
  kind: "fifo",
  at: s.host.hosted ? s.host.run : C0,
  name,
});

/** Its own end: made, or as it is. */
function endOf(s: Start, name: string): Fd {
  const dev = devFolder(s.uuid);
  if (!dev) throw new Error("it has no /dev");
  return makeFifo(dev, name, s.uidStart, MODE);
}

function join(s: Start): Member {
  const names = [...new Set(s.config.fifos)].filter((name) => {
    const other = take(name, s.uuid);
    if (other !== undefined) s.log(`fifos: ${name} leads to container ${other} already`);
    return other === undefined;
  });
  const known = new Set(s.owned.all("fifo").map((f) => f.name));
  for (const name of names) if (!known.has(name)) s.owned.acquire(sourceOf(s, name), () => {});
  return { start: s, names, open: new Map() };
}

function connect({ start: s, names, open }: Member): void {
  if (!s.host.hosted && core0 === undefined) return; // when it comes
  for (const name of names) {
    try {
      using failed = new DisposableStack();
      const from = makeSource(sourceOf(s, name), core0 ?? 0);
      if (!from) throw new Error("core0 has no /dev");
      failed.use(from);
      const to = failed.use(endOf(s, name));
      open.set(name, new Forwarder(from, to));
      failed.move();
      s.host.audit?.record("SSA", "CONTAINER_ISOLATION", "create-fifo", s.uuid, { fifo: name });
    } catch (e) {
      s.log(`fifos: ${name}: ${chain(e)}`);
    }
  }
}

function disconnect({ open }: Member): void {
  for (const f of open.values()) f[Symbol.dispose]();
  open.clear();
}

function core0Started(s: Start): void {
  if (s.config.fifos.length > 0) s.log("fifos: they lead from core0 to others: its own have no effect");
  core0 = s.uidStart;
  s.owned.use({
    [Symbol.dispose]() {
      core0 = undefined;
      for (const m of members.values()) disconnect(m);
    },
  });
  for (const m of members.values()) connect(m);
}

export const fifos: Module = {
  name: "fifos",
  prepare(s) {
    if (!s.isC0) for (const name of s.config.fifos) endOf(s, name).close();
  },
  started(s) {
    if (s.isC0) core0Started(s);
    if (s.isC0 || s.config.fifos.length === 0) return;
    const member = join(s);
    members.set(s.uuid, member);
    s.owned.use({
      [Symbol.dispose]() {
        disconnect(member);
        for (const name of member.names) giveBack(name, s.uuid);
        if (members.get(s.uuid) === member) members.delete(s.uuid);
      },
    });
    connect(member);
  },
};
