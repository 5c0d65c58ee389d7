// What whoever started us (systemd, or our own init) hands over and wants to hear: sockets that are open already
// (sd_listen_fds(3)), "ready", and a sign of life (sd_notify(3)).
import { AF_UNIX, O_CLOEXEC, O_NONBLOCK, SOCK_DGRAM, socket, unixAddress } from "./calls.ts";
import { EINVAL, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";

const FIRST = 3; // SD_LISTEN_FDS_START

/** Descriptors by name, in the order they came, if the name is `wanted`; taken once, and not for programs that we
 * start. */
export function inherited(
  wanted: (name: string) => boolean,
  env: Record<string, string | undefined> = process.env,
): Map<string, Fd[]> {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env;
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]) delete env[name];
  const found = new Map<string, Fd[]>();
  if (LISTEN_PID !== String(process.pid)) return found;
  const names = LISTEN_FDNAMES?.split(":") ?? [];
  const [F_SETFD, F_GETFL, F_SETFL, FD_CLOEXEC] = [2, 3, 4, 1]; // asm-generic/fcntl.h
  for (let i = 0; i < Number(LISTEN_FDS ?? 0); i++) {
    const name = names[i] || "unknown";
    if (!wanted(name)) continue;
    const fd = new Fd(FIRST + i);
    now({ call: "fcntl", args: [fd.n, F_SETFD, FD_CLOEXEC] });
    // systemd hands them over blocking, and one accept too many would stop everything.
    const flags = now({ call: "fcntl", args: [fd.n, F_GETFL] });
    now({ call: "fcntl", args: [fd.n, F_SETFL, flags | O_NONBLOCK] });
    found.set(name, [...(found.get(name) ?? []), fd]);
  }
  return found;
}

export interface Supervisor {
  /** "READY=1", "STATUS=…": lines of NAME=value. What cannot be sent is not missed. */
  notify(text: string): void;
  /** Call this so often, milliseconds, that half of a supervisor's patience is left; undefined: nobody waits. */
  readonly watchdogMs: number | undefined;
}

/** By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which programs that we start do not get. */
export function supervisor(env: Record<string, string | undefined> = process.env): Supervisor {
  const { NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID } = env;
  for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete env[name];
  const mine = WATCHDOG_PID === undefined || WATCHDOG_PID === String(process.pid);
  const usec = Number(WATCHDOG_USEC ?? 0);
  if (!NOTIFY_SOCKET) return { notify: () => {}, watchdogMs: undefined };
  // "@": the abstract namespace, whose names begin with a NUL (unix(7)).
  const address = unixAddress(NOTIFY_SOCKET);
  const abstract = NOTIFY_SOCKET.startsWith("@");
  if (abstract) address.data[2] = 0;
  const length = address.data.length - (abstract ? 1 : 0);
  const fd = new Fd(now(socket(AF_UNIX, SOCK_DGRAM | O_CLOEXEC)));
  const MSG_DONTWAIT = 0x40; // linux/socket.h
  return {
    notify(text) {
      const bytes = Buffer.from(text);
      const result = attempt({
        call: "sendto",
        args: [fd.n, text, bytes.length, MSG_DONTWAIT, address, length],
      });
      if (result === -EINVAL) throw new SysError(EINVAL, `sendto(${NOTIFY_SOCKET})`);
    },
    watchdogMs: mine && usec > 0 ? usec / 2000 : undefined,
  };
}
