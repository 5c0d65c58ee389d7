// `make run` as CI has it, without a terminal: commands come from a pipe, core0's shell does them, and at their end the
// machine is switched off.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Seat } from "../seat.ts";

const folder = mkdtempSync(join(tmpdir(), "run-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("at a terminal Ctrl-A x leaves the machine, whatever it does", async () => {
  const file = join(folder, "empty.img");
  writeFileSync(file, Buffer.alloc(1 << 20));
  const argv = [process.execPath, "initramfs/run.ts", "out/initramfs.cpio", file];
  await using user = new Seat(argv, [`PATH=${process.env.PATH}`], { rows: 24, columns: 80 });
  await user.sees("Ctrl-A x leaves the machine");
  const over = user.ended().then(() => true);
  do user.type("\x01x");
  while (!(await Promise.race([over, Bun.sleep(300)]))); // QEMU does not say when it listens
  expect(await user.ended()).toEqual({ status: 0 });
}, 60_000);

test("commands from a pipe are done in core0; `exit` gives a new shell; at their end the machine is off", async () => {
  const data = join(folder, "data");
  seed(join(data, "cml"), { guests: ["core0-1"], containers: [CORE0], fresh: true });
  const file = join(folder, "disk.img");
  disk(file, 256, data);
  const commands = [
    "control list",
    "exit",
    "control create /usr/share/cml/debian.conf; echo created: $?",
    "cat > /tmp/sum <<EOF", // a prompt of its own
    "echo $((6 * 7)) is the sum",
    "EOF",
    "sh /tmp/sum",
  ];
  const run = Bun.spawn([process.execPath, "initramfs/run.ts", "out/initramfs.cpio", file], {
    stdin: Buffer.from(`${commands.join("\n")}\n`),
    stdout: "pipe",
    stderr: "inherit",
  });
  const said = Bun.stripANSI(await new Response(run.stdout).text());
  expect(await run.exited).toBe(0);
  expect(said).toMatch(/core0 +running/); // the console is a terminal
  // Its GuestOS is not on this disk.
  expect(said).toMatch(/control: create .*guest_os.*created: 1\r?\n/s);
  expect(said).toMatch(/\n42 is the sum\r?\n/);
  const log = readFileSync("out/run.log", "utf8");
  expect(log).toContain("core0: BOOTING → RUNNING");
  expect(log).toContain("init: power button: power off");
  expect(log).toContain("init: power off: now");
  expect(said).not.toContain("BOOTING → RUNNING"); // what the CML says is not on core0's console
}, 300_000);
