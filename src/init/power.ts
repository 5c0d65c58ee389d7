// The power button: an input device that can send KEY_POWER (linux/input.h). Ctrl-Alt-Del is a signal, see main.ts.
import { readFileSync } from "node:fs";
import { AT_FDCWD, O_NONBLOCK, O_RDONLY, openat, read } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { attempt } from "../sys/now.ts";
import { EPOLLHUP, EPOLLIN, watch } from "../sys/poll.ts";

const [EV_KEY, KEY_POWER] = [1, 116]; // linux/input-event-codes.h
const EVENT = 24; // struct input_event on 64-bit machines

/** True if a bitmap of sysfs ("10000000000000 0": 64-bit words, highest first) has the bit. */
export function hasBit(bitmap: string, bit: number): boolean {
  const words = bitmap.trim().split(/\s+/).reverse();
  const word = words[Math.floor(bit / 64)];
  return word !== undefined && ((BigInt(`0x${word}`) >> BigInt(bit % 64)) & 1n) === 1n;
}

/** Watch /dev/input/NAME ("event0") if it has a power key. Returns whether it does. */
export function watchButton(name: string, pressed: () => void): boolean {
  try {
    if (!hasBit(readFileSync(`/sys/class/input/${name}/device/capabilities/key`, "utf8"), KEY_POWER))
      return false;
  } catch {
    return false; // gone again
  }
  const n = attempt(openat(AT_FDCWD, `/dev/input/${name}`, O_RDONLY | O_NONBLOCK));
  if (n < 0) return false;
  const fd = new Fd(n);
  const events = mem(EVENT * 16);
  const w = watch(fd, EPOLLIN, (ready) => {
    const got = attempt(read(fd.n, events));
    if (got <= 0 && ready & EPOLLHUP) {
      w[Symbol.dispose]();
      fd.close();
      return;
    }
    const view = new DataView(events.buffer);
    for (let at = 0; at + EVENT <= got; at += EVENT)
      if (
        view.getUint16(at + 16, true) === EV_KEY &&
        view.getUint16(at + 18, true) === KEY_POWER &&
        view.getInt32(at + 20, true) === 1
      )
        pressed();
  });
  return true;
}
