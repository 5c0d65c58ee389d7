// A graphics card in a machine: the framebuffer that the firmware left on a PCI card, as the kernel's vesafb has it, is
// one container's, who draws what QEMU then sees on the screen; with it come a terminal and the keyboard.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "xorg-"));
const file = join(folder, "disk.img");
/** 800 × 600, three bytes a pixel: Documentation/fb/vesafb.rst; QEMU hands `vga=` to the firmware. */
const [MODE, WIDTH, HEIGHT, BYTES] = ["vga=0x315", 800, 600, 3] as const;
const FRAMEBUFFER = "c 29:0 rwm"; // Documentation/admin-guide/devices.txt
/** Lines of the screen that are painted, each with its own colour: blue, green, red. */
const PAINTED = [
  { line: 100, color: [0x20, 0x40, 0xf0] },
  { line: 300, color: [0xe0, 0x10, 0x30] },
] as const;
/** Of two that want the same, the older one has it: the lesser uuid, for the disk gives both one date. */
const [DESK, LATER] = ["1", "2"].map((n) => `${n.repeat(8)}-1111-1111-1111-111111111111`) as [string, string];

beforeAll(() => {
  const data = join(folder, "data");
  const wants = { guest_os: "busybox", enable_xorg_compat: true };
  const own = { assign_dev: [FRAMEBUFFER, "c 4:1 rwm", "c 13:* rwm"] };
  seed(join(data, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [
      CORE0,
      { ...wants, ...own, uuid: DESK, name: "desk" },
      { ...wants, uuid: LATER, name: "later", allow_dev: [FRAMEBUFFER] },
    ],
  });
  disk(file, 256, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

/** The three bytes of a pixel in a PPM file, netpbm's ppm(5): "P6", width, height, 255, each on a line of its own. */
function pixel(picture: Buffer, x: number, y: number): number[] {
  const head = /^P6\n(\d+) (\d+)\n255\n/.exec(picture.subarray(0, 32).toString("latin1"))!;
  expect([Number(head[1]), Number(head[2])]).toEqual([WIDTH, HEIGHT]);
  const at = head[0].length + (y * WIDTH + x) * 3;
  return [...picture.subarray(at, at + 3)];
}

test("the framebuffer of a PCI card is one container's, who draws on the screen; it goes to the next one afterwards", async () => {
  await using vm = Vm.boot({ disks: [file], append: `quiet ${MODE}`, more: ["-device", "VGA"] });
  const control = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return stdout + stderr;
  };
  const sh = (name: string, script: string) => control("run", "--no-tty", name, "sh", "-c", script);
  const line = ({ line, color }: (typeof PAINTED)[number]): string => {
    const one = color.map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
    return (
      `for i in $(seq ${WIDTH}); do printf '${one}'; done > /tmp/line; ` +
      `dd if=/tmp/line of=/dev/fb0 bs=${WIDTH * BYTES} seek=${line} conv=notrunc`
    );
  };
  const painted = async ({ line, color }: (typeof PAINTED)[number]): Promise<void> => {
    const picture = join(folder, "screen.ppm");
    await vm.monitor("screendump", { filename: picture });
    const [blue, green, red] = color;
    for (const x of [0, WIDTH / 2, WIDTH - 1])
      expect(pixel(readFileSync(picture), x, line)).toEqual([red, green, blue]);
  };
  await vm.sees("core0: BOOTING → RUNNING");
  expect(await control("start", "desk")).toContain("CONTAINER_START_OK");
  await vm.sees(/desk: \w+ → RUNNING/);

  // What an X server looks at: the card's framebuffer is a platform device, and the nodes are there.
  const there = await sh(
    "desk",
    "readlink -f /sys/class/graphics/fb0; cat /sys/class/graphics/fb0/name; ls -l /dev",
  );
  expect(there).toMatch(/^\/sys\/devices\/.*vesa-framebuffer\.0\/graphics\/fb0$/m);
  expect(there).toContain("VESA VGA");
  expect(there).toMatch(/29,\s+0 .* fb0/);
  expect(there).toMatch(/4,\s+1 .* tty1/);
  expect(await sh("desk", "ls /dev/input")).toMatch(/event\d/);

  expect(await sh("desk", line(PAINTED[0]))).toContain("1+0 records out");
  await painted(PAINTED[0]);

  // A key that is pressed while somebody reads: struct input_event has 24 bytes, type 1 is EV_KEY, code 30 KEY_A.
  const keys = sh(
    "desk",
    'for e in /dev/input/event*; do cat $e > /tmp/event-$(basename $e) & done; sleep 3; cat /tmp/event-* | hexdump -v -e "24/1 \\"%02x\\" \\"\\n\\""',
  );
  let over = false;
  void keys.finally(() => (over = true));
  while (!over) {
    await vm.monitor("send-key", { keys: [{ type: "qcode", data: "a" }] });
    await Bun.sleep(200); // a key must be let go before it is pressed again; nobody says when the reading has begun
  }
  expect(await keys).toMatch(/^.{32}01001e0001000000$/m);

  // Nobody else's.
  expect(await control("start", "later")).toContain(`desk is assigned "${FRAMEBUFFER}"`);
  expect(await control("dev_access", "core0", FRAMEBUFFER)).toContain(`desk is assigned "${FRAMEBUFFER}"`);
  expect(await sh("core0", "mknod /tmp/fb0 c 29 0; cat /tmp/fb0 | wc -c")).not.toMatch(/^[1-9]/m);

  // Taken away while it runs, and given back.
  expect(await control("dev_access", "desk", "c 29:0")).toContain("CMD_OK");
  expect(await sh("desk", "ls /dev/fb0; echo end")).toContain("No such file");
  expect(await control("dev_access", "desk", FRAMEBUFFER)).toContain("CMD_OK");
  expect(await sh("desk", "ls /dev/fb0")).toMatch(/^\/dev\/fb0/);

  // And to the next one, when nobody else wants it any more.
  expect(await control("stop", "desk")).toContain("CONTAINER_STOP_OK");
  await vm.sees(/desk: \w+ → STOPPED/);
  expect(await control("remove", "desk")).toContain("CMD_OK");
  expect(await control("start", "later")).toContain("CONTAINER_START_OK");
  await vm.sees(/later: \w+ → RUNNING/);
  expect(await sh("later", line(PAINTED[1]))).toContain("1+0 records out");
  await painted(PAINTED[0]); // as the first one left it
  await painted(PAINTED[1]);
  expect(vm.said).not.toMatch(/enable_xorg_compat/); // nothing to say of it
}, 600_000);
