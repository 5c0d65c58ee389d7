// doorway: cmld's control socket inside a container: core0's, which may do everything, and that of a container whose
// GuestOS may install guests. It is made here without an address, bound by the child inside its own tree, and kept by
// init for the next cmld.
import { bindUnix, listen, umask } from "../../sys/calls.ts";
import type { Fd } from "../../sys/fd.ts";
import { unbound } from "../../sys/listen.ts";
import { now } from "../../sys/now.ts";
import { type Module, Slot, type Start } from "../module.ts";

const CONTROL_SOCKET = "/run/socket/cml-control";
const BACKLOG = 128;

const sockets = new Slot<Fd>();
const has = (s: Start): boolean => s.isC0 || s.guestos.feature_install_guest;

/** `open`: serve a listening socket until what it returns is disposed of. */
export const doorway = (open: (listening: Fd, privileged: boolean) => Disposable): Module => ({
  name: "doorway",
  prepare(s) {
    if (has(s)) sockets.set(s, s.owned.use(unbound()));
  },
  child(s) {
    if (!has(s)) return [];
    return [umask(0o077), bindUnix(sockets.need(s).n, CONTROL_SOCKET), umask(0o022)];
  },
  ready(s) {
    if (!has(s)) return;
    now(listen(sockets.need(s).n, BACKLOG));
    s.keep("control", sockets.need(s));
  },
  started(s) {
    if (!has(s)) return;
    const made = sockets.get(s);
    const socket = made ?? s.kept("control");
    if (!socket) {
      s.log(`${CONTROL_SOCKET} inside it was lost with an earlier cmld: restart it to have it again`);
      return;
    }
    if (!made) s.owned.use(socket);
    s.owned.use(open(socket, s.isC0));
  },
});
