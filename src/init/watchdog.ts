// The hardware watchdog (Documentation/watchdog/watchdog-api.rst of Linux): if PID 1 stops, or cmld is gone for good,
// the machine starts again by itself.
import { AT_FDCWD, ioctl, O_WRONLY, openat, write } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { lasting, Struct } from "../sys/mem.ts";
import { attempt } from "../sys/now.ts";

const WDIOC_SETTIMEOUT = 0xc0045706; // linux/watchdog.h
/** Longer than any orderly restart of cmld, shorter than anybody's patience. */
const TIMEOUT_S = 60;

export class Watchdog {
  #device: Fd | undefined;
  #timer: ReturnType<typeof setInterval> | undefined;

  /** Open /dev/watchdog if there is one; `healthy` is asked before every pat. */
  start(healthy: () => boolean): boolean {
    if (this.#device) return true;
    const n = attempt(openat(AT_FDCWD, "/dev/watchdog", O_WRONLY));
    if (n < 0) return false;
    this.#device = new Fd(n);
    attempt(ioctl(n, WDIOC_SETTIMEOUT, new Struct(4).u32(TIMEOUT_S).bytes)); // a driver may have one fixed time
    const pat = () => {
      if (this.#device && healthy()) attempt(write(this.#device.n, lasting(Buffer.from("."))));
    };
    pat();
    this.#timer = setInterval(pat, (TIMEOUT_S * 1000) / 4);
    return true;
  }

  /** Before power off: "V" tells the driver that the end is wanted. */
  stop(): void {
    clearInterval(this.#timer);
    if (this.#device) attempt(write(this.#device.n, lasting(Buffer.from("V"))));
    this.#device?.close();
    this.#device = undefined;
  }
}
