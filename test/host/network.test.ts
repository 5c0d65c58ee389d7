// The network of containers with real namespaces: addresses, translation, what may reach whom, what is left behind.
// The tests run in a network namespace of their own (this file runs itself again there), so that they meet nobody's
// links and rules. A container is a process that waits; its sockets are opened from here in its namespace.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as proto from "../../proto/gen/proto.js";
import type { ContainerConfig } from "../../src/cmld/config.ts";
import { Ledger } from "../../src/cmld/ledger.ts";
import { cardFence, fence, fenceOf, routerRules } from "../../src/cmld/network/fences.ts";
import * as router from "../../src/cmld/network/router.ts";
import { type Child, launch, reap } from "../../src/run/launch.ts";
import { Carriers, netlinkIn, netnsOf, openIn } from "../../src/run/netns.ts";
import {
  CLONE_NEWNET,
  CLONE_NEWUSER,
  MSG_DONTWAIT,
  recvfrom,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_RAW,
  setsockopt,
  signal,
  socket,
  wait,
} from "../../src/sys/calls.ts";
import { EAGAIN } from "../../src/sys/error.ts";
import { type Fd, pipe } from "../../src/sys/fd.ts";
import {
  addAddress,
  addresses,
  addVeth,
  defaultRoute,
  deleteLink,
  getLink,
  ipLink,
  ipv4,
  type Link,
  linkOf,
  links,
  raiseLoopback,
  renameLink,
  upLink,
} from "../../src/sys/link.ts";
import { lasting, mem, Struct } from "../../src/sys/mem.ts";
import { NETLINK_NETFILTER, NETLINK_ROUTE, Netlink } from "../../src/sys/netlink.ts";
import { forwardTo, remove, replace, show } from "../../src/sys/nft.ts";
import { attempt, now } from "../../src/sys/now.ts";
import { Reg } from "../../src/sys/op.ts";
import { ended } from "../../src/sys/poll.ts";
import {
  arp,
  BROADCAST,
  ip,
  ipFrame,
  loopbackUp,
  redirect,
  routerAdvertisement,
  soon,
  tagged,
  udp as udpHeader,
  untagged,
  Wire,
} from "./frames.ts";
import { until } from "./world.ts";

const FORWARD = "/proc/sys/net/ipv4/ip_forward";
const INSIDE = "CML_TEST_NETWORK";

if (!process.env[INSIDE]) {
  test("the network, in a namespace of its own", () => {
    const run = Bun.spawnSync(
      ["unshare", "--net", process.execPath, "test", "--timeout", "60000", import.meta.path],
      {
        env: { ...process.env, [INSIDE]: "1" },
        stdio: ["ignore", "pipe", "pipe"],
      },
    );
    if (run.exitCode !== 0) throw new Error(`${run.stdout}${run.stderr}`);
    process.stdout.write(run.stderr.toString().replace(/^/gm, "    "));
  }, 120_000);
} else inside();

function inside(): void {
  const AF_INET = 2;
  const IPPROTO_ICMP = 1;
  const gate = pipe();
  const ready = pipe();
  const run = mkdtempSync(join(tmpdir(), "cml-network-"));
  loopbackUp();
  const route = Netlink.open(NETLINK_ROUTE);

  /** A process that waits in a network namespace of its own. */
  const processes: Child[] = [];
  const sleeper = (flags = 0n): Child => {
    const ops = [...raiseLoopback(new Reg(0)), signal(ready.write.n), wait(gate.read.n)];
    const child = launch(ops, CLONE_NEWNET | flags);
    now(wait(ready.read.n));
    processes.push(child);
    return child;
  };
  const end = async (child: Child): Promise<void> => {
    process.kill(child.pid, "SIGKILL");
    await ended(child.pidfd);
    reap(child.pidfd);
    child.pidfd.close();
    processes.splice(processes.indexOf(child), 1);
  };
  afterAll(async () => {
    for (const child of [...processes]) await end(child);
    rmSync(run, { recursive: true });
  });

  let count = 0;
  const config = (fields: Partial<ContainerConfig> = {}): ContainerConfig =>
    ({
      ...proto.ContainerConfig.create(),
      netns: true,
      vnet_configs: [],
      net_ifaces: [],
      ...fields,
    }) as ContainerConfig;
  interface Guest extends router.Newcomer {
    readonly ledger: Ledger;
    readonly lines: string[];
  }
  const newcomer = (options: { c0?: boolean; hosted?: boolean; config?: ContainerConfig } = {}): Guest => {
    const uuid = options.c0
      ? "00000000-0000-0000-0000-000000000000"
      : `00000000-0000-0000-0000-${String(++count).padStart(12, "0")}`;
    const ledger = Ledger.open(join(run, "ledger"), { uuid, guestos: "", guestosVersion: 0, uidStart: 0 });
    const lines: string[] = [];
    return {
      uuid,
      name: options.c0 ? "core0" : `guest${count}`,
      isC0: options.c0 ?? false,
      config: options.config ?? config(),
      host: { hosted: options.hosted ?? true, run },
      owned: ledger,
      ledger,
      lines,
      log: (line) => lines.push(line),
    };
  };
  /** What container.ts does: prepare, clone, attach. */
  const up = async (g: Guest): Promise<{ guest: Guest; child: Child; netns: Fd }> => {
    const veths = router.plan(g);
    const child = sleeper(CLONE_NEWUSER);
    await router.connectNew(g, child.pid, veths);
    return { guest: g, child, netns: netnsOf(child.pid) };
  };
  const down = async (c: { guest: Guest; child: Child; netns: Fd }): Promise<void> => {
    c.netns.close();
    await end(c.child);
    await c.guest.ledger.release();
  };

  const address = (ip: string, port: number): Uint8Array<ArrayBuffer> =>
    new Struct(16)
      .u16(AF_INET)
      .u8(port >> 8)
      .u8(port & 0xff)
      .raw(ipv4(ip)).bytes;

  /** A UDP socket in a network namespace. */
  const udp = (netns: Fd, port: number, own = "0.0.0.0") => {
    const [fd] = openIn(netns, [(save) => socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0, save)]);
    now(setsockopt(fd!.n, 0, 19, 1)); // IP_TRANSPARENT: an address that is not ours, to forge one
    now({ call: "bind", args: [fd!.n, address(own, port), 16] });
    return {
      [Symbol.dispose]: () => fd!.close(),
      send(ip: string, to: number, text: string): void {
        const bytes = lasting(Buffer.from(text));
        now({ call: "sendto", args: [fd!.n, bytes, bytes.length, 0, address(ip, to), 16] });
      },
      /** Everything that has arrived, as "text from address" in alphabetical order, once `count` datagrams have. */
      async received(count: number): Promise<string[]> {
        const all: string[] = [];
        for (;;) {
          const into = mem(100);
          const from = mem(16);
          const length = new Struct(4).u32(16).bytes;
          const n = attempt(recvfrom(fd!.n, into, MSG_DONTWAIT, from, length));
          if (n !== -EAGAIN)
            all.push(
              `${Buffer.from(into.subarray(0, Math.max(n, 0)))} from ${from.subarray(4, 8).join(".")}`,
            );
          else if (all.length >= count || !(await soon(fd!))) return all.sort();
        }
      },
    };
  };

  /** Does an echo request from there get its answer? */
  const ping = async (netns: Fd, ip: string): Promise<boolean> => {
    const [fd] = openIn(netns, [(save) => socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ICMP, save)]);
    using s = fd!;
    const request = new Uint8Array([8, 0, 0xf7, 0xff, 0, 0, 0, 0]); // type, code, checksum, id, sequence
    now({ call: "sendto", args: [s.n, lasting(request), 8, 0, address(ip, 0), 16] });
    for (;;) {
      const into = mem(100);
      const n = attempt(recvfrom(s.n, into, MSG_DONTWAIT));
      if (n === -EAGAIN && !(await soon(s))) return false;
      if (n > 0 && into[20] === 0) return true; // echo reply, behind 20 bytes of IP header
    }
  };

  /** "The world": another namespace, behind a link of `netns`. */
  const world = (inner: Fd, name: string) => {
    const child = sleeper();
    const netns = netnsOf(child.pid);
    const [r] = netlinkIn(inner, NETLINK_ROUTE);
    const [w] = netlinkIn(netns, NETLINK_ROUTE);
    using ours = r!;
    using theirs = w!;
    const [reply] = ours.do([addVeth({ name }, { name: "eth0", netns: netns.n }), getLink(name)]);
    const l = linkOf(reply!);
    ours.do([addAddress(l.index, "10.9.0.1", 24), upLink(l.index)]);
    theirs.do([
      upLink("lo"),
      addAddress(l.peer!, "10.9.0.2", 24),
      upLink(l.peer!),
      defaultRoute(l.peer!, "10.9.0.1"),
    ]);
    return {
      netns,
      async end() {
        const [again] = netlinkIn(inner, NETLINK_ROUTE);
        using n = again!;
        n.do([deleteLink(name)]);
        netns.close();
        await end(child);
      },
    };
  };

  const here = netnsOf("self");
  /** The links inside a container, with their addresses. */
  const shown = (c: { netns: Fd }): { link: Link; addresses: string[] }[] => {
    const [n] = netlinkIn(c.netns, NETLINK_ROUTE);
    using route = n!;
    const all = addresses(route);
    return links(route).map((link) => ({
      link,
      addresses: all.filter((a) => a.index === link.index).map((a) => a.address),
    }));
  };
  /** Without the fences of these containers: to see that a test can fail. */
  const unfence = (filter: Netlink, ...all: { guest: Guest }[]): void => {
    for (const { guest } of all) for (const v of guest.ledger.all("veth")) remove(filter, fenceOf(v));
  };
  const names = (): string[] => links(route).map((l) => l.name);
  const ruleset = (): string => Bun.spawnSync(["nft", "list", "ruleset"]).stdout.toString();
  const forwarding = (): string => readFileSync(FORWARD, "utf8").trim();

  test("links(), addresses() and ipLink() agree with ip", () => {
    const ip = (...args: string[]): string => Bun.spawnSync(["ip", ...args]).stdout.toString();
    ip("link", "add", "br0", "type", "bridge");
    route.do([addVeth({ name: "v0", mac: "02:00:00:00:00:07" }, { name: "v1" })]);
    const { index } = linkOf(route.do([getLink("v0")])[0]!);
    ip("link", "set", "v0", "mtu", "1400");
    route.do([addAddress(index, "10.1.2.3", 20)]);
    ip("link", "set", "v0", "master", "br0", "up", "alias", "an\x1balias");
    ip("link", "property", "add", "dev", "v1", "altname", "a-rather-long-alternative-name");
    expect(ipLink(links(route)).join("")).toBe(ip("link").replace("\x1b", "\\x1b"));
    expect(addresses(route)).toContainEqual({ index, address: "10.1.2.3/20" });
    expect(addresses(route)).toContainEqual({ index: 1, address: "::1/128" });
    expect(ip("addr", "show", "v0")).toContain("inet 10.1.2.3/20 brd 10.1.15.255 scope global v0");
    route.do([deleteLink("v0"), deleteLink("br0")]);
    expect(names()).toEqual(["lo"]);
  });

  test("show() is what nft lists, and a table is replaced as a whole or not at all", () => {
    using filter = Netlink.open(NETLINK_NETFILTER);
    for (const closed of [false, true]) {
      replace(filter, routerRules(closed));
      expect(ruleset()).toBe(show(routerRules(closed)));
    }
    const broken = { ...routerRules(true), chains: routerRules(true).chains.slice(3, 4) };
    const misplaced = { ...broken, chains: [{ ...broken.chains[0]!, type: "filter" as const }] };
    expect(() => replace(filter, misplaced)).toThrow(/nft add rule inet cml postrouting .*masquerade: E/);
    expect(ruleset()).toBe(show(routerRules(true)));
    router.leave({ hosted: true, run });
    expect(ruleset()).toBe("");
  });

  test("hosted: containers reach the world as the router, not each other, not the host; nothing is left", async () => {
    const w = world(here, "wan0");
    writeFileSync(FORWARD, "0"); // a new namespace may have the machine's value
    const before = { names: names(), forwarding: "0" };
    const [a, b] = [await up(newcomer()), await up(newcomer())];
    {
      // The first packet out is answered: the router's side is there before the container runs.
      expect(await ping(a.netns, "172.23.0.1")).toBe(true);
      using out = udp(w.netns, 53);
      using stranger = udp(w.netns, 54);
      using ua = udp(a.netns, 7000);
      using ub = udp(b.netns, 7000);
      using host = udp(here, 7000);
      using forger = udp(a.netns, 7001, "172.23.1.2");

      ua.send("10.9.0.2", 53, "hello");
      expect(await out.received(1)).toEqual(["hello from 10.9.0.1"]);
      out.send("10.9.0.1", 7000, "back");
      expect(await ua.received(1)).toEqual(["back from 10.9.0.2"]);

      const forbidden = (): void => {
        ua.send("172.23.1.2", 7000, "neighbour"); // each other
        ua.send("172.23.0.1", 7000, "gateway"); // the host
        ua.send("10.9.0.1", 7000, "host");
        forger.send("10.9.0.2", 53, "forged");
        stranger.send("172.23.1.2", 7000, "from outside"); // not an answer
      };
      forbidden();
      ub.send("10.9.0.2", 53, "b"); // what is allowed goes the same way, later
      expect(await out.received(1)).toEqual(["b from 10.9.0.1"]);
      expect(await ub.received(0)).toEqual([]);
      expect(await host.received(0)).toEqual([]);

      // Without the table of the router the fences hold what is theirs to hold …
      using filter = Netlink.open(NETLINK_NETFILTER);
      replace(filter, { ...routerRules(true), chains: [] });
      forbidden();
      ub.send("10.9.0.2", 53, "b");
      expect(await out.received(1)).toEqual(["b from 172.23.1.2"]);
      expect(await ub.received(1)).toEqual(["from outside from 10.9.0.2"]);
      expect(await host.received(2)).toEqual(["gateway from 172.23.0.2", "host from 172.23.0.2"]);
      // … without the fences the table holds all of it …
      replace(filter, routerRules(true));
      unfence(filter, a, b);
      forbidden();
      ub.send("10.9.0.2", 53, "b");
      expect(await out.received(1)).toEqual(["b from 10.9.0.1"]);
      expect(await ub.received(0)).toEqual([]);
      expect(await host.received(0)).toEqual([]);
      // … and without both it arrives: the test is able to fail.
      replace(filter, { ...routerRules(true), chains: [] });
      forbidden();
      expect(await ub.received(2)).toEqual(["from outside from 10.9.0.2", "neighbour from 172.23.0.2"]);
      expect(await host.received(2)).toEqual(["gateway from 172.23.0.2", "host from 172.23.0.2"]);
      expect(await out.received(1)).toEqual(["forged from 172.23.1.2"]);
      replace(filter, routerRules(true));
    }
    expect(names()).toEqual([...before.names, "r_0", "r_1"]);
    expect(router.interfaces(a.guest.uuid).texts[1]).toMatch(
      /^\d+: host0@if\d+: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP mode DEFAULT group default qlen 1000\n {4}link\/ether ..:..:..:..:..:.. brd ff:ff:ff:ff:ff:ff link-netnsid \d\n$/,
    );
    expect(router.interfaces(b.guest.uuid).table[1]).toMatchObject({
      name: "host0",
      kind: "veth",
      state: "UP",
      addresses: expect.arrayContaining(["172.23.1.2/24"]),
    });
    expect(router.vnets(b.guest.uuid)).toMatchObject([{ if_name: "host0", if_rootns_name: "r_1" }]);

    await down(a);
    await down(b);
    router.leave({ hosted: true, run });
    expect({ names: names(), forwarding: forwarding() }).toEqual(before);
    expect(ruleset()).toBe("");
    await w.end();
    expect(router.interfaces(a.guest.uuid)).toEqual({ texts: [], table: [] });
  });

  test("configured links have their names and addresses; the multicast bit is masked; the first route counts", async () => {
    Bun.spawnSync(["nft", "flush", "ruleset"]); // somebody's firewall; the next start mends it
    const link = { if_name: "eth0", configure: true, if_rootns_name: "web0", if_mac: "63:04:6e:d6:a2:5a" };
    const c = await up(
      newcomer({
        config: config({
          vnet_configs: [link, { if_name: "eth1", configure: false, if_rootns_name: "", if_mac: "" }],
        }),
      }),
    );
    const table = shown(c);
    expect(table.map((t) => [t.link.name, t.link.up, t.addresses.filter((x) => x.includes("."))])).toEqual([
      ["lo", true, ["127.0.0.1/8"]],
      ["eth0", true, ["172.23.0.2/24"]],
      ["eth1", false, []],
    ]);
    expect(table[1]!.link.mac).toBe("62:04:6e:d6:a2:5a");
    const routes = Bun.spawnSync([
      "nsenter",
      `--net=/proc/${c.child.pid}/ns/net`,
      "ip",
      "route",
    ]).stdout.toString();
    expect(routes).toContain("default via 172.23.0.1 dev eth0");
    expect(names()).toEqual(["lo", "web0", "r_1"]);
    expect(ruleset()).toStartWith(show(routerRules(true)));
    await down(c);
    expect(names()).toEqual(["lo"]);
    expect(ruleset()).toBe(show(routerRules(true)));
  });

  test("loopback_only: its own loopback and nothing else, and nothing with us", async () => {
    const c = await up(newcomer({ config: config({ loopback_only: true }) }));
    expect(shown(c).map((t) => [t.link.name, t.link.up])).toEqual([["lo", true]]);
    expect(names()).toEqual(["lo"]);
    await down(c);
  });

  test("a start that fails releases everything, and leaves a link that only has the name alone", async () => {
    Bun.spawnSync(["ip", "link", "add", "mine", "type", "bridge"]);
    const taken = { if_name: "host0", configure: true, if_rootns_name: "mine", if_mac: "" };
    const free = { if_name: "eth0", configure: true, if_rootns_name: "", if_mac: "" };
    const g = newcomer({ config: config({ vnet_configs: [free, taken] }) });
    const veths = router.plan(g);
    const child = sleeper(CLONE_NEWUSER);
    await expect(router.connectNew(g, child.pid, veths)).rejects.toThrow(
      "link add mine type veth peer host0: EEXIST",
    );
    await end(child);
    await g.ledger.release();
    expect(names()).toEqual(["lo", "mine"]);
    route.do([deleteLink("mine")]);
    // The subnets are free again.
    const next = newcomer();
    expect(router.plan(next)[0]!.subnet).toBe(0);
    await next.ledger.release();
  });

  test("device: core0 is the router; a container waits for it, survives its restart, never reaches the CML", async () => {
    const early = await up(newcomer({ hosted: false }));
    const numberOf = (c: { guest: Guest }): number => c.guest.ledger.all("veth")[0]!.subnet;
    // It has its link, which leads nowhere.
    expect(shown(early).map((t) => t.link.state)).toEqual(["UNKNOWN", "UP"]);
    const first = shown(early)[1]!.link;
    for (let round = 0; round < 2; round++) {
      const c0 = await up(newcomer({ c0: true, hosted: false }));
      const w = world(c0.netns, "cmleth0");
      await router.routerChanged();
      const late = await up(newcomer({ hosted: false }));
      expect(names().sort()).toEqual([
        "c_0",
        `c_${numberOf(late)}`,
        "lo",
        "r_0",
        `r_${numberOf(late)}`,
        "uplink",
      ]);
      expect([early, late, c0].map((c) => c.guest.lines)).toEqual([[], [], []]);
      {
        using out = udp(w.netns, 53);
        using ue = udp(early.netns, 7000);
        using ul = udp(late.netns, 7000);
        using cml = udp(here, 7000);
        using core = udp(c0.netns, 7000);
        ue.send("10.9.0.2", 53, "early");
        ul.send("10.9.0.2", 53, "late");
        cml.send("10.9.0.2", 53, "cml"); // the CML's own way out
        expect(await out.received(3)).toEqual([
          "cml from 10.9.0.1",
          "early from 10.9.0.1",
          "late from 10.9.0.1",
        ]);
        const uplink = addresses(route)
          .find((x) => x.address.startsWith("172.23."))!
          .address.replace(/\/.*/, "");
        ue.send(uplink, 7000, "to the CML");
        core.send(uplink, 7000, "core0 to the CML");
        ul.send("10.9.0.1", 7000, "to core0"); // what core0 offers is core0's own matter
        expect((await core.received(1))[0]).toMatch(/^to core0 from 172\.23\./);
        expect(await cml.received(0)).toEqual([]);
      }
      await down(late);
      await w.end();
      // What the container has stays the same when core0 comes and goes.
      expect(shown(early)[1]!.link).toMatchObject({
        index: first.index,
        mac: first.mac,
        state: "UP",
      });
      await down(c0);
      await until(() => (names().some((n) => n.startsWith("r_")) ? [`still there: ${names()}`] : []));
      expect(names()).toEqual(["lo", "c_0"]);
    }
    await down(early);
    expect(names()).toEqual(["lo"]);
    router.leave({ hosted: false, run });
    expect(ruleset()).toBe("");
  });

  const hex = (b: Uint8Array): string => Buffer.from(b).toString("hex");

  /** Which of these frames arrive; the last one does. What the kernels say of their own accord does not count. */
  const arriving = async (from: Wire, at: Wire, frames: [string, Uint8Array][]): Promise<Set<string>> => {
    const sent = new Map(frames.map(([what, frame]) => [hex(untagged(frame)), what]));
    for (const [, frame] of frames) from.send(frame);
    return new Set((await at.upTo("the last")).flatMap((f) => sent.get(hex(f)) ?? []));
  };
  const called = (frames: [string, Uint8Array][]): Set<string> => new Set(frames.map(([what]) => what));

  /** What a container could say to pass for somebody else, to be everybody's router, or to reach who is not its
   * business. `link` is its own. */
  const lies = (link: Link, n: number, neighbour: number, uplink: number): [string, Uint8Array][] => {
    const [own, gateway] = [`172.23.${n}.2`, `172.23.${n}.1`];
    const { mac } = link;
    const other = "02:00:00:00:00:66";
    const said = (from: string, to: string, ports = [5000, 7000]): Uint8Array =>
      ip(from, to, 17, udpHeader(ports[0]!, ports[1]!, "x"));
    return [
      ["another MAC address", ipFrame(BROADCAST, other, said(own, "10.9.0.2"))],
      ["another IPv4 address", ipFrame(BROADCAST, mac, said("10.9.0.9", "10.9.0.2"))],
      ["the neighbour's IPv4 address", ipFrame(BROADCAST, mac, said(`172.23.${neighbour}.2`, "10.9.0.2"))],
      ["ARP: the gateway's address is mine", arp(2, { mac, address: gateway }, own)],
      [
        "ARP: my address is elsewhere",
        arp(2, { mac: other, address: own }, gateway, { from: mac, to: BROADCAST }),
      ],
      [
        "ARP from another MAC address",
        arp(1, { mac, address: own }, gateway, { from: other, to: BROADCAST }),
      ],
      ["a VLAN", tagged(ipFrame(BROADCAST, mac, said(own, "10.9.0.4")), 0)],
      ["IPv6: I am the router", routerAdvertisement(mac)],
      ["DHCP: I give addresses", ipFrame(BROADCAST, mac, said(own, "255.255.255.255", [67, 68]))],
      ["ICMP: there is a better way", ipFrame(BROADCAST, mac, ip(own, gateway, 1, redirect(own)))],
      ["the neighbour", ipFrame(BROADCAST, mac, said(own, `172.23.${neighbour}.2`))],
      ["the CML", ipFrame(BROADCAST, mac, said(own, `172.23.${uplink}.1`))],
    ];
  };

  test("device: what a container may not say ends at its fence, whatever root of core0 does to core0's rules", async () => {
    const c0 = await up(newcomer({ c0: true, hosted: false }));
    const [a, b] = [await up(newcomer({ hosted: false })), await up(newcomer({ hosted: false }))];
    const [n0, na, nb] = [c0, a, b].map((c) => c.guest.ledger.all("veth")[0]!.subnet) as [
      number,
      number,
      number,
    ];
    using cml = udp(here, 7000);
    Bun.spawnSync(["nsenter", `--net=/proc/${c0.child.pid}/ns/net`, "nft", "flush", "ruleset"]);
    {
      using attacker = new Wire(a.netns, 10_000 + na);
      using core = new Wire(c0.netns, 20_000 + na);
      using victim = new Wire(b.netns, 10_000 + nb);
      const link = shown(a).find((t) => t.link.name === "host0")!.link;
      const gatewayMac = a.guest.ledger.all("veth")[0]!.gatewayMac;
      const honest = ipFrame(
        gatewayMac,
        link.mac,
        ip(`172.23.${na}.2`, "10.9.0.2", 17, udpHeader(5000, 53, "the last")),
      );
      const own = arp(1, { mac: link.mac, address: `172.23.${na}.2` }, `172.23.${na}.1`);
      const said: [string, Uint8Array][] = [...lies(link, na, nb, n0), ["who I am", own], ["honest", honest]];
      expect(await arriving(attacker, core, said)).toEqual(new Set(["who I am", "honest"]));

      // core0 sends what it likes; a container takes its gateway's word, and that of the world behind it.
      using evil = new Wire(c0.netns, 20_000 + nb);
      const bMac = shown(b).find((t) => t.link.name === "host0")!.link.mac;
      const passedOn = (from: string, text = "x"): [string, Uint8Array] => [
        from,
        ipFrame(bMac, gatewayMac, ip(from, `172.23.${nb}.2`, 17, udpHeader(1, 2, text))),
      ];
      const forwarded: [string, Uint8Array][] = [
        passedOn(`172.23.${na}.2`),
        passedOn(`172.23.${n0}.1`),
        ["IPv6", routerAdvertisement(gatewayMac)],
        passedOn(`172.23.${nb}.1`),
        passedOn("10.9.0.2", "the last"),
      ];
      expect(await arriving(evil, victim, forwarded)).toEqual(new Set([`172.23.${nb}.1`, "10.9.0.2"]));
      using ua = udp(a.netns, 7001);
      ua.send(`172.23.${nb}.2`, 7000, "neighbour");
      ua.send(`172.23.${n0}.1`, 7000, "the CML");
      using uc = udp(c0.netns, 7001);
      uc.send(`172.23.${n0}.1`, 7000, "core0 to the CML");
      expect((await victim.upTo("neighbour")).filter((f) => Buffer.from(f).includes("neighbour"))).toEqual(
        [],
      );
      expect(await cml.received(0)).toEqual([]);

      // With a fence that lets everything through, all of it arrives: the test is able to fail.
      using filter = Netlink.open(NETLINK_NETFILTER);
      for (const { guest } of [a, b])
        for (const v of guest.ledger.all("veth")) {
          const table = fence(
            { ...v, addresses: undefined },
            { name: `c_${v.subnet}`, index: 20_000 + v.subnet },
            {
              name: `r_${v.subnet}`,
              index: 30_000 + v.subnet,
            },
          );
          const chains = table.chains.map((c) => ({ ...c, rules: [[c.rules.at(-1)!.at(-1)!]] }));
          replace(filter, { ...table, chains });
        }
      expect(await arriving(attacker, core, said)).toEqual(called(said));
      expect(await arriving(evil, victim, forwarded)).toEqual(called(forwarded));
      ua.send(`172.23.${nb}.2`, 7000, "neighbour");
      expect(Buffer.from((await victim.upTo("neighbour")).at(-1)!).includes("neighbour")).toBe(true);
    }
    for (const c of [a, b, c0]) await down(c);
    router.leave({ hosted: false, run });
    expect(ruleset()).toBe("");
  });

  test("two cmlds in one namespace take different numbers; neither takes what is the other's", async () => {
    const another = (await import(
      `${import.meta.dir}/../../src/cmld/network/router.ts?second`
    )) as typeof router;
    const [mine, theirs] = [newcomer(), newcomer()];
    const [ours, others] = [router.plan(mine), another.plan(theirs)];
    expect(ours[0]!.subnet).toBe(others[0]!.subnet); // both have looked before either has made its link
    const [a, b] = [sleeper(CLONE_NEWUSER), sleeper(CLONE_NEWUSER)];
    await router.connectNew(mine, a.pid, ours);
    await another.connectNew(theirs, b.pid, others);
    expect(names()).toEqual(["lo", "r_0", "r_1"]);
    expect(another.vnets(theirs.uuid)).toMatchObject([{ if_name: "host0", if_rootns_name: "r_1" }]);
    expect(theirs.ledger.all("veth").map((v) => v.subnet)).toEqual([1]);
    for (const [child, gateway] of [
      [a, "172.23.0.1"],
      [b, "172.23.1.1"],
    ] as const) {
      using netns = netnsOf(child.pid);
      expect(await ping(netns, gateway)).toBe(true);
    }
    await end(b);
    for (const v of others) await another.networkReleases.veth(v); // the number it did not get
    for (const v of theirs.ledger.all("veth")) await another.networkReleases.veth(v);
    another.networkReleases.network(theirs);
    another.leave({ hosted: true, run });
    expect(names()).toEqual(["lo", "r_0"]);
    expect(ruleset()).toContain("table inet cml"); // the first one's container is still there
    expect(ruleset().match(/table netdev/g)?.length).toBe(1);
    {
      using netns = netnsOf(a.pid);
      expect(await ping(netns, "172.23.0.1")).toBe(true);
    }
    await end(a);
    await mine.ledger.release();
    await theirs.ledger.release();
    router.leave({ hosted: true, run });
    expect({ names: names(), rules: ruleset() }).toEqual({ names: ["lo"], rules: "" });
  });

  test("a claimed link goes to its container, comes back, and can be assigned while it runs", async () => {
    route.do([addVeth({ name: "nic0", mac: "02:00:00:00:00:09" }, { name: "switch0" })]);
    const c = await up(
      newcomer({
        config: config({
          net_ifaces: [
            { netif: "02:00:00:00:00:09", mac_filter: [] },
            { netif: "nic9", mac_filter: [] },
          ],
        }),
      }),
    );
    const inside = (): string[] => shown(c).map((t) => t.link.name);
    expect(inside().sort()).toEqual(["host0", "lo", "nic0"]);
    expect(c.guest.lines).toEqual(["network interface nic9 is not there"]);

    const other = await up(newcomer());
    await expect(router.assign(other.guest.uuid, "nic0")).rejects.toThrow("nic0 is assigned to guest");
    await router.unassign(c.guest.uuid, "nic0");
    await router.unassign(c.guest.uuid, "nic0");
    expect(names()).toContain("nic0");
    await router.assign(other.guest.uuid, "nic0");
    await router.assign(other.guest.uuid, "nic0");
    await expect(router.assign(other.guest.uuid, "nic8")).rejects.toThrow(
      "network interface nic8 is not there",
    );

    // Whatever the container calls it, it comes back under our name when the container ends.
    const [r] = netlinkIn(other.netns, NETLINK_ROUTE);
    using theirs = r!;
    theirs.do([renameLink(linkOf(theirs.do([getLink("nic0")])[0]!).index, "evil")]);
    await down(other);
    await down(c);
    expect(names()).toEqual(["lo", "switch0", "nic0"]);
    route.do([deleteLink("nic0")]);
  });

  test("mac_filter: a card stays with us, and its container hears the peers that it was told of alone", async () => {
    const [card, peer, stranger] = ["02:00:00:00:00:09", "02:00:00:00:00:0a", "02:00:00:00:00:0b"];
    const wiring = (): void => {
      route.do([addVeth({ name: "nic0", mac: card }, { name: "switch0" }), upLink("switch0")]);
    };
    wiring();
    const index = (name: string): number => links(route).find((l) => l.name === name)!.index;
    const start = (mac_filter: string[]) =>
      up(newcomer({ config: config({ net_ifaces: [{ netif: "nic0", mac_filter }] }) }));
    const c = await start([peer.toUpperCase(), "AA:AA::AA:AA:AA"]);
    const inside = shown(c).find((t) => t.link.name === "c_nic0")!.link;
    expect(inside.mac).toBe(card);
    expect(names().sort()).toEqual(["lo", "nic0", "r_0", "r_nic0", "switch0"]);
    {
      const [n] = netlinkIn(c.netns, NETLINK_ROUTE);
      using theirs = n!;
      theirs.do([upLink("c_nic0")]); // as with any card: what is done with it is the container's own matter
      using carriers = new Carriers(undefined);
      carriers.note(links(route));
      await carriers.ready([index("nic0"), index("r_nic0"), index("switch0")]);
      using wire = new Wire(undefined, index("switch0"));
      using guest = new Wire(c.netns, inside.index);
      const frame = (to: string, from: string, text: string): Uint8Array =>
        ipFrame(to, from, ip("192.0.2.1", "192.0.2.2", 17, udpHeader(1, 2, text)));
      const coming: [string, Uint8Array][] = [
        ["a stranger", frame(card, stranger, "to it")],
        ["a stranger to all", frame("33:33:00:00:00:01", stranger, "to all")],
        ["a router", routerAdvertisement(stranger)],
        ["a peer to a group", frame("01:00:5e:00:00:01", peer, "to a group")],
        ["a peer", frame(card, peer, "the last")],
      ];
      const going: [string, Uint8Array][] = [
        ["as somebody else", frame(peer, stranger, "x")],
        ["as itself", frame(peer, card, "the last")],
      ];
      const talk = async () => [await arriving(wire, guest, coming), await arriving(guest, wire, going)];
      expect(await talk()).toEqual([new Set(["a peer to a group", "a peer"]), new Set(["as itself"])]);

      // A list without an address in it lets nobody in, and a filter that lets everybody in is noticed.
      using filter = Netlink.open(NETLINK_NETFILTER);
      const { gatewayMac } = c.guest.ledger.all("card")[0]!;
      const [from, to] = [
        { name: "nic0", index: index("nic0") },
        { name: "r_nic0", index: index("r_nic0") },
      ];
      const closed = cardFence({ mac: card, gatewayMac }, from, to, []);
      const open = closed.chains.map((chain, i) => ({
        ...chain,
        rules: [[forwardTo("", [to, from][i]!.index)]],
      }));
      replace(filter, { ...closed, chains: open });
      expect(await talk()).toEqual([called(coming), called(going)]);
      replace(filter, closed);
      wire.send(frame(card, peer, "the last"));
      expect((await guest.upTo("the last")).filter((f) => Buffer.from(f).includes("the last"))).toEqual([]);
    }
    const other = await up(newcomer());
    await expect(router.assign(other.guest.uuid, "nic0")).rejects.toThrow("nic0 is assigned to guest");
    await router.unassign(c.guest.uuid, card);
    expect(names().sort()).toEqual(["lo", "nic0", "r_0", "r_1", "switch0"]);
    await router.assign(other.guest.uuid, "nic0");
    expect(names().sort()).toEqual(["lo", "r_0", "r_1", "switch0"]);
    await down(other);
    await down(c);
    // One that ends gives it back as it was, and one that starts takes it again.
    const again = await start([peer]);
    expect(links(route).find((l) => l.name === "nic0")).toMatchObject({ up: true });
    await down(again);
    expect(links(route).find((l) => l.name === "nic0")).toMatchObject({ up: false, group: 0, flags: 0x1002 });
    expect(ruleset()).toBe(show(routerRules(true)));
    route.do([deleteLink("nic0")]);
    expect(names()).toEqual(["lo"]);
  });

  test("containers come and go at the same time", async () => {
    const round = async (): Promise<void> => {
      const c = await up(newcomer());
      expect(await ping(c.netns, `172.23.${c.guest.ledger.all("veth")[0]!.subnet}.1`)).toBe(true);
      await down(c);
    };
    await Promise.all(Array.from({ length: 8 }, async () => [await round(), await round()]));
    expect(names()).toEqual(["lo"]);
  });

  test("another cmld finds addresses and links in the ledger again", async () => {
    const c = await up(newcomer());
    const again = `${import.meta.dir}/../../src/cmld/network/router.ts?another`;
    const next = (await import(again)) as typeof router;
    const links = c.guest.ledger.all("veth");
    await next.adopt(c.guest, c.child.pid);
    expect(next.vnets(c.guest.uuid)).toEqual(router.vnets(c.guest.uuid)!);
    expect(next.interfaces(c.guest.uuid).texts).toEqual(router.interfaces(c.guest.uuid).texts);
    const later = newcomer();
    expect(next.plan(later)[0]!.subnet).not.toBe(links[0]!.subnet);
    await later.ledger.release();
    // Its container died with the first cmld: the next one releases what the ledger names.
    await end(c.child);
    c.netns.close();
    next.networkReleases.network(c.guest);
    for (const v of links) await next.networkReleases.veth(v);
    expect(names()).toEqual(["lo"]);
    await c.guest.ledger.release(); // all of it is gone: no error
    expect(next.vnets(c.guest.uuid)).toBeUndefined();
  });

  test("a socket in a container's namespace takes only the kernel's word", () => {
    const child = sleeper(CLONE_NEWUSER);
    const netns = netnsOf(child.pid);
    const [r, s] = openIn(
      netns,
      [NETLINK_ROUTE, NETLINK_ROUTE].map((p) => (save) => socket(16, SOCK_RAW, p, save)),
    );
    const name = new Struct(12).u16(16).bytes;
    now({ call: "bind", args: [r!.n, name, 12] });
    const length = new Struct(4).u32(12).bytes;
    now({ call: "getsockname", args: [r!.n, name, length] });
    // Root of the container sends an acknowledgement to our port before the kernel does.
    const forgedAck = new Struct(36).u32(36).u16(2).u16(0).u32(1).u32(0).i32(-1).bytes;
    now({ call: "sendto", args: [s!.n, forgedAck, 36, 0, name, 12] });
    using n = new Netlink(r!);
    n.do([upLink("lo")]);
    expect(links(n)[0]!.up).toBe(true);
    s!.close();
    netns.close();
  });

  test("Carriers hears when a link can send", async () => {
    const child = sleeper();
    const netns = netnsOf(child.pid);
    const [socket] = netlinkIn(netns, NETLINK_ROUTE);
    using theirs = socket!;
    using carriers = new Carriers(netns);
    theirs.do([addVeth({ name: "v0", index: 70 }, { name: "v1", index: 71 }), upLink(70)]);
    const ready = carriers.ready([70]);
    theirs.do([upLink(71)]);
    await ready;
    expect(linkOf(theirs.do([getLink("v0")])[0]!).state).toBe("UP");
    netns.close();
  });

  test("every answer names what was refused", () => {
    expect(() => route.do([addVeth({ name: "a/b" }, { name: "x" })])).toThrow(
      "link add a/b type veth peer x: EINVAL",
    );
    expect(() => route.do([defaultRoute(1, "10.0.0.1")])).toThrow(
      "route replace default via 10.0.0.1 dev 1: E",
    );
  });
}
