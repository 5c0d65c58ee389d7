// The network: another container, the host, core0; and passing for somebody else on the way.
import { readFileSync } from "node:fs";
import { ControllerToDaemon } from "../../../proto/gen/proto.js";
import type { Module } from "../../../src/cmld/module.ts";
import { fenceOf, ROUTER } from "../../../src/cmld/network/fences.ts";
import { C0 } from "../../../src/lib/uuid.ts";
import { NETLINK_NETFILTER, Netlink } from "../../../src/sys/netlink.ts";
import { remove } from "../../../src/sys/nft.ts";
import type { Attack, Ground, Guest, Inside, Weak } from "../attack.ts";

const MALLORY: Guest = { name: "mallory", writable: true };
const NEIGHBOUR: Guest = { name: "neighbour", writable: true };

/** The product's links without its rules. */
const undefended = (network: Module): Module => ({
  ...network,
  async attach(s, p) {
    await network.attach?.(s, p);
    using filter = Netlink.open(NETLINK_NETFILTER);
    remove(filter, ROUTER);
    for (const v of s.owned.all("veth")) remove(filter, fenceOf(v));
  },
});
const NO_RULES: Weak = {
  modules: (all) => all.map((m) => (m.name === "network" ? undefended(m) : m)),
};

/** The shell's variables mine, mac, gateway and router, the gateway's MAC address. */
const WHO_AM_I = `
  mine=$(ip -4 addr show host0 | sed -n 's/.*inet \\(172[0-9.]*\\).*/\\1/p')
  mac=$(cat /sys/class/net/host0/address)
  gateway=\${mine%.2}.1
  ping -c 1 -W 2 $gateway >/dev/null
  router=$(awk -v g=$gateway '$1 == g { print $4 }' /proc/net/arp)
`;
const address = async (c: Inside): Promise<string> =>
  (await c.run(`ip -4 addr show host0 | sed -n 's/.*inet \\(172[0-9.]*\\).*/\\1/p'`)).trim();

async function both(
  g: Ground,
  act: (attacker: Inside, neighbour: Inside) => Promise<string>,
): Promise<string> {
  const neighbour = await g.start(NEIGHBOUR);
  try {
    const attacker = await g.start(MALLORY);
    try {
      return await act(attacker, neighbour);
    } finally {
      await attacker.end();
    }
  } finally {
    await neighbour.end();
  }
}

/** Say something to the neighbour, from these addresses, again and again; whether it hears. */
const tellNeighbour = (from: (victim: string) => { mac: string; ip: string }) => (g: Ground) =>
  both(g, async (attacker, neighbour) => {
    const victim = await address(neighbour);
    const { mac, ip } = from(victim);
    await neighbour.run("(setsid attack hear host0 30 ppssst >/tmp/heard 2>&1 &)");
    const sent = await attacker.run(`${WHO_AM_I}
      for i in 1 2 3 4 5; do attack frame host0 $router ${mac} ${ip} ${victim} 7 ppssst; sleep 0.2; done`);
    if (!/sent/.test(sent)) throw new Error(`nothing was sent: ${sent}`);
    const heard = await neighbour.run("cat /tmp/heard");
    if (!/listening/.test(heard)) throw new Error(`nobody listened: ${heard}`);
    return /heard/.test(heard) ? `won: ${victim} has heard it` : `held: ${victim} has heard nothing`;
  });

const ROW = 36;

export const networks: readonly Attack[] = [
  {
    row: ROW,
    name: "another container, by its address",
    guest: NEIGHBOUR,
    attempt: tellNeighbour(() => ({ mac: "$mac", ip: "$mine" })),
    proof: NO_RULES,
  },
  {
    row: ROW,
    name: "another container, from an address of its own network",
    guest: MALLORY,
    attempt: tellNeighbour((victim) => ({ mac: "$mac", ip: victim.replace(/2$/, "77") })),
    proof: NO_RULES,
  },
  {
    row: ROW,
    name: "another container, from somebody else's MAC address",
    attempt: tellNeighbour(() => ({ mac: "02:00:00:00:00:66", ip: "$mine" })),
    proof: NO_RULES,
  },
  {
    row: ROW,
    name: "another container, after root of core0 has removed every rule there",
    only: "machine",
    async attempt(g) {
      const answer = await g.ask(ControllerToDaemon.Command.CONTAINER_EXEC_CMD, {
        container_uuids: [C0],
        exec_command: "nft",
        exec_args: ["nft", "flush", "ruleset"],
        exec_pty: false,
      });
      if (answer.exit_status !== 0) throw new Error(`core0: nft ended with ${answer.exit_status}`);
      return await tellNeighbour(() => ({ mac: "$mac", ip: "$mine" }))(g);
    },
    proof: NO_RULES, // seen with the first attack, the same packet; through open fences in test/host/network.test.ts
  },
  {
    row: ROW,
    name: "a service of the host",
    only: "host",
    async attempt(g) {
      let heard = "";
      const service = await Bun.udpSocket({
        socket: {
          data(_, data) {
            heard += data.toString();
          },
        },
      });
      const c = await g.start(MALLORY);
      try {
        await c.run(`${WHO_AM_I}
          for i in 1 2 3; do attack frame host0 $router $mac $mine $gateway ${service.port} ppssst; sleep 0.2; done`);
        return heard === "" ? "held: it has heard nothing" : `won: ${heard}`;
      } finally {
        await c.end();
        service.close();
      }
    },
    proof: NO_RULES,
  },
  {
    row: ROW,
    name: "the router's table of neighbours: an address that is not its own",
    only: "host",
    async attempt(g) {
      const c = await g.start(MALLORY);
      try {
        const forged = (await address(c)).replace(/2$/, "77");
        await c.run(`${WHO_AM_I} attack arp host0 $mac ${forged} $gateway; sleep 0.3`);
        const table = readFileSync("/proc/self/net/arp", "utf8");
        return table.includes(`${forged} `)
          ? `won: ${forged} is believed`
          : `held: ${forged} is not believed`;
      } finally {
        await c.end();
      }
    },
    proof: NO_RULES,
  },
];
