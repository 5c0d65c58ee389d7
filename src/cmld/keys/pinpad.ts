// A PIN typed at a USB keypad that belongs to the machine, not to the client who asks for the start (usb_pin_entry). The keypad
// is the one that the container's configuration names; while somebody types, nobody else hears it. Digits count; Backspace
// takes one back, Enter ends, Esc gives up. One person types at a time, and who hangs up ends his own entry alone.
import { readdir, realpath } from "node:fs/promises";
import { ContainerUsbType } from "../../../proto/gen/proto.js";
import { AT_FDCWD, O_CLOEXEC, O_NONBLOCK, O_RDONLY, openat, read } from "../../sys/calls.ts";
import { chain, EAGAIN, SysError } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { mem } from "../../sys/mem.ts";
import { attempt, now } from "../../sys/now.ts";
import { EPOLLIN, watch } from "../../sys/poll.ts";
import { Secret } from "../../sys/secret.ts";
import { attribute } from "../../sys/sysfs.ts";
import type { UsbConfig } from "../devices/usb.ts";

/** As the original's. */
const [PIN_MAX, PATIENCE_MS] = [64, 60_000];
const EVIOCGRAB = 0x40044590; // linux/input.h
const EVENT = 24; // sizeof(struct input_event), 64 bits
const EV_KEY = 1;
/** linux/input-event-codes.h: the row of digits, and the keypad. */
const DIGITS: ReadonlyMap<number, number> = new Map([
  ...[2, 3, 4, 5, 6, 7, 8, 9, 10, 11].map((code, i) => [code, (i + 1) % 10] as const),
  ...[82, 79, 80, 81, 75, 76, 77, 71, 72, 73].map((code, i) => [code, i] as const),
]);
const [ESC, BACKSPACE, ENTER, KEYPAD_ENTER] = [1, 14, 28, 96];
const ZERO = 0x30;

/** What a stream of input events makes of a PIN. */
export class Typed implements Disposable {
  readonly #pin = Secret.empty(PIN_MAX);
  #length = 0;

  /** One struct input_event: the PIN when it is complete. Throws where there will be none. */
  event(bytes: Uint8Array): Secret | undefined {
    const view = new DataView(bytes.buffer, bytes.byteOffset, EVENT);
    if (view.getUint16(16, true) !== EV_KEY || view.getInt32(20, true) !== 1) return undefined; // released, or held
    const code = view.getUint16(18, true);
    if (code === ESC) throw new Error("Esc was pressed");
    if (code === ENTER || code === KEYPAD_ENTER) {
      const made = Secret.empty(this.#length);
      this.#pin.lend((from) => made.lend((to) => to.set(from.subarray(0, this.#length))));
      return made;
    }
    if (code === BACKSPACE) this.#length = Math.max(0, this.#length - 1);
    const digit = DIGITS.get(code);
    if (digit === undefined) return undefined;
    if (this.#length === PIN_MAX) throw new Error(`more than ${PIN_MAX} digits`);
    this.#pin.lend((to) => {
      to[this.#length] = ZERO + digit;
    });
    this.#length++;
    return undefined;
  }

  [Symbol.dispose](): void {
    this.#pin[Symbol.dispose]();
  }
}

/** /dev/input/event… of the keypad that is meant: by vendor and product, and where the configuration says so by the serial number
 * and the port of the USB device that it is a part of. */
async function padOf(configs: readonly UsbConfig[]): Promise<string> {
  const pads = configs.filter((c) => c.type === ContainerUsbType.PIN_ENTRY);
  if (pads.length === 0) throw new Error("usb_configs has no keypad, which is an entry of type PIN_ENTRY");
  const names = await readdir(`/sys${INPUTS}`).catch(() => []);
  for (const name of names.filter((n) => /^event\d+$/.test(n)).sort()) {
    const device = `${INPUTS}/${name}/device`;
    const id = `${await attribute(device, "id/vendor")}:${await attribute(device, "id/product")}`;
    if (!(await hasDigits(device))) continue;
    for (const pad of pads)
      if (same(pad.id, id) && (await isPartOf(pad, device))) return `/dev/input/${name}`;
  }
  throw new Error(`no keypad ${pads.map((p) => p.id).join(", ")} is plugged in`);
}

/** Below /sys. */
const INPUTS = "/class/input";

const same = (wanted: string, id: string): boolean =>
  wanted
    .toLowerCase()
    .split(":")
    .map((n) => n.padStart(4, "0"))
    .join(":") === id.toLowerCase();

/** Enter and the digits are among its keys: "… 402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe". */
async function hasDigits(device: string): Promise<boolean> {
  const text = (await attribute(device, "capabilities/key")) ?? "";
  const lowest = BigInt(`0x${/([0-9a-f]+)\s*$/.exec(text)?.[1] ?? "0"}`);
  return (lowest & (1n << BigInt(ENTER))) !== 0n && (lowest & (1n << 11n)) !== 0n;
}

async function isPartOf(pad: UsbConfig, device: string): Promise<boolean> {
  if (pad.serial === "" && pad.port === "") return true;
  const path = (await realpath(`/sys${device}`)).slice("/sys".length);
  const usb = /^(.*\/usb\d+(?:\/[\d.-]+)*\/([\d.-]+))\/[\d.-]+:[\d.]+\//.exec(path);
  if (!usb) return false;
  if (pad.port !== "" && usb[2] !== pad.port) return false;
  return ((await attribute(usb[1]!, "serial")) ?? "") === pad.serial;
}

let owner: string | undefined;

/** Resolves with what is typed; rejects with one line. `gone`: whoever asked has hung up. */
export async function typedPin(
  name: string,
  configs: readonly UsbConfig[],
  gone: AbortSignal,
  patienceMs = PATIENCE_MS,
): Promise<Secret> {
  if (owner !== undefined) throw new Error(`the PIN of ${owner} is being typed: one at a time`);
  owner = name;
  try {
    const path = await padOf(configs);
    using fd = new Fd(now(openat(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)));
    now({ call: "ioctl", args: [fd.n, EVIOCGRAB, 1] }); // until it is closed
    return await listen(fd, path, gone, patienceMs);
  } finally {
    owner = undefined;
  }
}

/** What is typed at `fd`, which gives input events. */
export async function listen(fd: Fd, path: string, gone: AbortSignal, patienceMs: number): Promise<Secret> {
  using typed = new Typed();
  using end = new DisposableStack();
  const events = mem(64 * EVENT);
  end.defer(() => events.fill(0));
  while (attempt(read(fd.n, events)) > 0); // typed before we asked
  const { promise, resolve, reject } = Promise.withResolvers<Secret>();
  const timer = setTimeout(() => reject(new Error(`nothing complete in ${patienceMs / 1000} s`)), patienceMs);
  end.defer(() => clearTimeout(timer));
  const hungUp = () => reject(new Error("the client has gone"));
  gone.addEventListener("abort", hungUp);
  end.defer(() => gone.removeEventListener("abort", hungUp));
  if (gone.aborted) hungUp();
  end.use(
    watch(fd, EPOLLIN, () => {
      try {
        const n = attempt(read(fd.n, events));
        if (n === -EAGAIN) return;
        if (n < 0) throw new SysError(-n, path); // pulled out
        for (let at = 0; at + EVENT <= n; at += EVENT) {
          const pin = typed.event(events.subarray(at, at + EVENT));
          if (pin) {
            resolve(pin);
            return;
          }
        }
      } catch (e) {
        reject(new Error(`keypad: ${chain(e)}`, { cause: e }));
      }
    }),
  );
  return await promise;
}
