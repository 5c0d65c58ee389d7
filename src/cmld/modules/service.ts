// service: the socket that a container's helper talks to, how a guest says that it has booted, and how it is asked to
// stop.
//
// What the guest's init is decides both (docs/readiness.md): systemd sends READY=1 to $NOTIFY_SOCKET and stops by
// SIGRTMIN+3; the helper /sbin/cservice sends BOOT_COMPLETED and takes SHUTDOWN; any other init is running as soon as
// it is executed and stops by the signal that its kind listens to. The sockets are made here, bound by the child
// inside its own tree, and kept by init for the next cmld.
import { readFileSync, readlinkSync } from "node:fs";
import { basename } from "node:path";
import { CmldToServiceMessage, ServiceToCmldMessage } from "../../../proto/gen/proto.js";
import {
  AF_UNIX,
  bindUnix,
  fchmodat,
  listen,
  MSG_DONTWAIT,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  socket,
} from "../../sys/calls.ts";
import { chain, ENOENT, ESRCH, isErrno } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { unbound } from "../../sys/listen.ts";
import { mem } from "../../sys/mem.ts";
import { attempt, now } from "../../sys/now.ts";
import { EPOLLIN, watch } from "../../sys/poll.ts";
import { kill, SIGTERM } from "../../sys/process.ts";
import { Delivery } from "../audit/delivery.ts";
import type { Trail } from "../audit/trail.ts";
import { plainName } from "../config.ts";
import { type Module, type Process, Slot, type Start } from "../module.ts";
import { CSERVICE } from "../program.ts";
import { GUEST, type Peer, serve } from "../socket.ts";

const SERVICE_SOCKET = "/run/socket/cml-service";
const NOTIFY_SOCKET = "/run/socket/cml-notify";
const BACKLOG = 128;
/** Datagrams that are read before others get a turn. */
const DATAGRAMS = 16;

// Signals that ask an init to power off.
const SIGPWR = 30; // sysvinit(8), upstart
const SIGUSR2 = 12; // busybox init: "poweroff"
const SIGRTMIN_3 = 34 + 3; // systemd(1): poweroff.target, in a container "halt"

type Kind = "systemd" | "cservice" | "busybox" | "sysvinit" | "plain";

/** What the init is, by the file that it executes. A link in the container decides nothing: it is read from the kernel. */
export function kindOf(executable: string): Kind {
  const path = executable.replace(/ \(deleted\)$/, "");
  if (path === CSERVICE || path === `/usr${CSERVICE}`) return "cservice";
  const name = basename(path);
  if (name === "systemd") return "systemd";
  if (name.startsWith("busybox")) return "busybox";
  if (name === "init" || name === "sysvinit") return "sysvinit";
  return "plain";
}

const STOP_SIGNAL: Record<Kind, number> = {
  systemd: SIGRTMIN_3,
  busybox: SIGUSR2,
  sysvinit: SIGPWR,
  cservice: SIGTERM,
  plain: SIGTERM,
};

/** How long an init that has just started may take to become ready for its signal, and how often we look. */
const [READY_MS, LOOK_MS] = [1000, 10];
const RT_SIGTIMEDWAIT = process.arch === "arm64" ? "137" : "128"; // asm/unistd_64.h, asm-generic/unistd.h

/** Whether a signal would reach it now. The kernel drops one that the pid 1 of a namespace neither catches nor blocks
 * (pid_namespaces(7)); one that waits in sigtimedwait(2), as busybox' init, shows neither. */
export function hears(status: string, syscall: string, signal: number): boolean {
  const mask = (key: string) =>
    BigInt(`0x${status.match(new RegExp(`^${key}:\\s*([0-9a-f]+)`, "m"))?.[1] ?? "0"}`);
  const listened = (mask("SigCgt") | mask("SigBlk")) >> BigInt(signal - 1);
  return (listened & 1n) === 1n || syscall.startsWith(`${RT_SIGTIMEDWAIT} `);
}

/** Wait until it hears the signal; false: it never will, or is gone. */
async function becomesReady(pid: number, signal: number): Promise<boolean> {
  const file = (name: string) => readFileSync(`/proc/${pid}/${name}`, "latin1");
  for (const end = performance.now() + READY_MS; performance.now() < end; await Bun.sleep(LOOK_MS)) {
    try {
      if (hears(file("status"), file("syscall"), signal)) return true;
    } catch (e) {
      if (isErrno(e, ENOENT) || isErrno(e, ESRCH)) return false;
      throw e;
    }
  }
  return false;
}

interface Sockets {
  readonly service: Fd;
  readonly notify: Fd;
}
const sockets = new Slot<Sockets>();
/** Who gets our events: the first that connected and is still there. */
const receivers = new Slot<{ first: Peer | undefined }>();
/** Its audit records' way into the container; none where no records are kept. */
const deliveries = new Slot<Promise<Delivery>>();

function deliver(s: Start, trail: Promise<Trail>): void {
  const until = s.owned.use(new DisposableStack());
  const delivery = trail.then((t) => {
    const made = new Delivery(t);
    if (!until.disposed) until.use(t.onRecords(() => made.notify()));
    return made;
  });
  deliveries.set(s, delivery);
  delivery.catch((e) => s.log(`service: ${chain(e)}`));
}

function kindOfProcess(p: Process): Kind {
  try {
    return kindOf(readlinkSync(`/proc/${p.pid}/exe`));
  } catch (e) {
    if (isErrno(e, ENOENT)) return "plain"; // it has ended already
    throw e;
  }
}

async function answer(s: Start, peer: Peer, m: ServiceToCmldMessage): Promise<void> {
  const Ask = ServiceToCmldMessage.Code;
  const Say = CmldToServiceMessage.Code;
  switch (m.code) {
    case Ask.BOOT_COMPLETED:
      s.booted();
      (await deliveries.get(s))?.listens(peer);
      return;
    case Ask.CONTAINER_CFG_NAME_REQ:
      return peer.send(
        CmldToServiceMessage.encode({
          code: Say.CONTAINER_CFG_NAME,
          container_cfg_name: plainName(s.config.name),
        }),
      );
    case Ask.CONTAINER_CFG_DNS_REQ: {
      const dns = s.config.dns_server || s.host.device.host_dns;
      return peer.send(CmldToServiceMessage.encode({ code: Say.CONTAINER_CFG_DNS, container_cfg_dns: dns }));
    }
    case Ask.AUDIT_ACK: {
      const delivery = await deliveries.get(s);
      if (delivery) return delivery.acknowledged(m.audit_ack ?? "", peer);
      return peer.send(CmldToServiceMessage.encode({ code: Say.AUDIT_COMPLETE }));
    }
    default:
      s.log(`service: message ${m.code} is unknown`);
  }
}

/** sd_notify(3): datagrams of VARIABLE=value lines. */
function listenForReady(s: Start, notify: Fd): Disposable {
  const buffer = mem(4096);
  return watch(notify, EPOLLIN, () => {
    for (let turn = 0; turn < DATAGRAMS; turn++) {
      const n = attempt({
        call: "recvfrom",
        args: [notify.n, buffer, buffer.length, MSG_DONTWAIT, null, null],
      });
      if (n < 0) return;
      if (Buffer.from(buffer.subarray(0, n)).toString().split("\n").includes("READY=1")) s.booted();
    }
  });
}

export const service: Module = {
  name: "service",
  env: () => [`NOTIFY_SOCKET=${NOTIFY_SOCKET}`],
  prepare(s) {
    sockets.set(s, {
      service: s.owned.use(unbound()),
      notify: s.owned.use(new Fd(now(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)))),
    });
  },
  child(s) {
    const { service, notify } = sockets.need(s);
    return [
      bindUnix(service.n, SERVICE_SOCKET),
      fchmodat(-100, SERVICE_SOCKET, 0o700),
      bindUnix(notify.n, NOTIFY_SOCKET),
      fchmodat(-100, NOTIFY_SOCKET, 0o700),
    ];
  },
  ready(s) {
    const { service, notify } = sockets.need(s);
    now(listen(service.n, BACKLOG));
    s.keep("service", service);
    s.keep("notify", notify);
  },
  started(s, p) {
    const made = sockets.get(s);
    const service = made?.service ?? s.kept("service");
    const notify = made?.notify ?? s.kept("notify");
    const kind = kindOfProcess(p);
    const trail = s.host.audit?.trail(s.uuid);
    if (trail) deliver(s, trail);
    if (service) {
      const server = serve(service, {
        limits: GUEST,
        opened(peer) {
          const current = receivers.get(s) ?? receivers.set(s, { first: undefined });
          if (!current.first || current.first.gone.aborted) current.first = peer;
        },
        async handle(bytes, peer) {
          try {
            await answer(s, peer, ServiceToCmldMessage.decode(bytes));
          } catch (e) {
            s.log(`service: ${chain(e)}`);
            peer.close();
          }
        },
        complaint: () => undefined,
        warn: (text) => s.log(`service: ${text}`),
      });
      if (!made) s.owned.use(service);
      s.owned.use(server);
    }
    if (notify) {
      if (!made) s.owned.use(notify);
      s.owned.use(listenForReady(s, notify));
    }
    if (kind !== "systemd" && kind !== "cservice") s.booted();
  },
  async stop(s, p) {
    const first = receivers.get(s)?.first;
    if (first && !first.gone.aborted) {
      // Not waited for: one that does not read would hold up the answer to whoever asked for the stop.
      void first.send(CmldToServiceMessage.encode({ code: CmldToServiceMessage.Code.SHUTDOWN }));
      return true;
    }
    const signal = STOP_SIGNAL[kindOfProcess(p)];
    if (!(await becomesReady(p.pid, signal))) return false;
    kill(p.pidfd, signal);
    return true;
  },
};
