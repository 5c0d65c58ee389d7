// In the test ramdisk, run by the product's own executable: a keypad that the kernel makes for us (uinput), of a vendor and
// a product, which types keys as soon as somebody listens to it and nobody else can.
//   cml /test/keypad.js VENDOR:PRODUCT CODE …
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { modules } from "../../src/run/kmod.ts";
import { AT_FDCWD, close, ioctl, O_NONBLOCK, O_RDONLY, O_RDWR, openat, read } from "../../src/sys/calls.ts";
import { EAGAIN } from "../../src/sys/error.ts";
import { mem, Struct } from "../../src/sys/mem.ts";
import { attempt, now } from "../../src/sys/now.ts";

/** linux/uinput.h, linux/input-event-codes.h */
const [UI_DEV_CREATE, UI_DEV_SETUP, UI_SET_EVBIT, UI_SET_KEYBIT] = [
  0x5501, 0x405c5503, 0x40045564, 0x40045565,
];
const [EV_SYN, EV_KEY, BUS_USB] = [0, 1, 3];
/** linux/input.h */
const EVIOCGRAB = 0x40044590;
const EBUSY = 16;
const KEYS = 112;
const NAME = "keypad of a test";
const PATIENCE_MS = 60_000;

const [id, ...codes] = process.argv.slice(2);
const [vendor, product] = id!.split(":").map((hex) => Number.parseInt(hex, 16));
await modules(["uinput"]);
const fd = now(openat(AT_FDCWD, "/dev/uinput", O_RDWR));
now(ioctl(fd, UI_SET_EVBIT, EV_KEY));
for (let key = 1; key < KEYS; key++) now(ioctl(fd, UI_SET_KEYBIT, key));
// struct uinput_setup: struct input_id, name[80], ff_effects_max
const setup = new Struct(92).u16(BUS_USB).u16(vendor!).u16(product!).u16(1).bytes;
setup.set(Buffer.from(NAME), 8);
now(ioctl(fd, UI_DEV_SETUP, setup));
now(ioctl(fd, UI_DEV_CREATE, 0));

/** "/dev/input/event3", once the kernel has made it. */
const event = readdirSync("/sys/class/input").find(
  (name) =>
    name.startsWith("event") &&
    readFileSync(`/sys/class/input/${name}/device/name`, "latin1").trim() === NAME,
);
if (event === undefined) throw new Error("the kernel has made no keypad");

/** Descriptors of it that other processes have open. */
const listeners = (): number =>
  readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid) && pid !== String(process.pid))
    .flatMap((pid) => {
      try {
        return readdirSync(`/proc/${pid}/fd`).map((n) => readlinkSync(`/proc/${pid}/fd/${n}`));
      } catch {
        return []; // ended meanwhile
      }
    })
    .filter((path) => path === `/dev/input/${event}`).length;

const until = async (what: string, holds: () => boolean): Promise<void> => {
  const end = performance.now() + PATIENCE_MS;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`${what}: not in ${PATIENCE_MS / 1000} s`);
    await Bun.sleep(20); // /proc tells nobody that it has changed
  }
};

const write = (type: number, code: number, value: number): void => {
  const bytes = new Struct(24).skip(16).u16(type).u16(code).i32(value).bytes;
  now({ call: "write", args: [fd, bytes, bytes.length], want: bytes.length });
};

// init opens it as well, for a moment: it might have a power key. And who listens forgets what was typed before.
do {
  await until("nobody listens", () => listeners() > 0);
  await Bun.sleep(200); // that moment
} while (listeners() === 0);
const other = now(openat(AT_FDCWD, `/dev/input/${event}`, O_RDONLY | O_NONBLOCK));
if (attempt(ioctl(other, EVIOCGRAB, 1)) !== -EBUSY) throw new Error("the keypad is not its listener's alone");
for (const code of codes)
  for (const value of [1, 0]) {
    write(EV_KEY, Number(code), value);
    write(EV_SYN, 0, 0);
  }
if (attempt(read(other, mem(24))) !== -EAGAIN) throw new Error("somebody else has heard it");
now(close(other));
await until("somebody listens", () => listeners() === 0);
console.log("typed");
process.exit(0);
