// The memory that the runtime receives into, one piece for all of its sockets: what came last stays there until something
// comes that is as long. After a PIN something does: zeros, from ourselves.
import { SOCK_NONBLOCK, SOCK_STREAM, setsockopt, write } from "./calls.ts";
import { type Fd, pair } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt } from "./now.ts";

/** The runtime's piece (uSockets, LIBUS_RECV_BUFFER_LENGTH): no more comes at once. */
const MOST = 512 * 1024;
/** asm-generic/socket.h; what a socket holds is counted with the kernel's own (socket(7)). */
const [SOL_SOCKET, SO_SNDBUFFORCE, ROOM] = [1, 32, 4 * MOST];

let own: Fd | undefined;
/** The most that has come at once since the last zeros. */
let high = 0;

function sender(): Fd {
  const [ours, theirs] = pair(SOCK_STREAM | SOCK_NONBLOCK);
  attempt(setsockopt(ours.n, SOL_SOCKET, SO_SNDBUFFORCE, ROOM));
  const socket = { data: () => {} };
  void Bun.connect({ fd: theirs.take(), socket } as unknown as Parameters<typeof Bun.connect>[0]);
  return ours;
}

/** So many bytes came by a socket on which secrets come: one may be the last of them. */
export function hasReceived(bytes: number): void {
  high = Math.max(high, Math.min(bytes, MOST));
}

/** Soon, all that has come by such sockets is zero. */
export function overwriteReceived(): void {
  if (high === 0) return;
  own ??= sender();
  if (attempt(write(own.n, mem(high))) === high) high = 0; // else the next time
}
