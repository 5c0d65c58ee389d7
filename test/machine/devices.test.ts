// Devices on the machine's kernel: a container gets a disk that it is allowed, never the one that the machine lives on.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "devices-"));
const [data, spare] = [join(folder, "disk.img"), join(folder, "spare.img")];

beforeAll(() => {
  const tree = join(folder, "data");
  seed(join(tree, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [CORE0, { name: "web", guest_os: "busybox", assign_dev: ["c 4:1 rwm"] }],
  });
  disk(data, 512, tree);
  writeFileSync(spare, "the spare disk\n");
  truncateSync(spare, 1 << 20);
});
afterAll(() => rmSync(folder, { recursive: true }));

test("a disk can be lent to a container, to read only; the machine's own cannot", async () => {
  await using vm = Vm.boot({ disks: [data, spare] });
  const control = async (...args: string[]): Promise<string> => {
    const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
    return stdout + stderr;
  };
  await vm.sees("core0: BOOTING → RUNNING");
  expect(await control("start", "web")).toContain("CONTAINER_START_OK");
  await vm.sees(/web: \w+ → RUNNING/);
  const web = (...argv: string[]) => control("run", "--no-tty", "web", ...argv);
  const there = await web("ls", "-l", "/dev");
  expect(there).toMatch(/4,\s+1 .* tty1/);
  expect(there).not.toMatch(/vd[ab]|console|kmsg|loop/);

  const lent = await vm.disk("disk1");
  const dev = async (name: string) => (await vm.ask("read", { path: `/sys/block/${name}/dev` })).trim();
  const [own, other] = [await dev(await vm.disk("disk0")), await dev(lent)];
  expect(await control("dev_access", "web", `b ${own} r`)).toContain(
    "names devices that are the machine's own",
  );
  expect(await control("dev_access", "web", `b ${other} r`)).toContain("CMD_OK");
  expect(await web("head", "-n", "1", `/dev/${lent}`)).toContain("the spare disk");
  expect(await web("dd", "if=/dev/zero", `of=/dev/${lent}`, "count=1")).toContain("not permitted"); // to read only
}, 600_000);
