// Other network namespaces. What a descriptor does in a network namespace is decided where it was opened: a short
// child enters the namespace, opens it there, and it appears in our table. We never change namespace ourselves.
import {
  AF_NETLINK,
  AF_UNIX,
  AT_FDCWD,
  bindNetlink,
  CLONE_NEWNET,
  close,
  dup3,
  exit,
  MSG_DONTWAIT,
  O_CLOEXEC,
  O_RDONLY,
  O_WRONLY,
  openat,
  recvfrom,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_RAW,
  setns,
  socket,
  writeText,
} from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { getLink, linkOf, upLink } from "../sys/link.ts";
import { mem } from "../sys/mem.ts";
import { type Message, NETLINK_ROUTE, Netlink } from "../sys/netlink.ts";
import { attempt, now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { EPOLLIN, ended, watch } from "../sys/poll.ts";
import { elsewhere, launch, reap } from "./launch.ts";

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

/** Netlink.do() by a child: deleting a link keeps the kernel busy for 10 to 20 ms, in which we would stand still. Takes
 * the socket over: on one that others use meanwhile, they would read the answer. */
export async function aside(
  own: Netlink,
  messages: readonly Message[],
  ...tolerate: number[]
): Promise<void> {
  using n = own;
  const { send, finish } = n.prepare(messages, ...tolerate);
  const child = launch([send, exit(0)]);
  using pidfd = child.pidfd;
  const failure = child.started().catch((e: unknown) => e);
  await ended(pidfd);
  reap(pidfd);
  const failed = await failure;
  if (failed) throw failed;
  finish();
}

const RTMGRP_LINK = 1; // linux/rtnetlink.h
/** A veth has its carrier when both ends are up; the kernel takes note a moment later, and until then the end that
 * was up first drops what it should send. */
const CARRIER_MS = 10_000;

/** Resolves when the links, which have just been set up, can send. */
export async function linksUp(netns: Fd, route: Netlink, indexes: readonly number[]): Promise<void> {
  const waiting = (): boolean => route.do(indexes.map(getLink)).some((r) => linkOf(r).state !== "UP");
  if (!waiting()) return; // asking makes Linux from 6.8 on take note at once
  const [fd] = openIn(netns, [(save) => socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE, save)]);
  using events = fd!;
  now(bindNetlink(events.n, RTMGRP_LINK));
  const into = mem(1 << 16);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const check = (): void => {
    while (attempt(recvfrom(events.n, into, MSG_DONTWAIT)) > 0); // what changed is asked, not read
    try {
      if (!waiting()) resolve();
    } catch (e) {
      reject(e);
    }
  };
  using _watch = watch(events, EPOLLIN, check);
  check(); // it may have happened before we were told of changes
  const text = `links ${indexes.join(", ")}: no carrier after ${CARRIER_MS} ms`;
  const timer = setTimeout(() => reject(new Error(text)), CARRIER_MS);
  await promise.finally(() => clearTimeout(timer));
}

/** `ip link set lo up` in our own network namespace: what a machine needs first. */
export function loopbackUp(): void {
  using route = Netlink.open(NETLINK_ROUTE);
  route.do([upLink("lo")]);
}
