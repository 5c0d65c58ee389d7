// The network around the containers. Each has links of its own, which lead to the router: core0's network namespace on
// a device, ours in hosted mode. The router forwards and translates addresses; it has one table of rules that names no
// container: links of containers are in a device group, so a new container needs no new rule.
//
// What is in core0's network namespace can be changed by root of core0. So a container's link does not end there: it
// ends in our namespace, at a fence (fences.ts), and what the fence lets through goes on to core0 by a second pair of
// links. When core0 restarts, only the second pair is made again; a container keeps what it has.
//
// Physical links belong to core0 unless a container claims them.
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { IContainerInterface } from "../../../proto/gen/proto.js";
import { aside, Carriers, deleteLinks, netlinkIn, netnsOf, sysctlIn, type Where } from "../../run/netns.ts";
import { chain, EEXIST, ENODEV, ENOENT, isErrno } from "../../sys/error.ts";
import type { Fd } from "../../sys/fd.ts";
import {
  addAddress,
  addresses,
  addVeth,
  allMulticast,
  defaultRoute,
  deleteAltnames,
  deleteLink,
  downLink,
  getLink,
  ipLink,
  type Link,
  linkExists,
  linkNames,
  linkOf,
  links,
  macOfIndex,
  moveLink,
  renameLink,
  setGroup,
  upLink,
  withoutIpv6,
} from "../../sys/link.ts";
import {
  type Message,
  NETLINK_GENERIC,
  NETLINK_NETFILTER,
  NETLINK_ROUTE,
  type Netlink,
} from "../../sys/netlink.ts";
import { exists, removal, remove, replace, replacement } from "../../sys/nft.ts";
import { moveRadio, radioOf, wireless } from "../../sys/nl80211.ts";
import { type ContainerConfig, isInterface, parseMac } from "../config.ts";
import { randomMac } from "../containers.ts";
import type { Owned } from "../ledger.ts";
import type { Host, Start } from "../module.ts";
import { cardFence, fence, fenceOf, GROUP, ROUTER, routerRules } from "./fences.ts";

/** Subnets 172.23.0.0/24 to 172.23.254.0/24, one for each pair of links. */
const SUBNETS = 255;
const ARPHRD_ETHER = 1; // linux/if_arp.h

type VnetConfig = ContainerConfig["vnet_configs"][number];

/** A link between the router, where it is called `name`, and a container, where it is `inside`; 172.23.<subnet>.1 and
 * .2. */
export interface Veth {
  readonly kind: "veth";
  readonly subnet: number;
  readonly name: string;
  readonly inside: string;
  readonly mac: string;
  /** Of every other end of it: by this we know it again. */
  readonly gatewayMac: string;
  readonly configure: boolean;
}

/** A link that was there before us, lent to a container. */
export interface Nic {
  readonly kind: "nic";
  readonly uuid: string;
  /** Its name with us. */
  readonly name: string;
  /** The one it came with if it is hardware. */
  readonly mac: string;
  /** The device it is the link of; "" for a virtual link. */
  readonly parent: string;
  /** Index of its radio if it is wireless. */
  readonly wiphy?: number;
}

/** A link that was there before us and stays with us: a container has another that passes for it, and hears of what
 * comes in what the peers say that it was told of (mac_filter). */
export interface Card {
  readonly kind: "card";
  readonly uuid: string;
  readonly name: string;
  readonly mac: string;
  readonly parent: string;
  /** Of our end of the container's link. */
  readonly gatewayMac: string;
}

/** What the ledger knows of the network. "network" stands for all we hold of one container: acquired first, so that
 * it is released last. */
export type NetworkResource = { readonly kind: "network"; readonly uuid: string } | Veth | Nic | Card;

/** A network namespace with our rules in it. */
interface Place extends Disposable {
  readonly netns: Fd;
  /** What opens sockets there. */
  readonly where: Where;
  readonly route: Netlink;
  readonly filter: Netlink;
  /** Our rules are there. */
  ruled: boolean;
}

/** A container that is up, as the network sees it. */
interface Guest {
  readonly uuid: string;
  readonly name: string;
  readonly isC0: boolean;
  readonly hosted: boolean;
  /** Held while it is up, so that links can be fetched back when its last process is gone. */
  readonly netns: Fd;
  /** core0's namespace as a router. */
  readonly place: Place | undefined;
  veths: readonly Veth[];
  /** core0's namespace that its links lead to by now. */
  joined: Place | undefined;
  /** One after the other leads them there. */
  joining: Promise<void>;
  nics: Nic[];
  cards: Card[];
  /** Names and addresses of links that are to come to it when they appear, each with the only peers that it may hear
   * there, if that was asked for. */
  readonly claims: Map<string, readonly string[] | undefined>;
  readonly owned: Owned;
  log(line: string): void;
}

/** The part of a start that concerns the network. */
export type Newcomer = Pick<Start, "uuid" | "name" | "isC0" | "config" | "owned" | "log"> & {
  readonly host: Pick<Host, "hosted" | "run">;
};

/** Whose each subnet is: the link's gatewayMac. */
const subnets = new Map<number, string>();
const guests = new Map<string, Guest>();
let ours: Place | undefined;

function place(netns: Fd, where: Where): Place {
  const [route, filter] = netlinkIn(where, NETLINK_ROUTE, NETLINK_NETFILTER) as [Netlink, Netlink];
  return {
    ...{ netns, where, route, filter, ruled: false },
    [Symbol.dispose]() {
      route[Symbol.dispose]();
      filter[Symbol.dispose]();
    },
  };
}
const here = (): Place => {
  ours ??= place(netnsOf("self"), undefined);
  return ours;
};
/** A socket of its own for what is done aside. */
const routeIn = (where: Where): Netlink => netlinkIn(where, NETLINK_ROUTE)[0]!;
/** Sockets for what is done to nf_tables aside, in our namespace. They are kept: when one is closed, the kernel waits
 * until all that was removed is gone, 10 ms and more (nft_rcv_nl_event() of Linux). */
const idle: Netlink[] = [];
function idleFilter(): Disposable & { readonly socket: Netlink } {
  const socket = idle.pop() ?? netlinkIn(undefined, NETLINK_NETFILTER)[0]!;
  return { socket, [Symbol.dispose]: () => void idle.push(socket) };
}
const core0 = (): Guest | undefined => [...guests.values()].find((g) => g.isC0);

/** The indexes of the ends, each in its namespace: chosen by us, so that all of connect() is known beforehand; far
 * from the small numbers that the kernel gives. Those of a pair differ: only then does the kernel's link watcher take
 * note of the carrier at once, else within a second (linkwatch_urgent_event() of Linux). */
const innerIndex = (v: Veth): number => 10_000 + v.subnet;
/** Our end of the container's link; core0's end of the pair that leads there. */
const outerIndex = (v: { readonly subnet: number }): number => 20_000 + v.subnet;
/** Our end of the pair that leads to core0. */
const onwardIndex = (v: Veth): number => 30_000 + v.subnet;
/** Their names with us, where we are not the router. */
const outerName = (v: Veth): string => `c_${v.subnet}`;
const onwardName = (v: Veth): string => `r_${v.subnet}`;
/** Does it lead on to core0? */
const leadsOn = (g: { isC0: boolean; hosted: boolean }): boolean => !g.isC0 && !g.hosted;

const gateway = (v: Veth): string => `172.23.${v.subnet}.1`;
const guestAddress = (v: Veth): string => `172.23.${v.subnet}.2`;

// --- names, addresses --------------------------------------------------------

/** Masked at use: not a multicast address, locally administered (IEEE 802). "" and what is none: a random one. */
export function usableMac(text: string): string {
  const mac = (parseMac(text) ? text : randomMac()).toLowerCase();
  const first = (Number.parseInt(mac.slice(0, 2), 16) & 0xfe) | 2;
  return first.toString(16).padStart(2, "0") + mac.slice(2);
}

function checkName(name: string): string {
  if (!isInterface(name)) throw new Error(`${JSON.stringify(name)} is no name of a link`);
  return name;
}

/** One whose links nobody has: another cmld may share our network namespace. */
function freeSubnet(): number {
  const names = linkNames();
  const taken = (i: number): boolean =>
    subnets.has(i) || linkExists(outerIndex({ subnet: i })) || names.has(`r_${i}`) || names.has(`c_${i}`);
  for (let i = 0; i < SUBNETS; i++) if (!taken(i)) return i;
  throw new Error(`all ${SUBNETS} subnets are in use`);
}

/** Choose names and addresses and write them down; nothing is made yet. */
export function plan(s: Newcomer): Veth[] {
  if (!s.config.netns) return [];
  s.owned.acquire({ kind: "network", uuid: s.uuid }, () => {});
  if (s.config.loopback_only) return [];
  const link = (if_name: string, if_rootns_name = ""): VnetConfig => ({
    if_name,
    if_rootns_name,
    if_mac: "",
    configure: true,
  });
  const configured = s.config.vnet_configs;
  const wanted = s.isC0 ? [link("cml", "uplink")] : configured.length > 0 ? configured : [link("host0")];
  const veths: Veth[] = [];
  for (const w of wanted) {
    const subnet = freeSubnet();
    const veth: Veth = {
      kind: "veth",
      subnet,
      name: checkName(w.if_rootns_name || `r_${subnet}`),
      inside: checkName(w.if_name),
      mac: usableMac(w.if_mac),
      gatewayMac: usableMac(""),
      configure: w.configure,
    };
    if (veths.some((v) => v.inside === veth.inside)) throw new Error(`two links named ${veth.inside}`);
    s.owned.acquire(veth, () => subnets.set(subnet, veth.gatewayMac));
    veths.push(veth);
  }
  return veths;
}

/** What the configuration shows of the links while the container is up; undefined if it is not. */
export function vnets(uuid: string): VnetConfig[] | undefined {
  return guests.get(uuid)?.veths.map((v) => ({
    if_name: v.inside,
    configure: v.configure,
    if_rootns_name: v.name,
    if_mac: v.mac,
  }));
}

// --- rules -------------------------------------------------------------------

/** As the fence of `v` is to be now. */
const fenceNow = (g: Guest, v: Veth) =>
  fence(
    { ...v, addresses: v.configure ? { guest: guestAddress(v), gateway: gateway(v) } : undefined },
    { name: leadsOn(g) ? outerName(v) : v.name, index: outerIndex(v) },
    leadsOn(g) ? g.joined && { name: onwardName(v), index: onwardIndex(v) } : "here",
  );
/** core0's own link needs none: we are at its other end ourselves. */
const fencesOf = (g: Guest) => (g.isC0 ? [] : g.veths.map((v) => fenceNow(g, v)));

const FORWARD = "/proc/sys/net/ipv4/ip_forward";

/** Our own namespace: closed to containers, and in hosted mode the router. */
function ruleOurs(host: Newcomer["host"]): void {
  const p = here();
  if (p.ruled && exists(p.filter, ROUTER)) return;
  replace(p.filter, routerRules(true));
  // A firewall that is loaded again flushes everything.
  if (p.ruled) for (const g of guests.values()) for (const f of fencesOf(g)) replace(p.filter, f);
  if (host.hosted) {
    const before = readFileSync(FORWARD, "utf8").trim();
    if (before !== "1") {
      writeFileSync(join(host.run, "ip_forward"), before); // for leave(), perhaps another cmld's
      writeFileSync(FORWARD, "1");
    }
  }
  p.ruled = true;
}

/** Take back what we did to our own namespace. For the end of a cmld that leaves no container behind, here or with
 * another cmld. */
export function leave(host: Newcomer["host"]): void {
  if (guests.size > 0 || links(here().route).some((l) => l.group === GROUP)) return;
  remove(here().filter, ROUTER);
  here().ruled = false;
  const saved = join(host.run, "ip_forward");
  if (!existsSync(saved)) return;
  writeFileSync(FORWARD, readFileSync(saved));
  rmSync(saved);
}

// --- a container comes up ----------------------------------------------------

/** The child waits at gate one: nobody is in its network namespace yet. */
export async function connectNew(s: Newcomer, pid: number, veths: readonly Veth[]): Promise<void> {
  const g = enter(s, pid, veths);
  if (g.place) {
    replace(g.place.filter, routerRules(false));
    sysctlIn(g.netns, "ipv4/ip_forward", "1");
  }
  if (veths.length > 0) {
    ruleOurs(s.host);
    await connect(g);
    await leadOn(g);
  }
  if (g.isC0) return await inTurn(() => lendFree(g));
  for (const { netif } of s.config.net_ifaces) {
    if (!(await inTurn(() => claim(g, netif)))) g.log(`network interface ${netif} is not there`);
  }
}

/** A container of an earlier cmld: what it has is in its ledger. */
export async function adopt(s: Newcomer, pid: number): Promise<void> {
  // Of a link that was just being given another number both may be there: the last one counts.
  const veths = [...new Map(s.owned.all("veth").map((v) => [v.inside, v])).values()];
  for (const v of veths) subnets.set(v.subnet, v.gatewayMac);
  if (veths.length > 0) ruleOurs(s.host);
  const g = enter(s, pid, veths);
  if (g.place) replace(g.place.filter, routerRules(false));
  if (leadsOn(g)) g.joined = alreadyJoined(g);
  for (const f of fencesOf(g)) replace(here().filter, f);
  const nics = s.owned.all("nic");
  if (nics.length > 0) {
    const inside = inNetns(g, (n) => links(n));
    g.nics = nics.filter((nic) => inside.some((l) => isNic(l, nic))); // others were given back meanwhile
  }
  g.cards = s.owned.all("card");
  if (g.isC0) await inTurn(() => lendFree(g));
}

/** core0 gets the hardware that nobody else has. */
async function lendFree(c0: Guest): Promise<void> {
  for (const l of links(here().route))
    if (isPhysical(l) && l.group !== GROUP) await lend(c0, here(), l, nameNic(l));
}

let turn: Promise<unknown> = Promise.resolve();
/** Who has a link changes in one place at a time: a container that starts, another that ends and a card that is
 * plugged in meanwhile find each other's work done. */
function inTurn<T>(work: () => T | Promise<T>): Promise<T> {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

function enter(s: Newcomer, pid: number, veths: readonly Veth[]): Guest {
  const netns = netnsOf(pid);
  let router: Place | undefined;
  try {
    if (s.isC0) router = place(netns, netns);
  } catch (e) {
    netns.close();
    throw e;
  }
  const { uuid, name, isC0, owned, log } = s;
  const g: Guest = {
    uuid,
    name,
    isC0,
    hosted: s.host.hosted,
    netns,
    place: router,
    veths,
    joined: undefined,
    joining: Promise.resolve(),
    nics: [],
    cards: [],
    claims: new Map(
      s.config.net_ifaces.map((n) => [n.netif, n.mac_filter.length > 0 ? n.mac_filter : undefined]),
    ),
    owned,
    log,
  };
  guests.set(uuid, g);
  return g;
}

/** A socket in the container's namespace for the length of one call. */
function inNetns<T>(g: Guest, use: (n: Netlink) => T): T {
  if (g.place) return use(g.place.route);
  using n = routeIn(g.netns);
  return use(n);
}

/** Its number has become somebody else's: another cmld was faster. */
function renumber(g: Guest, v: Veth): Veth {
  const subnet = freeSubnet();
  const veth = { ...v, subnet, name: v.name === `r_${v.subnet}` ? `r_${subnet}` : v.name };
  g.owned.acquire(veth, () => subnets.set(subnet, veth.gatewayMac));
  g.owned.forget(v);
  subnets.delete(v.subnet);
  return veth;
}

/** The pair whose other end is in the container. */
function pairOf(g: Guest, v: Veth): Message {
  const group = g.isC0 ? { group: GROUP } : {}; // both ends of core0's link are in a router
  return addVeth(
    { name: leadsOn(g) ? outerName(v) : v.name, index: outerIndex(v), group: GROUP, mac: v.gatewayMac },
    { name: v.inside, index: innerIndex(v), netns: g.netns.n, mac: v.mac, ...group },
  );
}

const ipv6 = (): boolean => existsSync("/proc/sys/net/ipv6");
/** A link that is used by us alone, or for IPv4 only. */
const raise = (index: number): Message[] => [...(ipv6() ? [withoutIpv6(index)] : []), upLink(index)];
/** The router's end of a link, ready for use. */
const routerEnd = (v: Veth): Message[] => [
  ...(ipv6() ? [withoutIpv6(outerIndex(v))] : []),
  addAddress(outerIndex(v), gateway(v), 24),
  upLink(outerIndex(v)),
];

/** Make the container's links. Our side is complete, with its fence, before the container's, and we wait until it can
 * send: when the container runs, its gateway answers. */
async function connect(g: Guest): Promise<void> {
  for (;;) {
    try {
      return await connectNow(g);
    } catch (e) {
      if (!isErrno(e, EEXIST)) throw e;
      for (const v of g.veths) await deleteVeth(v); // what there is of ours; a fence at somebody else's link, too
      const all = links(here().route);
      const taken = new Set([...all.map((l) => l.index), ...all.map((l) => l.name)]);
      const lost = (v: Veth): boolean => taken.has(outerIndex(v)) || taken.has(`r_${v.subnet}`);
      if (!g.veths.some(lost)) throw e;
      g.veths = g.veths.map((v) => (lost(v) ? renumber(g, v) : v));
    }
  }
}

async function connectNow(g: Guest): Promise<void> {
  using route = routeIn(undefined);
  using filter = idleFilter();
  using inside = routeIn(g.netns);
  using carriers = new Carriers(undefined);
  const usable = g.veths.filter((v) => v.configure);
  const first = g.veths[0]?.configure ? g.veths[0] : undefined;
  const answers = await aside(
    { on: route, messages: g.veths.map((v) => pairOf(g, v)) },
    ...fencesOf(g).map((f) => ({ on: filter.socket, messages: replacement(f), atomic: true })),
    {
      on: route,
      messages: [
        ...(leadsOn(g) ? g.veths.flatMap((v) => raise(outerIndex(v))) : usable.flatMap(routerEnd)),
        ...(first && g.isC0 ? [defaultRoute(outerIndex(first), guestAddress(first))] : []),
      ],
    },
    {
      on: inside,
      messages: [
        ...usable.flatMap((v) => [addAddress(innerIndex(v), guestAddress(v), 24), upLink(innerIndex(v))]),
        ...(first && !g.isC0 ? [defaultRoute(innerIndex(first), gateway(first))] : []),
      ],
    },
    { on: route, messages: usable.map((v) => getLink(outerIndex(v))) }, // asking makes Linux 6.8 and later take note
    { on: inside, messages: usable.map((v) => getLink(innerIndex(v))) },
  );
  carriers.note(answers.at(-2)!.map(linkOf));
  await carriers.ready(usable.map(outerIndex));
}

/** Lead the container's links on to core0, if it is there. */
function leadOn(g: Guest): Promise<void> {
  g.joining = g.joining.catch(() => {}).then(() => leadOnNow(g));
  return g.joining;
}

async function leadOnNow(g: Guest): Promise<void> {
  const router = core0()?.place;
  if (!leadsOn(g) || !router || g.joined === router || g.veths.length === 0) return; // routerChanged() comes back to it
  try {
    await leadTo(g, router);
  } catch (e) {
    g.joined = undefined;
    if (core0()?.place === router) throw e; // else it has ended meanwhile
  }
}

async function leadTo(g: Guest, router: Place): Promise<void> {
  using route = routeIn(undefined);
  using filter = idleFilter();
  using theirs = routeIn(router.where);
  using carriers = new Carriers(router.where);
  // Those to a core0 that is gone: the kernel takes its time.
  const old = g.veths.filter((v) => linkExists(onwardIndex(v))).map((v) => deleteLink(onwardIndex(v)));
  if (old.length > 0) await aside({ on: route, messages: old, tolerate: [ENODEV] });
  g.joined = router;
  const usable = g.veths.filter((v) => v.configure);
  const answers = await aside(
    {
      on: route,
      messages: g.veths.map((v) =>
        addVeth(
          { name: onwardName(v), index: onwardIndex(v), group: GROUP, mac: v.gatewayMac },
          { name: v.name, index: outerIndex(v), netns: router.netns.n, mac: v.gatewayMac, group: GROUP },
        ),
      ),
    },
    ...fencesOf(g).map((f) => ({ on: filter.socket, messages: replacement(f), atomic: true })),
    { on: theirs, messages: usable.flatMap(routerEnd) },
    { on: route, messages: g.veths.flatMap((v) => raise(onwardIndex(v))) },
    { on: theirs, messages: usable.map((v) => getLink(outerIndex(v))) },
  );
  carriers.note(answers.at(-1)!.map(linkOf));
  await carriers.ready(usable.map(outerIndex));
}

/** Where the links of a container that was adopted lead: an earlier cmld may have ended on the way. */
function alreadyJoined(g: Guest): Place | undefined {
  const router = core0()?.place;
  if (!router) return undefined;
  const up = (all: readonly Link[], index: number): boolean => all.some((l) => l.index === index && l.up);
  const [theirs, ours] = [links(router.route), links(here().route)];
  const whole = (v: Veth): boolean =>
    up(ours, onwardIndex(v)) &&
    theirs.some((l) => l.index === outerIndex(v) && l.mac === v.gatewayMac && (l.up || !v.configure));
  return g.veths.every(whole) ? router : undefined;
}

/** core0 is up (again): lead the links of those there that lead nowhere, or to an earlier core0. */
export async function routerChanged(): Promise<void> {
  for (const g of [...guests.values()])
    await leadOn(g).catch((e) => g.log(`connecting to the router: ${chain(e)}`));
}

// --- links that were there before us -------------------------------------------

/** Real or emulated hardware, wireless included. */
const isPhysical = (l: Link): boolean => l.parent !== "" && l.type === ARPHRD_ETHER;
const macOf = (l: Link): string => (l.permanentMac === "" ? l.mac : l.permanentMac);
/** A container can give any link any name and address, but not another device. */
const isNic = (l: Link, nic: Pick<Nic, "parent" | "mac">): boolean =>
  l.parent === nic.parent && macOf(l) === nic.mac;

/** The radio of a link, if it is wireless; sysfs shows only those that are with us. */
function radio(from: Place, l: Link): { wiphy?: number } {
  if (!wireless()) return {};
  const [socket] = netlinkIn(from.where, NETLINK_GENERIC);
  using generic = socket!;
  const wiphy = radioOf(generic, l.index);
  return wiphy === undefined ? {} : { wiphy };
}

/** Names that physical links have had, by address: one that is plugged in again gets its own, unless it is taken. */
const remembered = new Map<string, string>();
const REMEMBERED_MAX = 1024;

/** The name that a physical link has with us: the same for as long as somebody has it. */
function nameNic(l: Link): string {
  const mac = macOf(l);
  const note = (name: string): string => {
    remembered.delete(mac);
    if (remembered.size >= REMEMBERED_MAX) remembered.delete(remembered.keys().next().value!);
    remembered.set(mac, name);
    return name;
  };
  if (/^cml(eth|wlan)\d+$/.test(l.name)) return note(l.name);
  const taken = new Set([
    ...links(here().route).map((o) => o.name),
    ...[...guests.values()].flatMap((g) => g.nics.map((n) => n.name)),
  ]);
  const before = remembered.get(mac);
  if (before !== undefined && !taken.has(before)) return before;
  const reserved = new Set(remembered.values());
  const prefix = radio(here(), l).wiphy === undefined ? "cmleth" : "cmlwlan";
  for (let i = 0; ; i++) {
    const name = `${prefix}${i}`;
    if (!taken.has(name) && !reserved.has(name)) return note(name);
  }
}

/** Give `g` the link found in `from`, under `name`. */
async function lend(g: Guest, from: Place, l: Link, name: string): Promise<void> {
  const nic: Nic = {
    kind: "nic",
    uuid: g.uuid,
    name,
    mac: macOf(l),
    parent: l.parent,
    ...radio(from, l),
  };
  try {
    await g.owned.acquire(nic, () => move(from, l, nic, g.netns));
  } catch (e) {
    if (!inNetns(g, (n) => links(n)).some((o) => isNic(o, nic))) g.owned.forget(nic);
    throw e;
  }
  g.nics.push(nic);
}

/** Into another namespace, down and under our name for it. */
async function move(from: Place, l: Link, nic: Nic, to: Fd): Promise<void> {
  const clean: Message[] = l.altnames.length > 0 ? [deleteAltnames(l.index, l.altnames)] : [];
  using route = routeIn(from.where);
  if (nic.wiphy === undefined) {
    const messages = [downLink(l.index), ...clean, moveLink(l.index, to.n, nic.name)];
    await aside({ on: route, messages });
    return;
  }
  await aside({ on: route, messages: [downLink(l.index), ...clean, renameLink(l.index, nic.name)] });
  const [socket] = netlinkIn(from.where, NETLINK_GENERIC);
  using generic = socket!;
  await aside({ on: generic, messages: [moveRadio(generic, nic.wiphy, to.n)] });
}

/** Give `g` the link found in `from`, or one that passes for it. `called`: other names that it was asked for by. */
async function give(g: Guest, from: Place, l: Link, name: string, ...called: string[]): Promise<void> {
  const mac = macOf(l);
  const asked = [...g.claims].find(([which]) =>
    [name, ...called].some((n) => answersTo(which)({ name: n, mac })),
  );
  if (asked?.[1]) await attachCard(g, from, l, name, asked[1]);
  else await lend(g, from, l, name);
}

/** Names of the link that passes for a card: our end and the container's. */
const cardLink = (card: Pick<Card, "name">) => ({
  outer: `r_${card.name}`.slice(0, IFNAME_MAX),
  inside: `c_${card.name}`.slice(0, IFNAME_MAX),
});
const IFNAME_MAX = 15; // linux/if.h: IFNAMSIZ less its NUL

async function attachCard(
  g: Guest,
  from: Place,
  l: Link,
  name: string,
  peers: readonly string[],
): Promise<void> {
  const { uuid } = g;
  const card: Card = { kind: "card", uuid, name, mac: macOf(l), parent: l.parent, gatewayMac: usableMac("") };
  try {
    await g.owned.acquire(card, () => makeCard(g, from, l, card, peers));
  } catch (e) {
    await dropCard(card);
    g.owned.forget(card);
    throw e;
  }
  g.cards.push(card);
}

async function makeCard(g: Guest, from: Place, l: Link, card: Card, peers: readonly string[]): Promise<void> {
  const nic: Nic = { ...card, kind: "nic", ...radio(from, l) };
  if (from !== here()) await move(from, l, nic, here().netns);
  using route = routeIn(undefined);
  using filter = idleFilter();
  const { outer, inside } = cardLink(card);
  const own = links(route).find((o) => isNic(o, card));
  if (!own) throw new Error(`network interface ${card.name} has gone`);
  const [answers] = await aside({
    on: route,
    messages: [
      downLink(own.index),
      renameLink(own.index, card.name),
      setGroup(own.index, GROUP),
      addVeth(
        { name: outer, group: GROUP, mac: card.gatewayMac },
        { name: inside, netns: g.netns.n, mac: own.mac },
      ),
      getLink(outer),
    ],
  });
  const end = linkOf(answers!.at(-1)!);
  const heard = peers.filter(parseMac).map((mac) => mac.toLowerCase()); // the others let nobody in
  const table = cardFence({ ...card, mac: own.mac }, { ...own, name: card.name }, end, heard);
  await aside(
    { on: filter.socket, messages: replacement(table), atomic: true },
    {
      on: route,
      messages: [...raise(end.index), allMulticast(own.index, true), ...raise(own.index)],
    },
  );
}

/** Without its container: the link that passed for it, the fence, what was changed of it. */
async function dropCard(card: Card): Promise<Link | undefined> {
  using route = routeIn(undefined);
  using filter = idleFilter();
  const all = links(route);
  const end = all.find((l) => l.mac === card.gatewayMac && l.name === cardLink(card).outer);
  const own = all.find((l) => isNic(l, card) && l.group === GROUP);
  await aside(
    { on: route, messages: end ? [deleteLink(end.index)] : [], tolerate: [ENODEV] },
    {
      on: route,
      messages: own ? [downLink(own.index), allMulticast(own.index, false), setGroup(own.index, 0)] : [],
      tolerate: [ENODEV],
    },
    { on: filter.socket, messages: removal(fenceOf(card)), atomic: true, tolerate: [ENOENT] },
  );
  return own;
}

/** Its container has it no more: it goes to whoever is next. */
async function takeBack(card: Card): Promise<void> {
  const g = guests.get(card.uuid);
  if (g && !g.cards.some((c) => c.gatewayMac === card.gatewayMac)) return; // taken back already
  const own = await dropCard(card);
  if (g) {
    g.cards = g.cards.filter((c) => c.gatewayMac !== card.gatewayMac);
    g.owned.forget(card);
  }
  const heir = own && heirOf(card, card.parent !== "", g);
  if (own && heir) await give(heir, here(), own, card.name);
}

type Named = { readonly name: string; readonly mac: string };
const answersTo =
  (which: string) =>
  (n: Named): boolean =>
    n.name === which || n.mac === which.toLowerCase();
const claims = (g: Guest, n: Named): boolean => [...g.claims.keys()].some((which) => answersTo(which)(n));
/** The name that we have for a link of ours. */
const nameOf = (l: Link, hosted: boolean): string => (!hosted && isPhysical(l) ? nameNic(l) : l.name);

/** Give `g` the link that is called so or has that address, from us or from core0. False: there is none. */
async function claim(g: Guest, which: string): Promise<boolean> {
  const named = answersTo(which);
  if (g.nics.some(named) || g.cards.some(named)) return true;
  const l = links(here().route).find(
    (o) => o.group !== GROUP && o.type === ARPHRD_ETHER && named({ name: o.name, mac: macOf(o) }),
  );
  if (l) {
    await give(g, here(), l, nameOf(l, g.hosted), l.name);
    return true;
  }
  for (const holder of guests.values()) {
    const refuse = (): never => {
      throw new Error(`network interface ${which} is assigned to ${holder.name}`);
    };
    if (holder.cards.some(named)) refuse();
    const nic = holder.nics.find(named);
    if (!nic || holder === g) continue;
    const held = inNetns(holder, (n) => links(n)).find((o) => isNic(o, nic));
    if (!held) continue; // it has been unplugged
    if (!holder.place) return refuse();
    await give(g, holder.place, held, nic.name);
    lost(holder, nic);
    return true;
  }
  return false;
}

/** `g` has it no more: said when it is somewhere else, so that a crash in between loses nothing. */
function lost(g: Guest, nic: Nic): void {
  g.nics = g.nics.filter((n) => n !== nic);
  g.owned.forget(nic);
}

/** Who gets a link that is free: the container that claims it, or core0 if it is hardware. */
function heirOf(n: Named, physical: boolean, except?: Guest): Guest | undefined {
  const c0 = core0();
  const others = [...guests.values()].filter((g) => g !== except);
  return others.find((g) => claims(g, n)) ?? (physical && c0 !== except ? c0 : undefined);
}

/** Fetch a link back from its container: for whoever is next, or for us. */
async function fetchBack(nic: Nic): Promise<void> {
  const g = guests.get(nic.uuid);
  const mine = g?.nics.find((n) => n.name === nic.name && n.mac === nic.mac);
  if (g && !mine) return; // given back already
  if (g) {
    using opened = g.place ? undefined : place(g.netns, g.netns);
    const from = (g.place ?? opened)!;
    const l = links(from.route).find((o) => isNic(o, nic));
    if (l) {
      const heir = heirOf(nic, nic.parent !== "", g);
      if (heir) await give(heir, from, l, nic.name);
      else await move(from, l, nic, here().netns);
    }
    lost(g, mine!);
    if (l) return;
  }
  // Its namespace is gone: the kernel has put hardware back to us, perhaps under another name.
  const l = links(here().route).find((o) => isNic(o, nic));
  if (!l || l.name === nic.name) return;
  using route = routeIn(undefined);
  await aside({ on: route, messages: [downLink(l.index), renameLink(l.index, nic.name)] });
}

/** Give a running container a link by its name or address. */
export async function assign(uuid: string, which: string): Promise<void> {
  const g = guests.get(uuid);
  if (!g) throw new Error("it has no network namespace of its own, or does not run");
  if (!(await inTurn(() => claim(g, which)))) throw new Error(`network interface ${which} is not there`);
}

/** Take it back; one that is not assigned is no error. It does not come again by itself. */
export async function unassign(uuid: string, which: string): Promise<void> {
  await inTurn(async () => {
    const g = guests.get(uuid);
    const nic = g?.nics.find(answersTo(which)) ?? g?.cards.find(answersTo(which));
    if (!g || !nic) return;
    for (const c of g.claims.keys()) if (answersTo(c)(nic)) g.claims.delete(c);
    await (nic.kind === "nic" ? fetchBack(nic) : takeBack(nic));
  });
}

// --- links that come and go (devices/hotplug.ts) --------------------------------------

/** A link has appeared with us: plugged in, or left behind by somebody. Every start makes virtual ones, which are nobody's
 * unless somebody claims links. */
export function arrived(index: number, virtual: boolean): Promise<void> | undefined {
  if (virtual && ![...guests.values()].some((g) => g.claims.size > 0)) return undefined;
  return inTurn(async () => {
    using route = routeIn(undefined);
    const [answers] = await aside({ on: route, messages: [getLink(index)], tolerate: [ENODEV] });
    if (answers?.[0]) await welcome(linkOf(answers[0]));
  });
}

async function welcome(l: Link): Promise<void> {
  if (l.group === GROUP || l.type !== ARPHRD_ETHER) return;
  const hosted = [...guests.values()].some((g) => g.hosted);
  const name = nameOf(l, hosted);
  const mac = macOf(l);
  const heir = heirOf({ name: l.name, mac }, false) ?? heirOf({ name, mac }, isPhysical(l));
  if (!heir) return;
  try {
    await give(heir, here(), l, name, l.name);
    heir.log(`network interface ${name} (${mac}) has come`);
  } catch (e) {
    if (links(here().route).some((o) => o.index === l.index)) throw e; // else it has gone again
  }
}

/** A device has gone, or its driver: with it the link of it that somebody had. */
export const departed = (device: string): Promise<void> | undefined =>
  [...guests.values()].some((g) => [...g.nics, ...g.cards].some((n) => n.parent === device))
    ? inTurn(() => forgetGone((n) => n.parent === device))
    : undefined;

async function forgetGone(which: (n: { readonly parent: string }) => boolean): Promise<void> {
  for (const g of guests.values()) {
    const ours = g.cards.some(which) ? links(here().route) : [];
    for (const card of g.cards.filter(which)) {
      if (ours.some((l) => isNic(l, card))) continue;
      await takeBack(card);
      g.log(`network interface ${card.name} (${card.mac}) has gone`);
    }
    const asked = g.nics.filter(which);
    if (asked.length === 0) continue;
    const there = inNetns(g, (n) => links(n));
    for (const nic of asked) {
      if (there.some((l) => isNic(l, nic))) continue;
      lost(g, nic);
      g.log(`network interface ${nic.name} (${nic.mac}) has gone`);
    }
  }
}

/** Events were lost: see for ourselves. */
export const lookAround = (): Promise<void> =>
  inTurn(async () => {
    await forgetGone(() => true);
    for (const l of links(here().route)) await welcome(l);
  });

// --- what is there -------------------------------------------------------------

/** The links of a running container, as `ip link` prints them and with addresses as data; none if it has no namespace
 * of its own. */
export function interfaces(uuid: string): { texts: string[]; table: IContainerInterface[] } {
  const g = guests.get(uuid);
  if (!g) return { texts: [], table: [] };
  return inNetns(g, (n) => {
    const [all, everyAddress] = [links(n), addresses(n)];
    const table = all.map(
      (l): IContainerInterface => ({
        name: l.name,
        ...(l.kind !== "" && { kind: l.kind }),
        state: l.state,
        mac: l.mac,
        addresses: everyAddress.filter((a) => a.index === l.index).map((a) => a.address),
        mtu: l.mtu,
        rx_bytes: l.stats.rxBytes,
        tx_bytes: l.stats.txBytes,
        rx_packets: l.stats.rxPackets,
        tx_packets: l.stats.txPackets,
      }),
    );
    return { texts: ipLink(all), table };
  });
}

// --- release -------------------------------------------------------------------

/** Delete our ends of a link and its fence. Their numbers may be another cmld's by now: the address tells. */
async function deleteVeth(v: Veth): Promise<void> {
  using filter = idleFilter();
  const ends = [outerIndex(v), onwardIndex(v)].filter((index) => macOfIndex(index) === v.gatewayMac);
  await Promise.all([
    deleteLinks(ends),
    aside({ on: filter.socket, messages: removal(fenceOf(v)), atomic: true, tolerate: [ENOENT] }),
  ]);
}

/** How the ledger releases what is ours. */
export const networkReleases = {
  network(r: { readonly uuid: string }): void {
    const g = guests.get(r.uuid);
    if (!g) return;
    guests.delete(r.uuid);
    g.place?.[Symbol.dispose]();
    g.netns.close();
  },
  async veth(r: Veth): Promise<void> {
    const ours = (v: Veth): boolean => v.gatewayMac === r.gatewayMac;
    const g = [...guests.values()].find(({ veths }) => veths.some(ours));
    if (g) {
      g.veths = g.veths.filter((v) => !ours(v)); // core0 may come at this moment
      await g.joining.catch(() => {});
    }
    await deleteVeth(r);
    if (subnets.get(r.subnet) === r.gatewayMac) subnets.delete(r.subnet);
  },
  nic: (r: Nic): Promise<void> =>
    inTurn(() => {
      guests.get(r.uuid)?.claims.clear(); // it ends
      return fetchBack(r);
    }),
  card: (r: Card): Promise<void> =>
    inTurn(() => {
      guests.get(r.uuid)?.claims.clear(); // it ends
      return takeBack(r);
    }),
};
