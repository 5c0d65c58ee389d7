// Other network namespaces. What a descriptor does in a network namespace is decided where it was opened: a short
// child enters the namespace, opens it there, and it appears in our table. We never change namespace ourselves.
import {
  AF_NETLINK,
  AF_UNIX,
  AT_FDCWD,
  CLONE_NEWNET,
  close,
  dup3,
  O_CLOEXEC,
  O_RDONLY,
  O_WRONLY,
  openat,
  SOCK_DGRAM,
  SOCK_RAW,
  setns,
  socket,
  writeText,
} from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { upLink } from "../sys/link.ts";
import { NETLINK_ROUTE, Netlink } from "../sys/netlink.ts";
import { now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { elsewhere } from "./launch.ts";

/** The network namespace of a process, for as long as the descriptor is open: the namespace lives at least as long. */
export const netnsOf = (pid: number | "self"): Fd =>
  new Fd(now(openat(AT_FDCWD, `/proc/${pid}/ns/net`, O_RDONLY)));

/** Do calls that open something in the network namespace open as `netns`; returns what each opened. */
export function openIn(netns: Fd, opens: readonly ((save: Reg) => Op)[]): Fd[] {
  using failed = new DisposableStack();
  // The child can tell us no number, so it puts what it opened over a descriptor that we know.
  const places = opens.map(() => failed.use(new Fd(now(socket(AF_UNIX, SOCK_DGRAM)))));
  const it = new Reg(0);
  elsewhere([
    setns(netns.n, CLONE_NEWNET),
    ...opens.flatMap((open, i) => [open(it), dup3(it, places[i]!.n, O_CLOEXEC), close(it)]),
  ]);
  failed.move();
  return places;
}

const netlinkSocket = (protocol: number) => (save: Reg) => socket(AF_NETLINK, SOCK_RAW, protocol, save);

/** Netlink sockets of another network namespace, one for each protocol. They keep the namespace alive. */
export const netlinkIn = (netns: Fd, ...protocols: number[]): Netlink[] =>
  openIn(netns, protocols.map(netlinkSocket)).map((fd) => new Netlink(fd));

/** Set a value below /proc/sys/net in another network namespace: /proc shows that of the process that opens. */
export function sysctlIn(netns: Fd, name: string, value: string): void {
  const [fd] = openIn(netns, [(save) => openat(AT_FDCWD, `/proc/sys/net/${name}`, O_WRONLY, 0, save)]);
  using file = fd!;
  now(writeText(file.n, value));
}

/** `ip link set lo up` in our own network namespace: what a machine needs first. */
export function loopbackUp(): void {
  using route = Netlink.open(NETLINK_ROUTE);
  route.do([upLink("lo")]);
}
