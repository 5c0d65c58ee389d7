// Listening AF_UNIX sockets as descriptors: bound here or by a container's child, taken from init's store or from
// systemd. Accepted connections become ordinary sockets of the runtime.
import { AF_UNIX, accept4, bindUnix, listen, SOCK_NONBLOCK, SOCK_STREAM, socket } from "./calls.ts";
import { EAGAIN, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";
import { EPOLLIN, type Watch, watch } from "./poll.ts";

const ECONNABORTED = 103;
const RETRY_MS = 1000;

/** An unbound stream socket, for a child to bind in its own file tree. */
export const unbound = (): Fd => new Fd(now(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)));

/** Bind and listen at `path` with `mode`, removing a stale socket. */
export function bindAt(path: string, mode: number, backlog: number): Fd {
  const fd = unbound();
  const old = process.umask(0o777 & ~mode);
  try {
    attempt({ call: "unlinkat", args: [-100, path, 0] });
    now(bindUnix(fd.n, path));
    now(listen(fd.n, backlog));
  } catch (e) {
    fd.close();
    throw e;
  } finally {
    process.umask(old);
  }
  return fd;
}

/** Hand every connection that arrives on a listening descriptor to `on`, which then owns it. */
export function accepting(fd: Fd, on: (connection: Fd) => void): Watch {
  const w = watch(fd, EPOLLIN, () => {
    for (;;) {
      const n = attempt(accept4(fd.n));
      if (n === -EAGAIN) return;
      if (n === -ECONNABORTED) continue;
      if (n < 0) {
        console.error(new SysError(-n, `accept4(${fd.n})`).message);
        // No descriptor or no memory is left: the connection stays queued, and would wake us again at once.
        w.pause();
        setTimeout(() => w.resume(), RETRY_MS);
        return;
      }
      on(new Fd(n));
    }
  });
  return w;
}
