import { expect, test } from "bun:test";
import { show } from "../../sys/nft.ts";
import { cardFence, fence, routerRules } from "./fences.ts";

test("routerRules() of our own namespace close it to containers", () => {
  expect(show(routerRules(true))).toBe(`table inet cml {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifgroup 6516076 meta nfproto ipv6 drop
		iifgroup 6516076 fib saddr . iif oif missing drop
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifgroup 6516076 ct state established,related accept
		iifgroup 6516076 icmp type echo-request accept
		iifgroup 6516076 drop
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifgroup 6516076 oifgroup 6516076 drop
		iifgroup 6516076 accept
		oifgroup 6516076 ct state established,related accept
		oifgroup 6516076 ct status dnat accept
		oifgroup 6516076 drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		iifgroup 6516076 oifgroup != 6516076 masquerade
	}
}
`);
});

const LINK = {
  mac: "02:00:00:00:00:07",
  gatewayMac: "02:00:00:00:00:01",
  addresses: { guest: "172.23.4.2", gateway: "172.23.4.1" },
};
const GUEST = { name: "c_4", index: 20_004 };
const ONWARD = { name: "r_4", index: 30_004 };

test("fence() lets a container be who it is, reach its gateway and the world, and hear no other container", () => {
  expect(show(fence(LINK, GUEST, ONWARD))).toBe(`table netdev cml_020000000001 {
	chain from_guest {
		type filter hook ingress device "c_4" priority filter; policy drop;
		ether saddr != 02:00:00:00:00:07 drop
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether 02:00:00:00:00:07 arp saddr ip 172.23.4.2 fwd to "r_4"
		ether type != ip drop
		ip saddr != 172.23.4.2 drop
		udp sport 67 drop
		icmp type redirect drop
		ip daddr 172.23.4.1 fwd to "r_4"
		ip daddr 172.23.0.0/16 drop
		fwd to "r_4"
	}

	chain to_guest {
		type filter hook ingress device "r_4" priority filter; policy drop;
		ether type arp fwd to "c_4"
		ether type != ip drop
		ip saddr 172.23.4.1 fwd to "c_4"
		ip saddr 172.23.0.0/16 drop
		fwd to "c_4"
	}
}
`);
});

test("fence() without a router lets nothing through; where we are the router it accepts", () => {
  expect(fence(LINK, GUEST, undefined).chains.map((c) => [c.policy, c.rules])).toEqual([["drop", []]]);
  const [only, ...others] = fence(LINK, GUEST, "here").chains;
  expect(others).toEqual([]);
  expect(only!.rules.map((r) => r.at(-1)!.text).filter((text) => text !== "drop")).toEqual(
    Array(3).fill("accept"),
  );
});

test("fence() of a link whose addresses others choose keeps our network out of it", () => {
  const text = show(fence({ ...LINK, addresses: undefined }, GUEST, ONWARD));
  expect(text).toContain("\t\tip saddr 172.23.0.0/16 drop\n");
  expect(text).toContain("\t\tip daddr 172.23.0.0/16 drop\n");
  expect(text).not.toContain("172.23.4");
});

test("cardFence() lets in frames of the peers alone, out those of the card's own address", () => {
  expect(
    show(cardFence(LINK, { name: "cmleth1", index: 3 }, GUEST, ["02:00:00:00:00:09"])),
  ).toBe(`table netdev cml_020000000001 {
	chain from_card {
		type filter hook ingress device "cmleth1" priority filter; policy drop;
		ether saddr 02:00:00:00:00:09 fwd to "c_4"
	}

	chain from_guest {
		type filter hook ingress device "c_4" priority filter; policy drop;
		ether saddr 02:00:00:00:00:07 fwd to "cmleth1"
	}
}
`);
});
