// Other network namespaces. What a descriptor does in a network namespace is decided where it was opened: a short
// child enters the namespace, opens it there, and it appears in our table. We never change namespace ourselves.
import {
  AF_NETLINK,
  AF_UNIX,
  AT_FDCWD,
  CLONE_NEWNET,
  close,
  dup3,
  exit,
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
import { ENODEV } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { deleteLink, type Link, linkOf, links } from "../sys/link.ts";
import { type Message, NETLINK_ROUTE, Netlink, type Reply } from "../sys/netlink.ts";
import { now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { beside, elsewhere } from "./launch.ts";

/** The network namespace of a process, for as long as the descriptor is open: the namespace lives at least as long. */
export const netnsOf = (pid: number | "self"): Fd =>
  new Fd(now(openat(AT_FDCWD, `/proc/${pid}/ns/net`, O_RDONLY)));

/** A network namespace by its descriptor, or ours. */
export type Where = Fd | undefined;

/** Do calls that open something in a network namespace; returns what each opened. */
export function openIn(netns: Where, opens: readonly ((save: Reg) => Op)[]): Fd[] {
  using failed = new DisposableStack();
  const it = new Reg(0);
  if (!netns) {
    const opened = opens.map((open) => failed.use(new Fd(now(open(it)))));
    failed.move();
    return opened;
  }
  // The child can tell us no number, so it puts what it opened over a descriptor that we know.
  const places = opens.map(() => failed.use(new Fd(now(socket(AF_UNIX, SOCK_DGRAM)))));
  elsewhere([
    setns(netns.n, CLONE_NEWNET),
    ...opens.flatMap((open, i) => [open(it), dup3(it, places[i]!.n, O_CLOEXEC), close(it)]),
  ]);
  failed.move();
  return places;
}

const netlinkSocket = (protocol: number) => (save: Reg) => socket(AF_NETLINK, SOCK_RAW, protocol, save);

/** Netlink sockets of a network namespace, one for each protocol. They keep the namespace alive. */
export const netlinkIn = (netns: Where, ...protocols: number[]): Netlink[] =>
  openIn(netns, protocols.map(netlinkSocket)).map((fd) => new Netlink(fd));

/** Set a value below /proc/sys/net in another network namespace: /proc shows that of the process that opens. */
export function sysctlIn(netns: Fd, name: string, value: string): void {
  const [fd] = openIn(netns, [(save) => openat(AT_FDCWD, `/proc/sys/net/${name}`, O_WRONLY, 0, save)]);
  using file = fd!;
  now(writeText(file.n, value));
}

/** Messages for one socket, and the errnos that are no failure of theirs. At most 64 at once. */
export interface Exchange {
  readonly on: Netlink;
  readonly messages: readonly Message[];
  readonly tolerate?: readonly number[];
  /** They are a transaction (sys/nft.ts). */
  readonly atomic?: boolean;
}

/** Netlink.do() by a child, one after the other, whatever became of the one before; what each was answered. For what
 * makes the kernel wait: deleting a link takes 10 to 20 ms, and whoever changes a link waits for everybody else on the
 * machine who does. The sockets must be nobody else's meanwhile: they would read the answer. */
export async function aside(...exchanges: readonly Exchange[]): Promise<Reply[][]> {
  const prepared = exchanges.map((e) => (e.messages.length > 0 ? e.on.prepare(e.messages, e) : undefined));
  const sends = prepared.flatMap((p) => (p ? [p.send] : []));
  if (sends.length === 0) return exchanges.map(() => []);
  const child = beside([...sends, exit(0)]);
  using _pidfd = child.pidfd;
  const failure = child.started().catch((e: unknown) => e);
  await child.over;
  const failed = await failure;
  if (failed) throw failed;
  return prepared.map((p) => p?.finish() ?? []);
}

const RTMGRP_LINK = 1; // linux/rtnetlink.h
const [RTM_NEWLINK, RTM_DELLINK] = [16, 17];
/** A veth has its carrier when both ends are up; the kernel takes note a moment later, and until then the end that
 * was up first drops what it should send. */
const CARRIER_MS = 10_000;

/** Delete links of ours. Resolves when they are gone: their names and indexes are free, nobody can send through them. The
 * kernel then still waits, 10 to 20 ms, until no processor looks at them any more; nobody has to wait with it. */
export async function deleteLinks(indexes: readonly number[]): Promise<void> {
  if (indexes.length === 0) return;
  const left = new Set(indexes);
  const gone = Promise.withResolvers<void>();
  using news = netlinkIn(undefined, NETLINK_ROUTE)[0]!;
  using _heard = news.subscribe(RTMGRP_LINK, (all) => {
    for (const l of all?.filter((r) => r.type === RTM_DELLINK).map(linkOf) ?? []) left.delete(l.index);
    if (left.size === 0) gone.resolve();
  });
  const [route] = netlinkIn(undefined, NETLINK_ROUTE);
  const done = aside({ on: route!, messages: indexes.map(deleteLink), tolerate: [ENODEV] });
  void done.catch(() => {}).then(() => route![Symbol.dispose]());
  await Promise.race([done, gone.promise]);
}

/** Hears which links can send, from before they are set up. */
export class Carriers implements Disposable {
  readonly #socket: Netlink;
  readonly #watch: Disposable;
  readonly #up = new Set<number>();
  #heard = (): void => {};

  constructor(readonly netns: Where) {
    this.#socket = netlinkIn(netns, NETLINK_ROUTE)[0]!;
    this.#watch = this.#socket.subscribe(RTMGRP_LINK, (news) => {
      for (const l of news?.filter((r) => r.type === RTM_NEWLINK).map(linkOf) ?? this.#all()) {
        if (l.state === "UP") this.#up.add(l.index);
        else this.#up.delete(l.index);
      }
      this.#heard();
    });
  }

  #all(): Link[] {
    using asking = netlinkIn(this.netns, NETLINK_ROUTE)[0]!;
    return links(asking);
  }

  /** An answer to a question: what was up then is up, but what was not may be now. */
  note(seen: readonly Link[]): void {
    for (const l of seen) if (l.state === "UP") this.#up.add(l.index);
    this.#heard();
  }

  /** Resolves when all of them can send. */
  async ready(indexes: readonly number[]): Promise<void> {
    const missing = (): number[] => indexes.filter((i) => !this.#up.has(i));
    if (missing().length === 0) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#heard = () => {
      if (missing().length === 0) resolve();
    };
    const late = (): void =>
      reject(new Error(`links ${missing().join(", ")}: no carrier after ${CARRIER_MS} ms`));
    const timer = setTimeout(late, CARRIER_MS);
    await promise.finally(() => clearTimeout(timer));
  }

  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
    this.#socket[Symbol.dispose]();
  }
}
