import { expect, test } from "bun:test";
import { show } from "../sys/nft.ts";
import { rules, usableMac } from "./router.ts";

test("rules() of our own namespace close it to containers", () => {
  expect(show(rules(true))).toBe(`table inet cml {
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

test("usableMac() clears the multicast bit, sets the local one, and replaces what is no address", () => {
  expect(usableMac("63:04:6E:D6:A2:5A")).toBe("62:04:6e:d6:a2:5a");
  expect(usableMac("00:11:22:33:44:55")).toBe("02:11:22:33:44:55");
  for (const text of ["", "not a mac"]) expect(usableMac(text)).toMatch(/^.[26ae](:[0-9a-f]{2}){5}$/);
});
