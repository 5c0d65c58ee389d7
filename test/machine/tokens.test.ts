// Tokens in a machine: what only a real boot, real hardware (QEMU's) and a slow processor can show. A locked token opens after the
// next boot, once; a PIN is typed at a keypad; a container whose token is pulled out stops or freezes.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { ContainerTokenType, ContainerUsbType, ControllerToDaemon } from "../../proto/gen/proto.js";
import { frame } from "../../src/lib/frame.ts";
import { openPkcs12 } from "../../src/pki/pkcs12.ts";
import { unwrap } from "../../src/pki/wrap.ts";
import { Secret } from "../../src/sys/secret.ts";
import { OWN_PIN, tokenBehind } from "../token.ts";
import { Vm } from "./qemu.ts";
import { guest } from "./sealed.ts";

const folder = mkdtempSync(join(tmpdir(), "tokens-"));
const file = join(folder, "disk.img");
/** Its PIN is CHEAP; the other's is the one that everybody knows. */
const [SOFT, FRESH] = [
  "f815386c-25b6-4a09-9ee4-4b65b977f167",
  "bd8f2102-ab15-4e6c-8fce-8fa4451d3730",
] as const;
const [STOPS, FREEZES] = [
  "11111111-1111-4111-8111-111111111111",
  "22222222-2222-4222-8222-222222222222",
] as const;
const UNPAIRED = "33333333-3333-4333-8333-333333333333";
/** QEMU's usb-storage and usb-kbd: docs/specs/usb-ids.rst of QEMU. */
const [STICK, KEYBOARD] = ["46f4:0001", "0627:0001"];
/** One that the kernel makes (uinput): test/machine/keypad.ts. */
const KEYPAD = "16c0:27db";
const { TOKEN, PIN_ENTRY } = ContainerUsbType;
const guest_os = "busybox";
/** With 2048 iterations, and with 600 000; typed. */
const [CHEAP, DEAR] = ["cheap-and-unmistakable\n", "dear-and-unmistakable\n"];

beforeAll(() => {
  const data = join(folder, "data");
  const base = join(data, "cml");
  const usb = (serial: string) => ({
    ...{ guest_os, token_type: ContainerTokenType.USB },
    usb_configs: [{ id: STICK, serial, assign: false, type: TOKEN }],
  });
  seed(base, {
    guests: ["core0-1", "busybox-1"],
    containers: [
      CORE0,
      { uuid: SOFT, name: "soft", guest_os: "vault", token_type: ContainerTokenType.SOFT },
      {
        ...{ uuid: FRESH, name: "typed", guest_os, token_type: ContainerTokenType.SOFT, usb_pin_entry: true },
        usb_configs: [
          { id: KEYBOARD, serial: "PIN", assign: false, type: PIN_ENTRY },
          { id: KEYPAD, serial: "", assign: false, type: PIN_ENTRY },
        ],
      },
      { uuid: UNPAIRED, name: "unpaired", guest_os, token_type: ContainerTokenType.SOFT },
      { uuid: STOPS, name: "stops", ...usb("ONE") },
      { uuid: FREEZES, name: "freezes", ...usb("TWO"), freeze_without_token: true },
    ],
  });
  guest(base, "vault", "data", "EMPTY");
  tokenBehind(CHEAP.trim(), SOFT, join(base, `tokens/${SOFT}.p12`));
  copyFileSync(`test/data/tokens/${FRESH}.p12`, join(base, `tokens/${FRESH}.p12`));
  copyFileSync(`test/data/tokens/${FRESH}.p12`, join(base, `tokens/${UNPAIRED}.p12`));
  for (const uuid of [SOFT, UNPAIRED]) mkdirSync(join(base, "containers", uuid));
  writeFileSync(join(base, "containers", SOFT, "token_is_paired"), "");
  copyFileSync(`test/data/tokens/${SOFT}.key`, join(base, `keys/${SOFT}.key`));
  disk(file, 512, data);
  writeFileSync(join(folder, "stick.img"), new Uint8Array(1 << 20));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** What must not be anywhere: the key, PINs, numbers of the token's private key. */
function needles(): string[] {
  const named = new Map<string, Uint8Array>();
  for (const pin of [CHEAP, DEAR]) named.set(`PIN-${pin.trim()}`, Buffer.from(pin.trim()));
  using pin = Secret.take(Buffer.from(OWN_PIN));
  using token = openPkcs12("token", readFileSync(`test/data/tokens/${SOFT}.p12`), pin).key;
  using key = unwrap(token, readFileSync(`test/data/tokens/${SOFT}.key`));
  key.lend((bytes) => {
    for (const at of [0, 32, 64]) {
      const piece = Buffer.from(bytes.subarray(at, at + 32));
      named.set(`key-${at}`, piece);
      named.set(`key-${at}-hexadecimal`, Buffer.from(piece.toString("hex")));
    }
  });
  const text = Bun.spawnSync(["openssl", "pkey", "-noout", "-text"], {
    stdin: token.pem(),
  }).stdout.toString();
  for (const name of ["privateExponent", "prime1", "prime2"]) {
    const found = new RegExp(`${name}:\\n((?: +[0-9a-f:]+\\n)+)`).exec(text);
    const big = Buffer.from(found![1]!.replace(/[^0-9a-f]/g, ""), "hex").subarray(-48);
    named.set(name, big);
    named.set(`${name}-words`, Buffer.from(big).reverse());
  }
  return [...named].map(([name, bytes]) => `${name}=${Buffer.from(bytes).toString("hex")}`);
}

/** Where they are, in PID 1, cmld, scd and files. */
async function places(vm: Vm): Promise<string[]> {
  const cmld = [...vm.said.matchAll(/init: cmld: started, pid (\d+)/g)].at(-1)![1]!;
  const children = await vm.ask("read", { path: `/proc/${cmld}/task/${cmld}/children` });
  const scd: string[] = [];
  for (const pid of children.split(" ").filter(Boolean)) {
    const line = await vm.ask("read", { path: `/proc/${pid}/cmdline` }).catch(() => ""); // it has ended meanwhile
    if (line.split("\0").includes("scd")) scd.push(pid);
  }
  expect(scd).toHaveLength(1);
  const argv = ["/usr/sbin/cml", "/test/search.js", ["1", cmld, ...scd].join(), ...needles()];
  const { stdout, stderr } = await vm.ask("run", { argv, env: { BUN_BE_BUN: "1" } });
  if (!stdout.startsWith("[")) throw new Error(stdout + stderr);
  return JSON.parse(stdout) as string[];
}

const controlOf =
  (vm: Vm) =>
  async (stdin: string, ...args: string[]) => {
    const { stdout, stderr, ms } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args], stdin });
    return { said: stdout + stderr, ms };
  };

test("a keypad, a token that is pulled out, and a lock that lasts until the next boot", async () => {
  {
    await using vm = Vm.boot({ disks: [file], more: ["-device", "qemu-xhci,id=xhci"] });
    const control = controlOf(vm);
    await vm.sees("core0: BOOTING → RUNNING");

    const cheap = await control(CHEAP, "start", "soft");
    expect(cheap.said).toContain("CONTAINER_START_OK");
    await vm.sees(/soft: \w+ → RUNNING/);
    // Replies of spec/core.md 2.3; LOCK_FAILED no soft token can cause (src/cmld/front.test.ts).
    const replies = async (code: string, ...[stdin, ...args]: [string, ...string[]]) =>
      expect((await control(stdin, ...args)).said).toContain(code);
    await replies("CONTAINER_START_EEXIST", CHEAP, "start", "soft");
    await replies("CONTAINER_STOP_PASSWD_WRONG", "bad\n", "stop", "soft");
    await replies("CMD_UNSUPPORTED", "", "stop", "core0");
    for (const verb of ["start", "stop"])
      await replies("CONTAINER_START_TOKEN_UNPAIRED", "trustme\n", verb, "unpaired");
    await vm.ask("write", { path: `/data/cml/containers/${UNPAIRED}/token_is_paired`, text: "" });
    await vm.ask("write", { path: `/data/cml/keys/${UNPAIRED}.key`, text: "too short" });
    await replies("CONTAINER_START_EINTERNAL", "trustme\n", "start", "unpaired");

    const sh = (text: string) => control("", "run", "soft", "nopty", "sh", "-c", text);
    expect((await sh("echo precious > /data/kept; sync; grep ' /data ' /proc/mounts")).said).toContain(
      "ext4",
    );
    // While it runs its key is in the kernel alone.
    expect(await places(vm)).toEqual([]);
    let from = vm.said.length;
    const again = async (words: RegExp): Promise<void> => {
      for (let left = 2400; !words.test(vm.said.slice(from)); left--) {
        if (left === 0) throw new Error(`not said: ${words}: ${vm.said.slice(from)}`);
        await Bun.sleep(50); // the console tells nobody that it has grown
      }
      from = vm.said.length;
    };
    // A reboot from inside cannot ask for a PIN: its volumes stay open meanwhile, also where another cmld has adopted it.
    await sh("reboot -f");
    await again(/soft: \w+ → RUNNING/);
    expect((await sh("cat /data/kept; echo first >> /data/kept")).said).toContain("precious");
    const cmld = [...vm.said.matchAll(/init: cmld: started, pid (\d+)/g)].at(-1)![1]!;
    await vm.ask("kill", { pid: Number(cmld), signal: "SIGKILL" });
    await again(/soft: adopted[\s\S]*cmld: ready/);
    await sh("reboot -f");
    await again(/soft: \w+ → RUNNING/);
    expect((await sh("cat /data/kept")).said).toContain("precious\nfirst");
    expect(vm.said).not.toContain("e2fsck");
    expect((await control(CHEAP, "stop", "soft")).said).toContain("CONTAINER_STOP_OK");
    await again(/soft: SHUTDOWN → STOPPED/);
    expect(await places(vm)).toEqual([]);
    await replies("CONTAINER_STOP_FAILED_NOT_RUNNING", CHEAP, "stop", "soft");
    expect((await control(CHEAP, "start", "soft")).said).toContain("CONTAINER_START_OK");
    await again(/soft: \w+ → RUNNING/);
    expect((await sh("cat /data/kept")).said).toContain("precious");

    // The price of 600 000 iterations on a processor that is imitated: once to write, once to open.
    const changed = await control(CHEAP + DEAR + DEAR, "change_pin", "soft");
    expect(changed.said).toContain("CONTAINER_CHANGE_PIN_SUCCESSFUL");
    const stopped = await control(DEAR, "stop", "soft");
    expect(stopped.said).toContain("CONTAINER_STOP_OK");
    await again(/soft: SHUTDOWN → STOPPED/);
    console.log(
      `start with 2048 iterations ${cheap.ms} ms, change to 600 000 ${changed.ms} ms, stop with 600 000 ${stopped.ms} ms`,
    );
    expect(await places(vm)).toEqual([]);

    // A PIN is typed at the keypad, and Esc gives up.
    const pad = { bus: "xhci.0", serial: "PIN" };
    expect((await control("", "start", "typed")).said).toContain("CONTAINER_USB_PIN_ENTRY_FAIL");
    const inputs = async () => (await vm.ask("list", { path: "/sys/class/input" })).length;
    const before = await inputs();
    await vm.monitor("device_add", { driver: "usb-kbd", id: "pad", ...pad });
    for (let left = 200; (await inputs()) < before + 2; left--) {
      if (left === 0) throw new Error("no keypad");
      await Bun.sleep(50); // what the kernel finds, it does not tell the test
    }
    expect((await control("trustme\n2468\n2468\n", "change_pin", "typed")).said).toContain("SUCCESSFUL");
    /** The n-th time that somebody is asked for a PIN. */
    const asked = async (n: number): Promise<void> => {
      for (
        let left = 600;
        (vm.said.match(/typed: waiting for a PIN at its keypad/g) ?? []).length < n;
        left--
      ) {
        if (left === 0) throw new Error(`not asked ${n} times`);
        await Bun.sleep(50); // the console tells nobody that it has grown
      }
    };
    const press = async (...keys: string[]): Promise<void> => {
      for (const data of keys) {
        await vm.monitor("send-key", { keys: [{ type: "qcode", data }], "hold-time": 50 });
        await Bun.sleep(200); // the keypad is asked every 10 ms, and QEMU does not say when it was
      }
    };
    const typing = control("", "start", "typed");
    await asked(2);
    const second = await control("", "start", "typed");
    expect(second.said).toContain("one at a time");
    await press("2", "4", "7", "backspace", "6", "kp_8", "ret");
    expect((await typing).said).toContain("CONTAINER_START_OK");
    await vm.sees(/typed: \w+ → RUNNING/);
    const given = control("", "stop", "typed");
    await asked(4);
    await press("1", "esc");
    expect((await given).said).toContain("Esc was pressed");
    await vm.monitor("device_del", { id: "pad" });
    for (let left = 200; (await inputs()) > before; left--) {
      if (left === 0) throw new Error("the keypad stays");
      await Bun.sleep(50); // as above
    }
    const keys = ["3", "5", "7", "9", "28"]; // 2 4 6 8 and Enter: linux/input-event-codes.h
    const argv = ["/usr/sbin/cml", "/test/keypad.js", KEYPAD, ...keys];
    const made = vm.ask("run", { argv, env: { BUN_BE_BUN: "1" } });
    for (let left = 600; (await inputs()) < before + 2; left--) {
      if (left === 0) throw new Error("no keypad");
      await Bun.sleep(50); // as above
    }
    expect((await control("", "stop", "typed")).said).toContain("CONTAINER_STOP_OK");
    expect((await made).stdout).toContain("typed");

    // The container runs without its token's PIN here, as it has no volume: pulling the token out ends that.
    for (const [uuid, name, serial, word] of [
      [STOPS, "stops", "ONE", /stops: SHUTDOWN → STOPPED/],
      [FREEZES, "freezes", "TWO", /freezes: FREEZING → FROZEN/],
    ] as const) {
      await vm.monitor("blockdev-add", {
        ...{ driver: "raw", "node-name": serial, "read-only": false },
        file: { driver: "file", filename: join(folder, "stick.img") },
      });
      await vm.monitor("device_add", {
        driver: "usb-storage",
        id: serial,
        bus: "xhci.0",
        drive: serial,
        serial,
      });
      for (
        let left = 200;
        !(await vm.ask("list", { path: "/sys/block" })).some((n) => n.startsWith("sd"));
        left--
      ) {
        if (left === 0) throw new Error("no stick");
        await Bun.sleep(50); // what the kernel finds, it does not tell the test
      }
      const request = { command: ControllerToDaemon.Command.CONTAINER_START, container_uuids: [uuid] };
      const send = Buffer.from(frame(ControllerToDaemon.encode(request))).toString("base64");
      await vm.ask("exchange", { socket: "/run/socket/cml-control", send, frames: 1 });
      await vm.sees(new RegExp(`${name}: \\w+ → RUNNING`));
      await vm.monitor("device_del", { id: serial });
      await vm.sees(`its token "${serial}" was pulled out`);
      await vm.sees(word);
      for (
        let left = 200;
        (await vm.ask("list", { path: "/sys/block" })).some((n) => n.startsWith("sd"));
        left--
      ) {
        if (left === 0) throw new Error("the stick stays");
        await Bun.sleep(50); // as above
      }
      for (let left = 100; ; left--)
        try {
          await vm.monitor("blockdev-del", { "node-name": serial });
          break;
        } catch (e) {
          if (left === 0) throw e;
          await Bun.sleep(50); // QEMU lets go of it a moment later
        }
    }
    expect((await control("", "unfreeze", "freezes")).said).toContain("CMD_OK");
    expect((await control("x\n", "stop", "stops")).said).toContain("CONTAINER_START_TOKEN_UNINIT");

    for (let i = 0; i < 3; i++)
      expect((await control("wrong\n", "start", "soft")).said).toContain("CONTAINER_START_PASSWD_WRONG");
    for (const verb of ["start", "stop"]) await replies("CONTAINER_LOCKED_TILL_REBOOT", DEAR, verb, "soft");
    await vm.monitor("system_powerdown");
    await vm.ended();
  }
  {
    await using vm = Vm.boot({ disks: [file] });
    const control = controlOf(vm);
    await vm.sees("core0: BOOTING → RUNNING");
    expect((await control("wrong\n", "start", "soft")).said).toContain("CONTAINER_START_PASSWD_WRONG");
    expect((await control(DEAR, "start", "soft")).said).toMatch(
      /CONTAINER_START_UNLOCK_FAILED[\s\S]*the next is taken in \d+ s/,
    );
    expect((await control(DEAR, "stop", "soft")).said).toContain("CONTAINER_STOP_UNLOCK_FAILED");
  }
}, 600_000);
