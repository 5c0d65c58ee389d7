// devices: which devices a container may use (../devices/rules.ts), held by a program of the kernel's device controller on its
// group, and the nodes in its /dev.
//
// The program is attached before there is a child, and belongs to the group: it stays when cmld ends. What was granted
// or taken away since the start is kept in a file under /run/cml/devices for the next cmld. A device that is assigned is
// nobody else's: that is decided here, on what is in force, for everything that is granted at a start or later.
import { fstatSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  AT_FDCWD,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  openat,
  openat2,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
} from "../../sys/calls.ts";
import { attach, loadDeviceProgram } from "../../sys/ebpf.ts";
import { chain, ENOENT, isErrno } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { now } from "../../sys/now.ts";
import { closedDevices } from "../devices/closed.ts";
import { deviceOf, layNode, makeNode, type Node, nodeOf, nodesOf, removeNode } from "../devices/nodes.ts";
import {
  accessOf,
  amend,
  BadRule,
  claimsOf,
  conflict,
  covers,
  DEFAULT,
  type Device,
  type DeviceRule,
  type Holder,
  intersects,
  program,
  READ,
  ruleOf,
  type Statement,
  showRule,
  WRITE,
  withoutHotplug,
} from "../devices/rules.ts";
import type { Module, Process, Start } from "../module.ts";
import { groupOf } from "./cgroups.ts";

/** Nodes that every container has, as long as it may use them. */
const NODES: readonly Node[] = (
  [
    ["null", 1, 3],
    ["zero", 1, 5],
    ["full", 1, 7],
    ["random", 1, 8],
    ["urandom", 1, 9],
    ["tty", 5, 0],
    ["net/tun", 10, 200],
    ["fuse", 10, 229],
  ] as const
).map(([path, major, minor]) => ({ kind: "c", path, major, minor, mode: 0o666 }));

/** Nodes of one container: a rule for a whole major may name many devices, and its /dev has room for 4096 files. */
const NODES_MAX = 1024;
/** The machine's second console, which core0's users sit at: the first that exists. */
const CONSOLES = ["/dev/hvc0", "/dev/tty1"] as const;
/** Programs that are kept for the next container with the same devices. */
const PROGRAMS_MAX = 32;

interface Live {
  readonly start: Start;
  list: readonly Statement[];
  /** The machine's own devices, as far as a rule touches them. */
  closed: readonly DeviceRule[];
  /** The nodes that we have made, by path. */
  nodes: ReadonlyMap<string, Node>;
  dev?: Fd;
  /** Where a later cmld finds what is granted. */
  file?: string;
}

const live = new Map<string, Live>();

/** Devices that are kept back for a purpose: nobody but `owner` may use them, whatever the rules say. */
interface Reservation {
  readonly rule: DeviceRule;
  readonly owner: string | undefined;
}
const reservations = new Set<Reservation>();

// --- who has what ----------------------------------------------------------------------

const granted = (list: readonly Statement[]) =>
  list.filter((s) => s.allow && s.by !== "default").map(({ rule, assigned = false }) => ({ rule, assigned }));

/** Everybody's claims: what is in force, and what is configured. `before`: those that are stopped only if they came
 * before this container, so that of two that want the same one can start. */
function* holders(s: Pick<Start, "host" | "uuid">, before?: true): Iterable<Holder> {
  for (const l of live.values())
    yield { uuid: l.start.uuid, name: l.start.name, created: 0, claims: granted(l.list) };
  const existing = [...s.host.claims()];
  const own = existing.find((h) => h.uuid === s.uuid);
  const first = (h: Holder): boolean =>
    own !== undefined && (h.created < own.created || (h.created === own.created && h.uuid < own.uuid));
  for (const h of existing) if (!before || first(h)) yield h;
}

/** Refuse a configuration that wants what somebody else has. */
export function checkClaims(
  s: Pick<Start, "host" | "uuid">,
  config: { readonly allow_dev: readonly string[]; readonly assign_dev: readonly string[] },
): void {
  for (const claim of claimsOf(config)) {
    const why = conflict(s.uuid, claim, holders(s));
    if (why) throw new Error(`${claim.field}: ${why}`);
  }
}

// --- the program -----------------------------------------------------------------------

const programs = new Map<string, Fd>();

/** Let go of the programs that are kept for containers to come. */
export function forgetPrograms(): void {
  for (const fd of programs.values()) fd.close();
  programs.clear();
}

function programFor(list: readonly Statement[]): Fd {
  const key = list.map((s) => `${s.allow ? "+" : "-"}${showRule(s.rule)}`).join();
  const known = programs.get(key);
  programs.delete(key);
  const fd = known ?? loadDeviceProgram("cml_devices", program(list));
  programs.set(key, fd); // the newest is last
  if (programs.size > PROGRAMS_MAX) {
    const [oldest, unused] = [...programs][0]!;
    programs.delete(oldest);
    unused.close(); // groups keep theirs
  }
  return fd;
}

const closing = (rule: DeviceRule): Statement => ({ allow: false, rule, by: "default" });

/** What holds: what was granted, less what is closed. */
const inForce = (l: Live): Statement[] => [
  ...l.list,
  ...l.closed.map(closing),
  ...[...reservations].filter((r) => r.owner !== l.start.uuid).map((r) => closing(r.rule)),
];

function enforce(l: Live): void {
  using group = new Fd(now(openat(AT_FDCWD, groupOf(l.start), O_RDONLY | O_DIRECTORY)));
  attach(group, programFor(inForce(l)));
}

// --- the nodes -------------------------------------------------------------------------

const usable = (list: readonly Statement[], d: Device): boolean => (accessOf(list, d) & (READ | WRITE)) !== 0;

function consoleOf(s: Start): Node | undefined {
  if (!s.isC0) return undefined;
  for (const path of CONSOLES) {
    const { rdev } = statSync(path, { throwIfNoEntry: false }) ?? {};
    if (rdev !== undefined) return { ...deviceOf("c", rdev), path: "console", mode: 0o620 };
  }
  return undefined;
}

/** The nodes that a container should have now. */
function wanted(l: Live): Map<string, Node> {
  const list = inForce(l);
  const own = consoleOf(l.start);
  const found = new Map<string, Node>();
  for (const node of [...NODES, ...(own ? [own] : [])]) if (usable(list, node)) found.set(node.path, node);
  const rules = list.filter((s) => s.allow && s.by !== "default").map((s) => s.rule);
  for (const node of rules.flatMap(nodesOf)) {
    if (found.has(node.path) || !usable(list, node)) continue;
    if (found.size >= NODES_MAX) {
      l.start.log(`more than ${NODES_MAX} devices are allowed: the others have no node in /dev`);
      break;
    }
    found.set(node.path, node);
  }
  return found;
}

function make(l: Live, dev: Fd, node: Node): void {
  try {
    makeNode(dev, node, l.start.uidStart);
  } catch (e) {
    l.start.log(chain(e));
  }
}

/** Make its /dev what it should be: `before` are nodes that may be there. */
function furnish(l: Live, before: ReadonlyMap<string, Node>): void {
  const { dev, nodes } = l;
  if (!dev?.open) return; // it is ending
  for (const node of before.values()) if (!same(nodes.get(node.path), node)) removeNode(dev, node);
  for (const node of nodes.values()) if (!same(before.get(node.path), node)) make(l, dev, node);
}

const same = (a: Device | undefined, b: Device): boolean =>
  a !== undefined && a.kind === b.kind && a.major === b.major && a.minor === b.minor;

/** A container's /dev, beneath which nothing is to be believed; undefined: it is not up. */
export function devFolder(uuid: string): Fd | undefined {
  const dev = live.get(uuid)?.dev;
  return dev?.open ? dev : undefined;
}

/** Fill a container's new /dev, which nobody has seen yet. */
export function furnishNew(s: Start, dev: Fd): void {
  const l = live.get(s.uuid);
  const nodes = l ? wanted(l) : new Map(NODES.map((n) => [n.path, n]));
  for (const node of nodes.values()) {
    try {
      layNode(dev, node, s.uidStart);
    } catch (e) {
      s.log(chain(e)); // a device that has the name of something else here, "ptmx"
    }
  }
  if (l) Object.assign(l, { dev, nodes });
}

// --- what the next cmld must know ------------------------------------------------------

/** In the ledger as it is at the start; then in a file, for the ledger only grows. */
export interface DevicesResource {
  readonly kind: "devices";
  readonly file: string;
  readonly state: Kept;
}

interface Kept {
  readonly list: readonly Statement[];
  readonly nodes: readonly Node[];
  /** Number of the file system that is its /dev. */
  readonly dev: number;
}

const stateOf = (l: Live, nodes: Iterable<Node>): Kept => ({
  list: l.list,
  nodes: [...nodes],
  dev: l.dev ? fstatSync(l.dev.n).dev : 0,
});

function keep(l: Live, nodes: ReadonlyMap<string, Node>): void {
  if (!l.file || !l.dev?.open) return;
  writeFileSync(`${l.file}.new`, JSON.stringify(stateOf(l, nodes.values())), { mode: 0o600 });
  renameSync(`${l.file}.new`, l.file);
}

function read(s: Start): DevicesResource | undefined {
  const resource = s.owned.all("devices").at(-1);
  if (!resource) return undefined; // the container of an earlier version
  try {
    return { ...resource, state: JSON.parse(readFileSync(resource.file, "utf8")) as Kept };
  } catch (e) {
    if (isErrno(e, ENOENT)) return resource;
    throw e;
  }
}

/** The /dev that an earlier cmld has made for a running container: it may have hidden it since. */
function devOf(p: Process, number: number): Fd {
  using root = new Fd(now(openat(AT_FDCWD, `/proc/${p.pid}/root`, O_PATH | O_DIRECTORY)));
  const resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  const dev = new Fd(now(openat2(root.n, "dev", O_PATH | O_DIRECTORY, resolve)));
  if (fstatSync(dev.n).dev === number) return dev;
  dev.close();
  throw new Error("its /dev is not the one it was given");
}

function adopt(s: Start, p: Process): void {
  const kept = read(s);
  const l = begin(s, kept?.state.list ?? configured(s));
  enforce(l);
  if (!kept) return;
  l.file = kept.file;
  l.dev = s.owned.use(devOf(p, kept.state.dev));
  l.nodes = wanted(l);
  for (const node of kept.state.nodes) if (!same(l.nodes.get(node.path), node)) removeNode(l.dev, node);
  for (const node of l.nodes.values()) make(l, l.dev, node);
  keep(l, l.nodes);
}

// --- the life of a container -----------------------------------------------------------

function configured(s: Start): Statement[] {
  const own = consoleOf(s);
  const list: Statement[] = [...DEFAULT];
  if (own) list.push({ allow: true, rule: { ...ruleOf(own), access: READ | WRITE }, by: "default" });
  return claimsOf(s.config).reduce(
    (all, { rule, assigned }) => amend(all, { allow: true, rule, assigned, by: "configuration" }),
    list,
  );
}

function begin(s: Start, list: readonly Statement[]): Live {
  const extra = list.filter((t) => t.allow && t.by !== "default");
  const closed = extra.length === 0 ? [] : closedDevices();
  const l: Live = {
    start: s,
    list,
    closed: closed.filter((c) => extra.some((t) => intersects(t.rule, c))),
    nodes: new Map(),
  };
  live.set(s.uuid, l);
  s.owned.use({
    [Symbol.dispose]: () => {
      if (live.get(s.uuid) === l) live.delete(s.uuid);
    },
  });
  return l;
}

export const devices: Module = {
  name: "devices",
  prepare(s) {
    for (const claim of claimsOf(s.config)) {
      const why = conflict(s.uuid, claim, holders(s, true));
      if (why) throw new Error(`${claim.field}: ${why}`);
    }
    const l = begin(s, configured(s));
    for (const { field, rule } of claimsOf(s.config)) {
      const own = l.closed.filter((c) => intersects(rule, c));
      if (own.length > 0)
        s.log(`${field}: ${showRule(rule)}: the machine's own stay closed: ${own.map(showRule).join(", ")}`);
    }
    enforce(l);
  },
  attach(s) {
    const l = live.get(s.uuid)!;
    l.file = join(s.host.run, "devices", s.uuid);
    const state = stateOf(l, l.nodes.values());
    s.owned.acquire({ kind: "devices", file: l.file, state }, () => {});
  },
  started(s, p) {
    if (!live.has(s.uuid)) adopt(s, p);
  },
};

// --- while it runs ---------------------------------------------------------------------

const need = (uuid: string): Live => {
  const l = live.get(uuid);
  if (!l) throw new Error("it does not run: its devices are those of its configuration");
  return l;
};

/** First it is written down, then it is in force, then the nodes follow; what is refused changes nothing. */
function change(l: Live, list: readonly Statement[]): void {
  const before = { list: l.list, nodes: l.nodes };
  l.list = list;
  l.nodes = wanted(l);
  try {
    keep(l, new Map([...before.nodes, ...l.nodes])); // the next cmld looks after all of them
    enforce(l);
  } catch (e) {
    Object.assign(l, before);
    keep(l, l.nodes);
    throw e;
  }
  furnish(l, before.nodes);
}

/** Grant the devices of a rule; refused if that takes them from somebody, or if they are the machine's own. */
export function allow(
  uuid: string,
  rule: DeviceRule,
  { by, assigned = false }: { readonly by: "control" | "hotplug"; readonly assigned?: boolean },
): void {
  const l = need(uuid);
  const why = conflict(uuid, { rule, assigned }, holders(l.start));
  if (why) throw new BadRule(why);
  const closed = closedDevices().filter((c) => intersects(rule, c));
  for (const c of closed)
    if (covers({ ...c, access: rule.access }, rule))
      throw new BadRule(
        `device rule ${JSON.stringify(showRule(rule))} names devices that are the machine's own`,
      );
  const list = amend(l.list, { allow: true, rule, assigned, by });
  l.closed = [...l.closed, ...closed.filter((c) => !l.closed.some((other) => covers(other, c)))];
  change(l, list);
}

/** Take the devices of a rule away, whoever has granted them. */
export function deny(uuid: string, rule: DeviceRule): void {
  const l = need(uuid);
  change(l, amend(l.list, { allow: false, rule, by: "control" }));
}

/** Take back what the hot-plug has granted; what others have granted stays. */
export function withdraw(uuid: string, rule: DeviceRule): void {
  const l = live.get(uuid);
  if (l) change(l, withoutHotplug(l.list, rule));
}

/** What a container has been granted beyond what every one has, and what of it by the hot-plug. */
export const rulesOf = (uuid: string): readonly DeviceRule[] =>
  granted(live.get(uuid)?.list ?? []).map((g) => g.rule);
export const hotplugged = (uuid: string): readonly DeviceRule[] =>
  (live.get(uuid)?.list ?? []).filter((s) => s.by === "hotplug").map((s) => s.rule);

/** Events about devices were lost: every container's nodes follow what is there now. */
export function refreshAll(): void {
  for (const l of live.values()) if (granted(l.list).length > 0) again(l);
}

/** Keep the devices of a rule from every container but `owner`, until it is disposed of: tokens, PIN pads. */
export function reserve(rule: DeviceRule, owner?: string): Disposable {
  const r: Reservation = { rule, owner };
  reservations.add(r);
  refresh(rule);
  return {
    [Symbol.dispose]: () => {
      if (reservations.delete(r)) refresh(rule);
    },
  };
}

/** Containers whose rules speak of these devices get their program and nodes anew. */
function refresh(rule: DeviceRule): void {
  for (const l of live.values()) if (l.list.some((s) => s.allow && intersects(s.rule, rule))) again(l);
}

function again(l: Live): void {
  try {
    change(l, l.list);
  } catch (e) {
    l.start.log(chain(e));
  }
}

/** What a container may do with a device: MKNOD, READ, WRITE as bits. 0 if it does not run. */
export function accessFor(uuid: string, device: Device): number {
  const l = live.get(uuid);
  return l ? accessOf(inForce(l), device) : 0;
}

/** A device is there that was not before: its node appears in every container that may use it, which are returned. */
export function appeared(device: Device): string[] {
  const node = nodeOf(device);
  return inAll(device, ({ nodes }) =>
    node && nodes.size < NODES_MAX ? new Map(nodes).set(node.path, node) : nodes,
  );
}

/** A device is gone, and so are its nodes, in the containers that are returned. */
export const vanished = (device: Device): string[] =>
  inAll(device, ({ nodes }) => new Map([...nodes].filter(([, n]) => !same(n, device))));

function inAll(device: Device, look: (l: Live) => ReadonlyMap<string, Node>): string[] {
  const concerned = [...live.values()].filter((l) => usable(inForce(l), device));
  for (const l of concerned) {
    const before = l.nodes;
    l.nodes = look(l);
    try {
      keep(l, new Map([...before, ...l.nodes]));
    } catch (e) {
      l.start.log(chain(e));
    }
    furnish(l, before);
  }
  return concerned.map((l) => l.start.uuid);
}
