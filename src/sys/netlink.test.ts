import { expect, test } from "bun:test";
import { ENODEV, isErrno } from "./error.ts";
import { addAddress, addVeth, getLink, ipLink, linkOf, links } from "./link.ts";
import {
  attributeList,
  attributes,
  body,
  NETLINK_ROUTE,
  Netlink,
  parse,
  textOf,
  u16,
  u32,
} from "./netlink.ts";

const hex = (b: Uint8Array): string =>
  Buffer.from(b)
    .toString("hex")
    .replace(/.{8}\B/g, "$& ");

test("body() pads attributes to four bytes and nests lists", () => {
  const b = body(new Uint8Array([1, 2, 3]), [
    [3, "lo"],
    [
      18,
      [
        [1, "veth"],
        [2, u16(7)],
      ],
    ],
  ]);
  expect(hex(b)).toBe("01020300 07000300 6c6f0000 18001280 09000100 76657468 00000000 06000200 07000000");
  const list = attributes(b.subarray(4));
  expect(textOf(list.get(3))).toBe("lo");
  expect(textOf(attributes(list.get(18)!).get(1))).toBe("veth");
});

test("addAddress() is what rtnetlink(7) says: family, prefix, scope, index, then local, address, broadcast", () => {
  const m = addAddress(5, "172.23.4.1", 24);
  expect(m.what).toBe("addr replace 172.23.4.1/24 dev 5");
  expect(hex(m.body)).toBe("02180000 05000000 08000200 ac170401 08000100 ac170401 08000400 ac1704ff");
});

test("addVeth() names both ends", () => {
  const m = addVeth({ name: "r_0", group: 7 }, { name: "host0", netns: 9, mac: "02:00:00:00:00:01" });
  const list = attributes(m.body.subarray(16));
  expect(textOf(list.get(3))).toBe("r_0");
  const peer = attributes(attributes(list.get(18)!).get(2)!).get(1)!;
  expect(attributeList(peer.subarray(16)).map(([type, v]) => [type, hex(v)])).toEqual([
    [3, "686f7374 3000"],
    [28, "09000000"],
    [1, "02000000 0001"],
  ]);
});

test("textOf() keeps a container's control characters from a terminal", () => {
  expect(textOf(Buffer.from("a\x1b[2Jé\0rest"))).toBe("a\\x1b[2J\\xc3\\xa9");
});

test("links() has the loopback device, and ipLink() prints it as `ip link` does", () => {
  using n = Netlink.open(NETLINK_ROUTE);
  const all = links(n);
  expect(all[0]).toMatchObject({ index: 1, name: "lo", type: 772, kind: "" });
  expect(ipLink(all)[0]).toStartWith("1: lo: <LOOPBACK");
});

test("a refusal names the request and the errno", () => {
  using n = Netlink.open(NETLINK_ROUTE);
  expect(() => n.do([getLink("no-such-link")])).toThrow("link show no-such-link: ENODEV");
  expect(n.do([getLink("no-such-link"), getLink(1)], ENODEV).map((r) => linkOf(r).name)).toEqual(["lo"]);
  try {
    n.do([getLink("no-such-link"), getLink(1)]);
    expect.unreachable();
  } catch (e) {
    expect(isErrno(e, ENODEV)).toBe(true);
  }
});

test("parse() and attributes() end at what is malformed, whatever it is (fixed seed)", () => {
  let seed = 1;
  const random = (): number => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    return seed >>> 8;
  };
  for (let i = 0; i < 20_000; i++) {
    const bytes = new Uint8Array(random() % 80).map(() =>
      random() % 3 === 0 ? random() & 0xff : random() & 0x1f,
    );
    for (const m of parse(bytes)) {
      attributeList(m.body);
      if (m.body.length >= 16) ipLink([linkOf({ type: m.type, body: m.body })]);
    }
    linkOf({ type: 16, body: Buffer.concat([new Uint8Array(16), bytes]) });
  }
  expect(attributeList(u32(0xffff))).toEqual([]);
});
