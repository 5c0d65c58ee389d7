// `make run`: the machine in QEMU with core0's console here. The kernel and the CML talk to out/run.log. On a terminal
// Ctrl-A x leaves QEMU; otherwise commands are read from standard input and typed at core0's shell, and at their end
// the power button is pressed.
import { closeSync, openSync } from "node:fs";
import { base } from "../test/machine/qemu.ts";

const LOG = "out/run.log";
const MONITOR = "out/run.monitor";
/** core0's shell waits for a command, or for more of one: busybox' prompts, and its question where the cursor is. */
const PROMPT = /(^|[\r\n])([^\r\n]*[#$]|>) (\x1b\[6n)?$/;
/** How long the machine may take to its prompt, and to switch off: it is emulated. */
const [PROMPT_MS, END_MS] = [180_000, 120_000];

const [initramfs = "out/initramfs.cpio", disk = "out/disk.img", memory = "512"] = process.argv.slice(2);
const terminal = process.stdin.isTTY === true;
closeSync(openSync(LOG, "w"));

const argv = [
  "qemu-system-x86_64",
  ...base({ initramfs, disks: [disk], memory: Number(memory), append: "loglevel=6" }),
  ...["-serial", `file:${LOG}`],
  // The mux gives Ctrl-A its meaning; signals go to the guest.
  ...["-chardev", "stdio,id=core0,mux=on,signal=off", "-mon", "chardev=core0"],
  ...["-device", "virtconsole,chardev=core0"],
  ...["-qmp", `unix:${MONITOR},server=on,wait=off`],
  ...["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"],
];

if (terminal) {
  console.log(`core0's console; Ctrl-A x leaves the machine. Kernel and CML: ${LOG}\r`);
  const qemu = Bun.spawn(argv, { stdin: "inherit", stdout: "inherit", stderr: "inherit" });
  process.on("SIGINT", () => {}); // Ctrl-C is for the guest
  process.exit(await qemu.exited);
}

const qemu = Bun.spawn(argv, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
let seen = "";
let wake = () => {};
const over = (async () => {
  const decoder = new TextDecoder();
  for await (const chunk of qemu.stdout) {
    process.stdout.write(chunk);
    seen = (seen + decoder.decode(chunk, { stream: true })).slice(-65_536);
    wake();
  }
})();

/** Resolves when `found` is true of what core0 has printed; throws when the machine ends or takes too long. */
async function until(found: () => boolean, ms: number, what: string): Promise<void> {
  const late = Bun.sleep(ms).then(() => {
    throw new Error(`no ${what} within ${ms / 1000} s`);
  });
  late.catch(() => {});
  const ended = over.then(() => {
    throw new Error(`the machine ended before ${what}`);
  });
  ended.catch(() => {});
  while (!found())
    await Promise.race([
      late,
      ended,
      new Promise<void>((resolve) => {
        wake = resolve;
      }),
    ]);
}

function type(text: string): void {
  qemu.stdin.write(text);
  qemu.stdin.flush();
}

async function powerButton(): Promise<void> {
  const socket = await Bun.connect({ unix: MONITOR, socket: { data() {} } });
  socket.write('{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}');
}

let status = 0;
try {
  await until(() => PROMPT.test(seen), PROMPT_MS, "prompt of core0");
  for await (const line of console) {
    seen = "";
    type(`${line}\n`);
    await until(() => PROMPT.test(seen), PROMPT_MS, `prompt after ${JSON.stringify(line)}`);
  }
  await powerButton();
  const late = Bun.sleep(END_MS).then(() => {
    throw new Error(`the machine is not off within ${END_MS / 1000} s`);
  });
  await Promise.race([qemu.exited, late]);
} catch (e) {
  console.error(`\nrun: ${e instanceof Error ? e.message : e}; see ${LOG}`);
  qemu.kill(9);
  status = 1;
}
process.exit(status);
