// Listening AF_UNIX sockets as descriptors: bound here or by a container's child, taken from init's store or from
// systemd. Accepted connections become ordinary sockets of the runtime.
import { lstatSync } from "node:fs";
import {
  AF_UNIX,
  accept4,
  bindUnix,
  connectUnix,
  listen,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  socket,
} from "./calls.ts";
import { EAGAIN, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";
import { EPOLLIN, type Watch, watch } from "./poll.ts";

const ECONNABORTED = 103;
const RETRY_MS = 1000;
/** Connections that are accepted before others get a turn: who connects again and again must not keep us here. */
const TURN = 64;

/** An unbound socket, for a child to bind in its own file tree. */
export const unbound = (type = SOCK_STREAM): Fd => new Fd(now(socket(AF_UNIX, type | SOCK_NONBLOCK)));

/** Bind and listen at `path` with `mode`, in place of a socket that nobody listens at any more; of nothing else. */
export function bindAt(path: string, mode: number, backlog: number, type = SOCK_STREAM): Fd {
  const there = lstatSync(path, { throwIfNoEntry: false });
  if (there && !there.isSocket()) throw new Error(`${path}: not a socket, and not removed`);
  if (there && listens(path, type)) throw new Error(`${path}: another program listens there`);
  const fd = unbound(type);
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

/** Whether somebody listens there; a full queue is somebody's as well. */
export function listens(path: string, type = SOCK_STREAM): boolean {
  using probe = unbound(type);
  const result = attempt(connectUnix(probe.n, path));
  return result === 0 || result === -EAGAIN;
}

/** Hand every connection that arrives on a listening descriptor to `on`, which then owns it. */
export function accepting(fd: Fd, on: (connection: Fd) => void): Watch {
  const w = watch(fd, EPOLLIN, () => {
    for (let turn = 0; turn < TURN; turn++) {
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
