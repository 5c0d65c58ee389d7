import { expect, test } from "bun:test";
import { accept, ctState, iifgroup, ipDaddr, ipSaddr, not, show, type Table } from "./nft.ts";

test("show() prints a table as nft lists it", () => {
  const table: Table = {
    family: "inet",
    name: "cml",
    chains: [
      {
        name: "in",
        type: "filter",
        hook: "input",
        priority: "filter",
        policy: "drop",
        rules: [
          [iifgroup(7), not(ipSaddr("10.0.0.0", 8)), accept],
          [ctState("established", "related"), accept],
        ],
      },
      { name: "nat", type: "nat", hook: "postrouting", priority: "srcnat", policy: "accept", rules: [] },
    ],
  };
  expect(show(table)).toBe(`table inet cml {
	chain in {
		type filter hook input priority filter; policy drop;
		iifgroup 7 ip saddr != 10.0.0.0/8 accept
		ct state established,related accept
	}

	chain nat {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
`);
});

test("not() turns the last comparison around and refuses what has none", () => {
  expect(not(ipDaddr("10.0.0.1", 32)).text).toBe("ip daddr != 10.0.0.1");
  expect(() => not(ctState("new"))).not.toThrow();
  expect(() => not(accept)).toThrow('no negation of "accept"');
});
