// Packet filter tables (nf_tables) without the nft program. A table is a value: it is printed as `nft list table`
// prints it, and put in place of an older one by one transaction, so that there is no moment without rules.
import { ENOENT } from "./error.ts";
import { ipv4, macBytes } from "./link.ts";
import {
  type Attribute,
  be16,
  be32,
  body,
  type Message,
  type Netlink,
  NLM_F_APPEND,
  NLM_F_CREATE,
  u16,
  u32,
} from "./netlink.ts";

// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES = 10;
const [NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END] = [0x10, 0x11];
// linux/netfilter/nf_tables.h
const [NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE] = [
  0, 1, 2, 3, 6,
];
const NFTA_TABLE_NAME = 1;
const [NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE] = [
  1, 3, 4, 5, 7,
];
const [NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_HOOK_DEV] = [1, 2, 3];
const [NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS] = [1, 2, 4];
const [NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_LIST_ELEM] = [1, 2, 1];
const [NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE] = [1, 2, 1];
const [NFTA_META_DREG, NFTA_META_KEY] = [1, 2];
const [NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA] = [1, 2, 3];
const [NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN] = [1, 2, 3, 4];
const [NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR] = [
  1, 2, 3, 4, 5,
];
const [NFTA_CT_DREG, NFTA_CT_KEY, NFT_CT_STATE, NFT_CT_STATUS] = [1, 2, 0, 2];
const [NFTA_FIB_DREG, NFTA_FIB_RESULT, NFTA_FIB_FLAGS] = [1, 2, 3];
const NFT_FIB_RESULT_OIF = 1;
const [NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF, NFTA_FIB_F_PRESENT] = [1, 8, 32];
const [NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA, NFTA_FWD_SREG_DEV] = [1, 2, 1];
const [NFT_REG_VERDICT, NFT_REG_1] = [0, 1];
const [NFT_CMP_EQ, NFT_CMP_NEQ] = [0, 1];
const [LINK_HEADER, NETWORK_HEADER, TRANSPORT_HEADER] = [0, 1, 2];
const META = { protocol: 1, iiftype: 8, nfproto: 15, l4proto: 16, iifgroup: 21, oifgroup: 22 } as const;

const FAMILIES = { inet: 1, netdev: 5 } as const; // linux/netfilter.h
const HOOKS = { prerouting: 0, input: 1, forward: 2, postrouting: 4, ingress: 0 } as const; // NF_INET_*, NF_NETDEV_INGRESS
/** linux/netfilter_ipv4.h, under nft's names. */
const PRIORITIES = { raw: -300, dstnat: -100, filter: 0, srcnat: 100 } as const;
const [NF_DROP, NF_ACCEPT] = [0, 1];
const NFPROTOS = { ipv4: 2, ipv6: 10 } as const;
const ARPHRD_ETHER = 1; // linux/if_arp.h
const ETHER_TYPES = { ip: 0x0800, arp: 0x0806 } as const; // linux/if_ether.h
const [IPPROTO_ICMP, IPPROTO_UDP] = [1, 17]; // linux/in.h
const ICMP_TYPES = { redirect: 5, "echo-request": 8 } as const; // linux/icmp.h
// linux/netfilter/nf_conntrack_common.h
const IPS_DST_NAT = 1 << 5;
/** 1 << (info + 1) */
const CT_STATES = { invalid: 1, established: 2, related: 4, new: 8 } as const;

type Expression = readonly [name: string, data: readonly Attribute[]];

/** One word of a rule: a condition or what is done, as nft prints it and as the kernel runs it. */
export interface Term {
  readonly text: string;
  readonly expressions: readonly Expression[];
}
export type Rule = readonly Term[];

export interface Chain {
  readonly name: string;
  readonly type: "filter" | "nat";
  readonly hook: keyof typeof HOOKS;
  /** The link whose frames it sees, in a table of the family netdev. */
  readonly device?: string;
  readonly priority: keyof typeof PRIORITIES;
  readonly policy: "accept" | "drop";
  readonly rules: readonly Rule[];
}

export interface Table {
  readonly family: keyof typeof FAMILIES;
  readonly name: string;
  readonly chains: readonly Chain[];
}

const meta = (key: keyof typeof META): Expression => [
  "meta",
  [
    [NFTA_META_KEY, be32(META[key])],
    [NFTA_META_DREG, be32(NFT_REG_1)],
  ],
];
const cmp = (op: number, value: Uint8Array): Expression => [
  "cmp",
  [
    [NFTA_CMP_SREG, be32(NFT_REG_1)],
    [NFTA_CMP_OP, be32(op)],
    [NFTA_CMP_DATA, [[NFTA_DATA_VALUE, value]]],
  ],
];
const payload = (base: number, offset: number, length: number): Expression => [
  "payload",
  [
    [NFTA_PAYLOAD_DREG, be32(NFT_REG_1)],
    [NFTA_PAYLOAD_BASE, be32(base)],
    [NFTA_PAYLOAD_OFFSET, be32(offset)],
    [NFTA_PAYLOAD_LEN, be32(length)],
  ],
];
const verdict = (text: string, code: number): Term => ({
  text,
  expressions: [
    [
      "immediate",
      [
        [NFTA_IMMEDIATE_DREG, be32(NFT_REG_VERDICT)],
        [NFTA_IMMEDIATE_DATA, [[NFTA_DATA_VERDICT, [[NFTA_VERDICT_CODE, be32(code)]]]]],
      ],
    ],
  ],
});

export const accept = verdict("accept", NF_ACCEPT);
export const drop = verdict("drop", NF_DROP);
/** Leave under the address of the link that the packet leaves by. */
export const masquerade: Term = { text: "masquerade", expressions: [["masq", []]] };

/** The frame leaves by the link with this index, as it is. For tables of a link. */
export const forwardTo = (name: string, index: number): Term => ({
  text: `fwd to "${name}"`,
  expressions: [
    [
      "immediate",
      [
        [NFTA_IMMEDIATE_DREG, be32(NFT_REG_1)],
        [NFTA_IMMEDIATE_DATA, [[NFTA_DATA_VALUE, u32(index)]]],
      ],
    ],
    ["fwd", [[NFTA_FWD_SREG_DEV, be32(NFT_REG_1)]]],
  ],
});

/** The condition turned around. Only for conditions that compare once. */
export function not(term: Term): Term {
  const last = term.expressions.at(-1);
  if (last?.[0] !== "cmp") throw new Error(`no negation of "${term.text}"`);
  const turned = last[1].map((a): Attribute => (a[0] === NFTA_CMP_OP ? [NFTA_CMP_OP, be32(NFT_CMP_NEQ)] : a));
  return {
    text: term.text.replace(/ (\S+)$/, " != $1"),
    expressions: [...term.expressions.slice(0, -1), ["cmp", turned]],
  };
}

const group =
  (key: "iifgroup" | "oifgroup") =>
  (n: number): Term => ({
    text: `${key} ${n}`,
    expressions: [meta(key), cmp(NFT_CMP_EQ, u32(n))],
  });
/** The device group of the link that the packet came in by, and will leave by. */
export const iifgroup = group("iifgroup");
export const oifgroup = group("oifgroup");

export const nfproto = (family: keyof typeof NFPROTOS): Term => ({
  text: `meta nfproto ${family}`,
  expressions: [meta("nfproto"), cmp(NFT_CMP_EQ, new Uint8Array([NFPROTOS[family]]))],
});

/** What nft puts before a comparison of the link or network header, and takes for granted when it prints. */
const ethernet: readonly Expression[] = [meta("iiftype"), cmp(NFT_CMP_EQ, u16(ARPHRD_ETHER))];
const ip: readonly Expression[] = [meta("protocol"), cmp(NFT_CMP_EQ, be16(ETHER_TYPES.ip))];
const protocol = (number: number): readonly Expression[] => [
  meta("l4proto"),
  cmp(NFT_CMP_EQ, new Uint8Array([number])),
];

/** The frame's source address, for tables of a link. */
export const etherSaddr = (mac: string): Term => ({
  text: `ether saddr ${mac}`,
  expressions: [...ethernet, payload(LINK_HEADER, 6, 6), cmp(NFT_CMP_EQ, macBytes(mac))],
});

/** What the frame carries. One with a VLAN tag carries that. */
export const etherType = (type: keyof typeof ETHER_TYPES): Term => ({
  text: `ether type ${type}`,
  expressions: [...ethernet, payload(LINK_HEADER, 12, 2), cmp(NFT_CMP_EQ, be16(ETHER_TYPES[type]))],
});

/** ARP for IPv4 on Ethernet (RFC 826) whose sender says these addresses of itself; without `address`, any. */
export const arpSender = (mac: string, address?: string): Term => ({
  text:
    `arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether ${mac}` +
    (address === undefined ? "" : ` arp saddr ip ${address}`),
  expressions: [
    ...etherType("arp").expressions,
    payload(NETWORK_HEADER, 0, 4),
    cmp(NFT_CMP_EQ, Buffer.concat([be16(ARPHRD_ETHER), be16(ETHER_TYPES.ip)])),
    payload(NETWORK_HEADER, 4, 2),
    cmp(NFT_CMP_EQ, new Uint8Array([6, 4])),
    payload(NETWORK_HEADER, 8, address === undefined ? 6 : 10),
    cmp(NFT_CMP_EQ, Buffer.concat([macBytes(mac), address === undefined ? Buffer.alloc(0) : ipv4(address)])),
  ],
});

const range =
  (word: string, offset: number) =>
  (address: string, prefix: 8 | 16 | 24 | 32 = 32): Term => ({
    text: `ip ${word} ${address}${prefix === 32 ? "" : `/${prefix}`}`,
    expressions: [
      ...ip,
      payload(NETWORK_HEADER, offset, prefix / 8), // a prefix of whole bytes is a shorter comparison
      cmp(NFT_CMP_EQ, ipv4(address).subarray(0, prefix / 8)),
    ],
  });
/** Source and destination in the IPv4 header (RFC 791). */
export const ipSaddr = range("saddr", 12);
export const ipDaddr = range("daddr", 16);

export const icmpType = (type: keyof typeof ICMP_TYPES, family: keyof typeof FAMILIES = "inet"): Term => ({
  text: `icmp type ${type}`,
  expressions: [
    ...(family === "inet" ? nfproto("ipv4").expressions : ip),
    ...protocol(IPPROTO_ICMP),
    payload(TRANSPORT_HEADER, 0, 1),
    cmp(NFT_CMP_EQ, new Uint8Array([ICMP_TYPES[type]])),
  ],
});

export const udpSport = (port: number): Term => ({
  text: `udp sport ${port}`,
  expressions: [...protocol(IPPROTO_UDP), payload(TRANSPORT_HEADER, 0, 2), cmp(NFT_CMP_EQ, be16(port))],
});

/** Any of the bits of what is known of the connection. */
const connection = (key: number, bits: number): Expression[] => [
  [
    "ct",
    [
      [NFTA_CT_KEY, be32(key)],
      [NFTA_CT_DREG, be32(NFT_REG_1)],
    ],
  ],
  [
    "bitwise",
    [
      [NFTA_BITWISE_SREG, be32(NFT_REG_1)],
      [NFTA_BITWISE_DREG, be32(NFT_REG_1)],
      [NFTA_BITWISE_LEN, be32(4)],
      [NFTA_BITWISE_MASK, [[NFTA_DATA_VALUE, u32(bits)]]],
      [NFTA_BITWISE_XOR, [[NFTA_DATA_VALUE, u32(0)]]],
    ],
  ],
  cmp(NFT_CMP_NEQ, u32(0)),
];
/** The connection is in one of these states. */
export const ctState = (...states: (keyof typeof CT_STATES)[]): Term => ({
  text: `ct state ${states.join(",")}`,
  expressions: connection(
    NFT_CT_STATE,
    states.reduce((bits, s) => bits | CT_STATES[s], 0),
  ),
});
/** Somebody's rule gave the connection its destination: a published port. */
export const ctDnat: Term = { text: "ct status dnat", expressions: connection(NFT_CT_STATUS, IPS_DST_NAT) };

/** An answer to the packet's source would not leave by the link it came in by: the source is forged. */
export const forged: Term = {
  text: "fib saddr . iif oif missing",
  expressions: [
    [
      "fib",
      [
        [NFTA_FIB_DREG, be32(NFT_REG_1)],
        [NFTA_FIB_RESULT, be32(NFT_FIB_RESULT_OIF)],
        [NFTA_FIB_FLAGS, be32(NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT)],
      ],
    ],
    cmp(NFT_CMP_EQ, u32(0)),
  ],
};

/** As `nft list table` prints it. */
export const show = (t: Table): string =>
  [
    `table ${t.family} ${t.name} {`,
    t.chains
      .map((c) =>
        [
          `\tchain ${c.name} {`,
          `\t\ttype ${c.type} hook ${c.hook}${c.device === undefined ? "" : ` device "${c.device}"`} priority ${c.priority}; policy ${c.policy};`,
          ...c.rules.map((r) => `\t\t${r.map((term) => term.text).join(" ")}`),
          "\t}",
        ].join("\n"),
      )
      .join("\n\n"),
    "}\n",
  ].join("\n");

const nfgenmsg = (family: number, resource = 0): Buffer => Buffer.from([family, 0, ...be16(resource)]);
const message = (
  t: Pick<Table, "family" | "name">,
  type: number,
  flags: number,
  list: readonly Attribute[],
  what: string,
): Message => ({
  type: (NFNL_SUBSYS_NFTABLES << 8) | type,
  flags,
  body: body(nfgenmsg(FAMILIES[t.family]), list),
  what: `nft ${what}`,
});
const batch = (type: number): Message => ({
  type,
  body: nfgenmsg(0, NFNL_SUBSYS_NFTABLES),
  what: "nft transaction",
});
const all = (messages: readonly Message[]): Message[] => [
  batch(NFNL_MSG_BATCH_BEGIN),
  ...messages,
  batch(NFNL_MSG_BATCH_END),
];

const newTable = (t: Pick<Table, "family" | "name">): Message =>
  message(t, NFT_MSG_NEWTABLE, NLM_F_CREATE, [[NFTA_TABLE_NAME, t.name]], `add table ${t.family} ${t.name}`);
const deleteTable = (t: Pick<Table, "family" | "name">): Message =>
  message(t, NFT_MSG_DELTABLE, 0, [[NFTA_TABLE_NAME, t.name]], `delete table ${t.family} ${t.name}`);

function newChain(t: Table, c: Chain): Message {
  return message(
    t,
    NFT_MSG_NEWCHAIN,
    NLM_F_CREATE,
    [
      [NFTA_CHAIN_TABLE, t.name],
      [NFTA_CHAIN_NAME, c.name],
      [
        NFTA_CHAIN_HOOK,
        [
          [NFTA_HOOK_HOOKNUM, be32(HOOKS[c.hook])],
          [NFTA_HOOK_PRIORITY, be32(PRIORITIES[c.priority])],
          ...(c.device === undefined ? [] : [[NFTA_HOOK_DEV, c.device] as const]),
        ],
      ],
      [NFTA_CHAIN_POLICY, be32(c.policy === "accept" ? NF_ACCEPT : NF_DROP)],
      [NFTA_CHAIN_TYPE, c.type],
    ],
    `add chain ${t.family} ${t.name} ${c.name}`,
  );
}

function newRule(t: Table, c: Chain, rule: Rule): Message {
  const expressions = rule.flatMap((term) => term.expressions);
  return message(
    t,
    NFT_MSG_NEWRULE,
    NLM_F_CREATE | NLM_F_APPEND,
    [
      [NFTA_RULE_TABLE, t.name],
      [NFTA_RULE_CHAIN, c.name],
      [
        NFTA_RULE_EXPRESSIONS,
        expressions.map(
          ([name, data]): Attribute => [
            NFTA_LIST_ELEM,
            [
              [NFTA_EXPR_NAME, name],
              [NFTA_EXPR_DATA, data],
            ],
          ],
        ),
      ],
    ],
    `add rule ${t.family} ${t.name} ${c.name} ${rule.map((term) => term.text).join(" ")}`,
  );
}

/** The transaction that puts the table in place of whatever has its name. */
export const replacement = (t: Table): Message[] =>
  all([
    newTable(t), // so that there is one to delete
    deleteTable(t),
    newTable(t),
    ...t.chains.flatMap((c) => [newChain(t, c), ...c.rules.map((r) => newRule(t, c, r))]),
  ]);
/** The one that removes it; ENOENT: it is not there. */
export const removal = (t: Pick<Table, "family" | "name">): Message[] => all([deleteTable(t)]);

/** Put the table in place of whatever has its name. `n`: a NETLINK_NETFILTER socket. */
export const replace = (n: Netlink, t: Table): void => n.transaction(replacement(t));

/** Is there a table of that name? */
export const exists = (n: Netlink, t: Pick<Table, "family" | "name">): boolean =>
  n.do(
    [message(t, NFT_MSG_GETTABLE, 0, [[NFTA_TABLE_NAME, t.name]], `list table ${t.family} ${t.name}`)],
    ENOENT,
  ).length > 0;

/** A table that is not there is no error. */
export const remove = (n: Netlink, t: Pick<Table, "family" | "name">): void =>
  n.transaction(removal(t), ENOENT);
