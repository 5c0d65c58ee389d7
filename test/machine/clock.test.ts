// A machine whose clock was moved asks the server of device.conf, over core0's network, and says how far it is off.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "clock-"));
const file = join(folder, "disk.img");
/** This host, as QEMU's own network shows it. */
const HOST = "10.0.2.2";
const CARD = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"];
const MOVED_S = 7200;
const EPOCH = 2_208_988_800; // of NTP: 1900
/** The ramdisk has no date; the runtime can call the kernel. */
const MOVE = `
  const { dlopen } = require("bun:ffi");
  const libc = dlopen("libc.so.6", { clock_settime: { args: ["i32", "ptr"], returns: "i32" } });
  const time = new BigInt64Array([BigInt(Math.floor(Date.now() / 1000) + ${MOVED_S}), 0n]);
  process.exit(libc.symbols.clock_settime(0, time) === 0 ? 0 : 1);`;

const server = createSocket("udp4");
beforeAll(async () => {
  server.on("message", (question, from) => {
    const answer = Buffer.alloc(48); // RFC 5905, figure 8: of a server, with its question's time
    answer.set([(4 << 3) | 4, 2]);
    question.copy(answer, 24, 40, 48);
    for (const at of [32, 40]) answer.writeUInt32BE((Math.floor(Date.now() / 1000) + EPOCH) % 2 ** 32, at);
    server.send(answer, from.port, from.address);
  });
  await new Promise<void>((bound) => server.bind(0, "127.0.0.1", bound));
  const data = join(folder, "data");
  seed(join(data, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [CORE0, { name: "web", guest_os: "busybox" }],
    device: { ntp_server: `${HOST}:${server.address().port}` },
  });
  disk(file, 256, data);
});
afterAll(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

test("a clock that was moved is compared with ntp_server, over core0's network", async () => {
  await using vm = Vm.boot({ disks: [file], more: CARD });
  await vm.sees("core0: BOOTING → RUNNING");
  await vm.type("until ip -o addr | grep -q 'cmleth0.*10.0.2'; do sleep 0.2; done; echo address: there");
  await vm.seesInCore0("\naddress: there");
  const moved = await vm.ask("run", { argv: ["/usr/sbin/cml", "-e", MOVE], env: { BUN_BE_BUN: "1" } });
  expect(moved.status).toBe(0);
  await vm.ask("run", { argv: ["/usr/sbin/control", "start", "web"] });
  const said = await vm.sees(/the clock is (\d+) s ahead of [\d.:]+, and was moved by (\d+) s/);
  const [ahead, by] = [...said.matchAll(/(\d+) s/g)].map((m) => Number(m[1]));
  for (const seconds of [ahead!, by!]) expect(Math.abs(seconds - MOVED_S)).toBeLessThan(60); // a slow machine's
}, 300_000);
