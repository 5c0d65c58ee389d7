// Network links, addresses and routes as netlink messages (rtnetlink(7)), and as `ip link` prints them. Every
// function describes one message; Netlink.do() sends several at once.
import { readFileSync } from "node:fs";
import { close, ioctl, SOCK_DGRAM, socket } from "./calls.ts";
import { Fd } from "./fd.ts";
import { Struct } from "./mem.ts";
import {
  type Attribute,
  attributeList,
  attributes,
  BadReply,
  body,
  type Message,
  type Netlink,
  NLM_F_CREATE,
  NLM_F_EXCL,
  NLM_F_REPLACE,
  numberOf,
  type Reply,
  textOf,
  u32,
} from "./netlink.ts";
import { attempt, now } from "./now.ts";
import type { Op, Reg } from "./op.ts";

// linux/rtnetlink.h
const [RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK] = [16, 17, 18];
const RTM_DELLINKPROP = 109;
const [RTM_NEWADDR, RTM_GETADDR] = [20, 22];
const RTM_NEWROUTE = 24;
const [RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST] = [254, 3, 0, 1];
const [RTA_OIF, RTA_GATEWAY] = [4, 5];
const RTEXT_FILTER_SKIP_STATS = 8; // the long IPv6 ones; a link's own counters always come
// linux/if_link.h
const IFLA_ADDRESS = 1;
const IFLA_BROADCAST = 2;
const IFLA_IFNAME = 3;
const IFLA_MTU = 4;
const IFLA_LINK = 5;
const IFLA_QDISC = 6;
const IFLA_MASTER = 10;
const IFLA_TXQLEN = 13;
const IFLA_OPERSTATE = 16;
const IFLA_LINKMODE = 17;
const IFLA_LINKINFO = 18;
const IFLA_IFALIAS = 20;
const IFLA_STATS64 = 23;
const IFLA_AF_SPEC = 26;
const IFLA_GROUP = 27;
const IFLA_NET_NS_FD = 28;
const IFLA_EXT_MASK = 29;
const IFLA_LINK_NETNSID = 37;
const IFLA_PROP_LIST = 52;
const IFLA_ALT_IFNAME = 53;
const IFLA_PERM_ADDRESS = 54;
const IFLA_PARENT_DEV_NAME = 56;
const [IFLA_INFO_KIND, IFLA_INFO_DATA] = [1, 2];
const IFLA_INET6_ADDR_GEN_MODE = 8;
const IN6_ADDR_GEN_MODE_NONE = 1;
const VETH_INFO_PEER = 1; // linux/veth.h
const [IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST] = [1, 2, 4]; // linux/if_addr.h
const [AF_UNSPEC, AF_INET, AF_INET6] = [0, 2, 10];
const [ARPHRD_ETHER, ARPHRD_LOOPBACK, ARPHRD_NONE] = [1, 772, 0xfffe]; // linux/if_arp.h

// linux/if.h
const IFF_UP = 1;
const IFF_RUNNING = 0x40;
const IFF_ALLMULTI = 0x200;
/** In the order in which `ip link` prints them. */
const FLAGS: readonly (readonly [string, number])[] = [
  ["LOOPBACK", 8],
  ["BROADCAST", 2],
  ["POINTOPOINT", 0x10],
  ["MULTICAST", 0x1000],
  ["NOARP", 0x80],
  ["ALLMULTI", IFF_ALLMULTI],
  ["PROMISC", 0x100],
  ["MASTER", 0x400],
  ["SLAVE", 0x800],
  ["DEBUG", 4],
  ["DYNAMIC", 0x8000],
  ["AUTOMEDIA", 0x4000],
  ["PORTSEL", 0x2000],
  ["NOTRAILERS", 0x20],
  ["UP", IFF_UP],
  ["LOWER_UP", 0x10000],
  ["DORMANT", 0x20000],
  ["ECHO", 0x40000],
];
const OPERSTATES = ["UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"];

/** Links that one listing may have: a container can make as many as it likes. */
export const LINKS_MAX = 1024;

export interface Link {
  readonly index: number;
  readonly name: string;
  /** ARPHRD_*: 1 is Ethernet, 772 loopback. */
  readonly type: number;
  readonly flags: number;
  readonly up: boolean;
  readonly mtu: number;
  /** "02:00:00:00:00:01", "" if it has none. */
  readonly mac: string;
  readonly broadcast: string;
  readonly qdisc: string;
  readonly state: string;
  readonly mode: string;
  readonly group: number;
  readonly queue: number;
  /** Index of the bridge it is a port of, 0 if none. */
  readonly master: number;
  /** Index of its other end or lower link: in the namespace `netnsid` if that is set; undefined if it has none. */
  readonly peer: number | undefined;
  readonly netnsid: number | undefined;
  /** "veth", "bridge" …, "" for hardware. */
  readonly kind: string;
  readonly alias: string;
  readonly altnames: readonly string[];
  /** The device it is the link of ("0000:00:03.0", "virtio0"), "" for a virtual link. Nobody can forge it. */
  readonly parent: string;
  /** The MAC that hardware came with, "" if it has none: it stays when somebody sets another. */
  readonly permanentMac: string;
  readonly stats: {
    readonly rxBytes: number;
    readonly txBytes: number;
    readonly rxPackets: number;
    readonly txPackets: number;
  };
}

/** By its index, or by name. */
export type Which = number | string;

const [IFINFOMSG, IFADDRMSG] = [16, 8]; // sizeof
function ifinfomsg(index: number, flags = 0, change = 0): Buffer {
  const b = Buffer.alloc(IFINFOMSG);
  b[0] = AF_UNSPEC;
  b.writeInt32LE(index, 4);
  b.writeUInt32LE(flags, 8);
  b.writeUInt32LE(change, 12);
  return b;
}
const linkMessage = (
  type: number,
  flags: number,
  which: Which,
  up: boolean | undefined,
  list: readonly Attribute[],
  what: string,
): Message => ({
  type,
  flags,
  what,
  body: body(
    ifinfomsg(typeof which === "number" ? which : 0, up ? IFF_UP : 0, up === undefined ? 0 : IFF_UP),
    typeof which === "string" ? [[IFLA_IFNAME, which], ...list] : list,
  ),
});

/** "aa:bb:cc:dd:ee:ff" as six bytes. */
export function macBytes(mac: string): Uint8Array {
  if (!/^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(mac))
    throw new Error(`not a MAC address: ${JSON.stringify(mac)}`);
  return new Uint8Array(mac.split(":").map((h) => Number.parseInt(h, 16)));
}
const macText = (b: Uint8Array | undefined): string =>
  b ? Buffer.from(b).toString("hex").replace(/..\B/g, "$&:") : "";

/** "172.23.0.1" as four bytes. */
export function ipv4(address: string): Uint8Array {
  const parts = address.split(".").map(Number);
  if (parts.length !== 4 || parts.some((n) => !Number.isInteger(n) || n < 0 || n > 255))
    throw new Error(`not an IPv4 address: ${JSON.stringify(address)}`);
  return new Uint8Array(parts);
}

/** One end of a veth pair. */
export interface VethEnd {
  readonly name: string;
  /** Descriptor of the network namespace it is made in; default: the socket's. */
  readonly netns?: number;
  readonly mac?: string;
  /** Device group: rules can match it (nft iifgroup). */
  readonly group?: number;
  /** Its index, if the caller chooses it: for both ends or for none. */
  readonly index?: number;
}
const endAttributes = (e: VethEnd): Attribute[] => [
  ...(e.netns === undefined ? [] : [[IFLA_NET_NS_FD, u32(e.netns)] as const]),
  ...(e.mac === undefined ? [] : [[IFLA_ADDRESS, macBytes(e.mac)] as const]),
  ...(e.group === undefined ? [] : [[IFLA_GROUP, u32(e.group)] as const]),
];

/** Both ends at once, each in its place with its final name. */
export const addVeth = (end: VethEnd, peer: VethEnd): Message =>
  linkMessage(
    RTM_NEWLINK,
    NLM_F_CREATE | NLM_F_EXCL,
    end.index ?? 0,
    undefined,
    [
      [IFLA_IFNAME, end.name],
      ...endAttributes(end),
      [
        IFLA_LINKINFO,
        [
          [IFLA_INFO_KIND, "veth"],
          [
            IFLA_INFO_DATA,
            [
              [
                VETH_INFO_PEER,
                body(ifinfomsg(peer.index ?? 0), [[IFLA_IFNAME, peer.name], ...endAttributes(peer)]),
              ],
            ],
          ],
        ],
      ],
    ],
    `link add ${end.name} type veth peer ${peer.name}`,
  );

export const deleteLink = (which: Which): Message =>
  linkMessage(RTM_DELLINK, 0, which, undefined, [], `link delete ${which}`);

const [SIOCGIFNAME, SIOCGIFHWADDR, SIOCSIFFLAGS] = [0x8910, 0x8927, 0x8914]; // linux/sockios.h
const IFREQ = 40; // sizeof(struct ifreq)

/** Is there a link with this index in our network namespace? netdevice(7): takes no lock, unlike rtnetlink. */
export function linkExists(index: number): boolean {
  using any = new Fd(now(socket(AF_INET, SOCK_DGRAM)));
  return attempt(ioctl(any.n, SIOCGIFNAME, new Struct(IFREQ).skip(16).i32(index).bytes)) >= 0;
}

/** The names of all links there (proc_net(5)). Asked for one that is not there, SIOCGIFINDEX has the kernel execute modprobe
 * twice, and waits for it (dev_load() of Linux). */
export const linkNames = (): Set<string> =>
  new Set(
    readFileSync("/proc/self/net/dev", "latin1")
      .match(/^ *\S+(?=:)/gm)
      ?.map((name) => name.trim()),
  );

/** The address of the link with this index in our network namespace, if there is one; no lock either. */
export function macOfIndex(index: number): string | undefined {
  using any = new Fd(now(socket(AF_INET, SOCK_DGRAM)));
  const ifreq = new Struct(IFREQ).skip(16).i32(index).bytes;
  if (attempt(ioctl(any.n, SIOCGIFNAME, ifreq)) < 0) return undefined;
  if (attempt(ioctl(any.n, SIOCGIFHWADDR, ifreq)) < 0) return undefined; // gone in between
  const mac = ifreq.subarray(18, 24); // after the name a struct sockaddr: its family, then the address
  return [...mac].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** Set lo up in the caller's network namespace, for a child that has no netlink: netdevice(7). */
export function raiseLoopback(save: Reg): Op[] {
  const ifreq = new Struct(IFREQ).raw(Buffer.from("lo")).skip(14).u16(IFF_UP).bytes;
  return [
    socket(AF_INET, SOCK_DGRAM, 0, save),
    ioctl(save, SIOCSIFFLAGS, { data: ifreq, text: '{"lo", IFF_UP}' }),
    close(save),
  ];
}

export const upLink = (which: Which): Message =>
  linkMessage(RTM_NEWLINK, 0, which, true, [], `link set ${which} up`);
export const downLink = (which: Which): Message =>
  linkMessage(RTM_NEWLINK, 0, which, false, [], `link set ${which} down`);

/** Whether it hears all multicast frames, not only those of groups that somebody here has joined. */
export const allMulticast = (index: number, on: boolean): Message => ({
  type: RTM_NEWLINK,
  flags: 0,
  what: `link set ${index} allmulticast ${on ? "on" : "off"}`,
  body: body(ifinfomsg(index, on ? IFF_ALLMULTI : 0, IFF_ALLMULTI), []),
});

/** Only a link that is down can be renamed (before Linux 6.3). */
export const renameLink = (index: number, name: string): Message =>
  linkMessage(RTM_NEWLINK, 0, index, undefined, [[IFLA_IFNAME, name]], `link set ${index} name ${name}`);

export const deleteAltnames = (index: number, names: readonly string[]): Message =>
  linkMessage(
    RTM_DELLINKPROP,
    0,
    index,
    undefined,
    [[IFLA_PROP_LIST, names.map((name): Attribute => [IFLA_ALT_IFNAME, name])]],
    `link property del dev ${index} altname ${names.join(" ")}`,
  );

export const setGroup = (index: number, group: number): Message =>
  linkMessage(
    RTM_NEWLINK,
    0,
    index,
    undefined,
    [[IFLA_GROUP, u32(group)]],
    `link set ${index} group ${group}`,
  );

/** Into the network namespace open as `netns`, under `name` if one is given. */
export const moveLink = (index: number, netns: number, name?: string): Message =>
  linkMessage(
    RTM_NEWLINK,
    0,
    index,
    undefined,
    [[IFLA_NET_NS_FD, u32(netns)], ...(name === undefined ? [] : [[IFLA_IFNAME, name] as const])],
    `link set ${index} netns ${netns}${name === undefined ? "" : ` name ${name}`}`,
  );

/** No IPv6 address of its own: the link then speaks none unless somebody gives it one. */
export const withoutIpv6 = (which: Which): Message =>
  linkMessage(
    RTM_NEWLINK,
    0,
    which,
    undefined,
    [[IFLA_AF_SPEC, [[AF_INET6, [[IFLA_INET6_ADDR_GEN_MODE, new Uint8Array([IN6_ADDR_GEN_MODE_NONE])]]]]]],
    `link set ${which} addrgenmode none`,
  );

export const getLink = (which: Which): Message =>
  linkMessage(
    RTM_GETLINK,
    0,
    which,
    undefined,
    [[IFLA_EXT_MASK, u32(RTEXT_FILTER_SKIP_STATS)]],
    `link show ${which}`,
  );

/** Add `address`/`prefix` to the link, with the range's last address as broadcast. */
export function addAddress(index: number, address: string, prefix: number): Message {
  const bytes = ipv4(address);
  const fixed = Buffer.from([AF_INET, prefix, 0, RT_SCOPE_UNIVERSE, 0, 0, 0, 0]);
  fixed.writeUInt32LE(index, 4);
  const broadcast = Buffer.from(bytes);
  broadcast.writeUInt32BE(
    (broadcast.readUInt32BE() | (prefix === 0 ? 0xffffffff : 2 ** (32 - prefix) - 1)) >>> 0,
  );
  return {
    type: RTM_NEWADDR,
    flags: NLM_F_CREATE | NLM_F_REPLACE,
    what: `addr replace ${address}/${prefix} dev ${index}`,
    body: body(fixed, [
      [IFA_LOCAL, bytes],
      [IFA_ADDRESS, bytes],
      [IFA_BROADCAST, broadcast],
    ]),
  };
}

/** `ip route replace default via GATEWAY`. */
export const defaultRoute = (index: number, gateway: string): Message => ({
  type: RTM_NEWROUTE,
  flags: NLM_F_CREATE | NLM_F_REPLACE,
  what: `route replace default via ${gateway} dev ${index}`,
  body: body(
    Buffer.from([AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0, 0, 0, 0]),
    [
      [RTA_GATEWAY, ipv4(gateway)],
      [RTA_OIF, u32(index)],
    ],
  ),
});

/** The links of the socket's network namespace. */
export function links(n: Netlink): Link[] {
  const mask: Attribute[] = [[IFLA_EXT_MASK, u32(RTEXT_FILTER_SKIP_STATS)]];
  const replies = n.dump(linkMessage(RTM_GETLINK, 0, 0, undefined, mask, "link show"));
  if (replies.length > LINKS_MAX) throw new Error(`${replies.length} links, at most ${LINKS_MAX} are listed`);
  return replies.map(linkOf);
}

/** The IPv4 and IPv6 addresses there: "172.23.0.2/24" by the link's index. */
export function addresses(n: Netlink): Address[] {
  const replies = n.dump({ type: RTM_GETADDR, body: new Uint8Array(8), what: "addr show" });
  if (replies.length > LINKS_MAX)
    throw new Error(`${replies.length} addresses, at most ${LINKS_MAX} are listed`);
  return replies.map(addressOf);
}

/** An address of the link with this index, "172.23.0.2/24". */
export interface Address {
  readonly index: number;
  readonly address: string;
}

/** The address that an RTM_NEWADDR message describes. */
export function addressOf({ body: b }: Reply): Address {
  if (b.length < IFADDRMSG) throw new BadReply(`an address in ${b.length} bytes`);
  const list = attributes(b.subarray(IFADDRMSG));
  const bytes = list.get(IFA_LOCAL) ?? list.get(IFA_ADDRESS) ?? new Uint8Array(4);
  return { index: numberOf(b.subarray(4, IFADDRMSG)), address: `${ipText(bytes)}/${b[1]}` };
}

function ipText(b: Uint8Array): string {
  if (b.length === 4) return b.join(".");
  const words = Array.from({ length: 8 }, (_, i) => ((b[2 * i]! << 8) | b[2 * i + 1]!).toString(16)).join(
    ":",
  );
  // RFC 5952: the longest run of two or more zero words becomes "::".
  const longest = words.match(/\b0(:0)+\b/g)?.reduce((a, z) => (z.length > a.length ? z : a), "");
  return longest ? words.replace(new RegExp(`(^|:)${longest}(:|$)`), "::") : words;
}

/** The link that an RTM_NEWLINK message describes. */
export function linkOf(reply: Reply): Link {
  const b = reply.body;
  if (b.length < IFINFOMSG) throw new BadReply(`a link in ${b.length} bytes`);
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const a = attributes(b.subarray(IFINFOMSG));
  const flags = view.getUint32(8, true);
  const stats = a.get(IFLA_STATS64);
  const count = stats && new DataView(stats.buffer, stats.byteOffset, stats.byteLength);
  const counter = (i: number): number =>
    count && count.byteLength >= 32 ? Number(count.getBigUint64(8 * i, true)) : 0;
  return {
    index: view.getInt32(4, true),
    name: textOf(a.get(IFLA_IFNAME)),
    type: view.getUint16(2, true),
    flags,
    up: (flags & IFF_UP) !== 0,
    mtu: numberOf(a.get(IFLA_MTU)),
    mac: macText(a.get(IFLA_ADDRESS)),
    broadcast: macText(a.get(IFLA_BROADCAST)),
    qdisc: textOf(a.get(IFLA_QDISC)),
    state: OPERSTATES[numberOf(a.get(IFLA_OPERSTATE))] ?? "UNKNOWN",
    mode: numberOf(a.get(IFLA_LINKMODE)) === 1 ? "DORMANT" : "DEFAULT",
    group: numberOf(a.get(IFLA_GROUP)),
    queue: numberOf(a.get(IFLA_TXQLEN)),
    master: numberOf(a.get(IFLA_MASTER)),
    peer: a.has(IFLA_LINK) ? numberOf(a.get(IFLA_LINK)) : undefined,
    netnsid: a.has(IFLA_LINK_NETNSID) ? numberOf(a.get(IFLA_LINK_NETNSID)) | 0 : undefined,
    kind: textOf(attributes(a.get(IFLA_LINKINFO) ?? new Uint8Array(0)).get(IFLA_INFO_KIND)),
    alias: textOf(a.get(IFLA_IFALIAS)),
    altnames: attributeList(a.get(IFLA_PROP_LIST) ?? new Uint8Array(0))
      .filter(([type]) => type === IFLA_ALT_IFNAME)
      .map(([, value]) => textOf(value)),
    parent: textOf(a.get(IFLA_PARENT_DEV_NAME)),
    permanentMac: macText(a.get(IFLA_PERM_ADDRESS)),
    stats: { rxPackets: counter(0), txPackets: counter(1), rxBytes: counter(2), txBytes: counter(3) },
  };
}

/** As `ip link` prints the links of one namespace: one text of several lines for each. */
export function ipLink(all: readonly Link[]): string[] {
  const byIndex = new Map(all.map((l) => [l.index, l]));
  return all.map((l) => {
    const lower = l.netnsid === undefined && l.peer ? byIndex.get(l.peer) : undefined;
    const other =
      l.peer === undefined || (l.netnsid === undefined && l.peer === l.index)
        ? ""
        : l.peer === 0
          ? "@NONE"
          : `@${lower?.name ?? `if${l.peer}`}`;
    const known = FLAGS.reduce((sum, [, bit]) => sum | bit, 0);
    const rest = (l.flags & ~known & ~IFF_RUNNING) >>> 0;
    const flags = [
      ...(l.up && !(l.flags & IFF_RUNNING) ? ["NO-CARRIER"] : []),
      ...FLAGS.filter(([, bit]) => l.flags & bit).map(([name]) => name),
      ...(rest ? [rest.toString(16)] : []),
      ...(lower && !lower.up ? ["M-DOWN"] : []),
    ];
    const kind = {
      [ARPHRD_ETHER]: "ether",
      [ARPHRD_LOOPBACK]: "loopback",
      [ARPHRD_NONE]: "none",
      768: "ipip",
      776: "sit",
      778: "gre",
    }[l.type];
    const point = l.flags & 0x10; // a point-to-point link has a peer instead of a broadcast address
    const address = `${l.mac}${l.broadcast === "" ? "" : ` ${point ? "peer" : "brd"} ${l.broadcast}`}`;
    return [
      `${l.index}: ${l.name}${other}: <${flags.join(",")}> mtu ${l.mtu}${l.qdisc === "" ? "" : ` qdisc ${l.qdisc}`}`,
      l.master === 0 ? "" : ` master ${byIndex.get(l.master)?.name ?? `if${l.master}`}`,
      ` state ${l.state} mode ${l.mode} group ${l.group === 0 ? "default" : l.group}`,
      l.queue === 0 ? "" : ` qlen ${l.queue}`,
      `\n    link/${kind ?? `[${l.type}]`} ${address}`,
      l.netnsid === undefined ? "" : l.netnsid < 0 ? " link-netnsid unknown" : ` link-netnsid ${l.netnsid}`,
      l.alias === "" ? "" : `\n    alias ${l.alias}`,
      ...l.altnames.map((name) => `\n    altname ${name}`),
      "\n",
    ].join("");
  });
}
