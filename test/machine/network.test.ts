// The network of a machine: its cards belong to core0, containers reach the world through it and nobody else, and a
// card can be lent. "The world" is a port that QEMU answers itself, behind a network closed to everything else.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "network-"));
const file = join(folder, "disk.img");
const WORLD = "10.0.2.100";
const LENT = "52:54:00:00:00:02";
const CARDS = [
  ...["-netdev", `user,id=n0,restrict=on,guestfwd=tcp:${WORLD}:80-cmd:echo the world answers`],
  ...["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"],
  ...["-netdev", "user,id=n1,net=10.0.3.0/24,restrict=on", "-device", `virtio-net-pci,netdev=n1,mac=${LENT}`],
];

beforeAll(() => {
  const data = join(folder, "data");
  const containers = ["web", "db"].map((name) => ({ name, guest_os: "busybox" }));
  seed(join(data, "cml"), { guests: ["core0-1", "busybox-1"], containers: [CORE0, ...containers] });
  disk(file, 512, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

test("containers reach the world through core0, not each other, not the CML; cards go to core0 and can be lent", async () => {
  await using vm = Vm.boot({ disks: [file], more: CARDS });
  const control = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return stdout + stderr;
  };
  await vm.sees("core0: BOOTING → RUNNING");

  // The cards have our names and are core0's, which has asked for addresses.
  expect((await vm.ask("list", { path: "/sys/class/net" })).filter((name) => /eth/.test(name))).toEqual([]);
  await vm.type("until ip -o addr | grep -q 'cmleth[01].*10.0.2'; do sleep 0.2; done; echo address: there");
  await vm.seesInCore0("\naddress: there");
  await vm.type(
    "ip -o link | sed 's/:.*cml/ cml/' | grep -c cmleth; nft list table inet cml; echo rules: shown",
  );
  await vm.seesInCore0(/\n2\r?\n/);
  await vm.seesInCore0("iifgroup 6516076 oifgroup 6516076 drop");
  await vm.seesInCore0("\nrules: shown");

  for (const name of ["web", "db"]) {
    expect(await control("start", name)).toContain("CONTAINER_START_OK");
    await vm.sees(new RegExp(`${name}: \\w+ → RUNNING`));
  }
  const address = async (name: string): Promise<string> => {
    const said = await control("run", name, "ip", "addr");
    expect(said).toMatch(/172\.23\.\d+\.2/);
    return /172\.23\.\d+\.2/.exec(said)![0];
  };
  const [web, db] = [await address("web"), await address("db")];
  const ping = (from: string, to: string) => control("run", from, "ping", "-c", "1", "-W", "2", to);
  expect(await control("run", "web", "nc", WORLD, "80")).toContain("the world answers");
  expect(await ping("web", web.replace(/2$/, "1"))).toContain("1 packets received");
  expect(await ping("web", db)).toContain("0 packets received");
  const uplink = await control("run", "core0", "ip", "addr");
  const cml = /172\.23\.(\d+)\.2\/24 brd \S+ scope global cml/.exec(uplink)![1];
  expect(await ping("web", `172.23.${cml}.1`)).toContain("0 packets received");

  // Root of core0 takes all its rules away: containers do not find each other, nor the CML.
  await vm.type(
    "nft flush ruleset; nft list ruleset | wc -l; cat /proc/sys/net/ipv4/ip_forward; echo rules: gone",
  );
  await vm.seesInCore0(/\n0\r?\n1\r?\nrules: gone/);
  expect(await ping("web", web.replace(/2$/, "1"))).toContain("1 packets received");
  expect(await ping("web", db)).toContain("0 packets received");
  expect(await ping("web", `172.23.${cml}.1`)).toContain("0 packets received");

  expect(await control("ifaces", "web")).not.toContain(LENT);
  expect(await control("assign_iface", "web", "--iface", LENT)).toContain("CMD_OK");
  expect(await control("ifaces", "web")).toContain(LENT);
  await vm.type("ip -o link | grep -c cmleth; echo cards: counted");
  await vm.seesInCore0(/\n1\r?\ncards: counted/);
  expect(await control("stop", "web")).toContain("CONTAINER_STOP_OK");
  await vm.sees(/web: \w+ → STOPPED/);
  await vm.type("ip -o link | grep -c cmleth; echo cards: counted");
  await vm.seesInCore0(/\n2\r?\ncards: counted/);
}, 300_000);
