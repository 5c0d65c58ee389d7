// The rules between containers and everything else, as tables of nf_tables. Nothing here touches the kernel.
//
// A router (core0's network namespace on a device, ours in hosted mode) has one table that names no container. Beneath
// it every link of a container has a fence: a table of its own at the place where its frames come into a namespace of
// ours, before anything looks at them. There neither the container nor root of core0 can change it. docs/network.md
// has the picture.
import {
  accept,
  arpSender,
  ctDnat,
  ctState,
  drop,
  etherSaddr,
  etherType,
  forged,
  forwardTo,
  icmpType,
  iifgroup,
  ipDaddr,
  ipSaddr,
  masquerade,
  nfproto,
  not,
  oifgroup,
  type Rule,
  type Table,
  udpSport,
} from "../../sys/nft.ts";

/** The device group of every link of ours in a router: "cml". */
export const GROUP = 0x636d6c;
/** Every address that cmld gives away lies in it: 172.23.<n>.1 the router's, .2 the container's. */
const NETWORK = ["172.23.0.0", 16] as const;
const DHCP_SERVER = 67; // RFC 2131

export const ROUTER = { family: "inet", name: "cml" } as const;

/** The rules of a router. `closed`: containers reach no service of its own (ours; core0 decides for itself). */
export function routerRules(closed: boolean): Table {
  const fromGuest = iifgroup(GROUP);
  const toGuest = oifgroup(GROUP);
  return {
    ...ROUTER,
    chains: [
      {
        name: "prerouting",
        type: "filter",
        hook: "prerouting",
        priority: "raw",
        policy: "accept",
        rules: [
          [fromGuest, nfproto("ipv6"), drop], // docs/decisions/network.md
          [fromGuest, forged, drop],
        ],
      },
      {
        name: "input",
        type: "filter",
        hook: "input",
        priority: "filter",
        policy: "accept",
        rules: closed
          ? [
              [fromGuest, ctState("established", "related"), accept],
              [fromGuest, icmpType("echo-request"), accept],
              [fromGuest, drop],
            ]
          : [],
      },
      {
        name: "forward",
        type: "filter",
        hook: "forward",
        priority: "filter",
        policy: "accept",
        rules: [
          [fromGuest, toGuest, drop], // not each other, not the CML
          [fromGuest, accept],
          [toGuest, ctState("established", "related"), accept],
          [toGuest, ctDnat, accept], // a port that the router's administrator published
          [toGuest, drop],
        ],
      },
      {
        name: "postrouting",
        type: "nat",
        hook: "postrouting",
        priority: "srcnat",
        policy: "accept",
        rules: [[fromGuest, not(toGuest), masquerade]],
      },
    ],
  };
}

/** A link as rules name it. */
export interface Place {
  readonly name: string;
  readonly index: number;
}

/** What a fence must know of a container's link. */
export interface Fenced {
  /** Of its table: nobody else's, whatever else is named alike. */
  readonly mac: string;
  readonly gatewayMac: string;
  /** The container's address and the router's; undefined: they are for others to choose. */
  readonly addresses: { readonly guest: string; readonly gateway: string } | undefined;
}

/** The name of a link's fence: by an address that we drew for it. */
export const fenceOf = (link: Pick<Fenced, "gatewayMac">) =>
  ({ family: "netdev", name: `cml_${link.gatewayMac.replaceAll(":", "")}` }) as const;

const chain = (name: string, device: string, rules: readonly Rule[]): Table["chains"][number] => ({
  ...{ name, type: "filter", hook: "ingress", device, priority: "filter", policy: "drop", rules },
});

/** The fence of a container's link. `guest` is our end of it. `router`: what passes goes on to this link, whose other
 * end lies in the router; "here": we are the router; undefined: there is none yet, and nothing passes.
 *
 * The container is who it was told to be: its MAC address, its IPv4 address, in ARP as well. It reaches its gateway and
 * nothing else of our network, and serves nobody addresses. IPv6, and whatever is neither IPv4 nor ARP, does not pass in
 * either direction; nor does what comes from another container, whatever the router thinks of it. */
export function fence(link: Fenced, guest: Place, router: Place | "here" | undefined): Table {
  const { mac, addresses } = link;
  const through = router === "here" ? accept : router && forwardTo(router.name, router.index);
  const from: Rule[] = through
    ? [
        [not(etherSaddr(mac)), drop],
        [arpSender(mac, addresses?.guest), through],
        [not(etherType("ip")), drop],
        addresses ? [not(ipSaddr(addresses.guest)), drop] : [ipSaddr(...NETWORK), drop],
        [udpSport(DHCP_SERVER), drop],
        [icmpType("redirect", "netdev"), drop],
        ...(addresses ? [[ipDaddr(addresses.gateway), through]] : []),
        [ipDaddr(...NETWORK), drop],
        [through],
      ]
    : [];
  const back = forwardTo(guest.name, guest.index);
  const to: Rule[] = [
    [etherType("arp"), back],
    [not(etherType("ip")), drop],
    ...(addresses ? [[ipSaddr(addresses.gateway), back]] : []),
    [ipSaddr(...NETWORK), drop],
    [back],
  ];
  return {
    ...fenceOf(link),
    chains: [
      chain("from_guest", guest.name, from),
      ...(typeof router === "object" ? [chain("to_guest", router.name, to)] : []),
    ],
  };
}

/** The fence of a network card of which a container sees no more than its peers' frames (mac_filter): the card stays
 * with us, and its frames go to and fro between it and the container's link. */
export function cardFence(
  link: Pick<Fenced, "mac" | "gatewayMac">,
  card: Place,
  guest: Place,
  peers: readonly string[],
): Table {
  return {
    ...fenceOf(link),
    chains: [
      chain("from_card", card.name, [
        ...peers.map((mac): Rule => [etherSaddr(mac), forwardTo(guest.name, guest.index)]),
      ]),
      chain("from_guest", guest.name, [[etherSaddr(link.mac), forwardTo(card.name, card.index)]]),
    ],
  };
}
