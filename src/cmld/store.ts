// What cmld cannot make again after its own end (sockets bound inside containers) is kept outside of it, by name: in
// init's descriptor store on a device, in systemd's on a host whose unit allows it (FileDescriptorStoreMax=), nowhere
// otherwise. Keeping is done when the call returns: the message is in the keeper's queue and outlives us.
import { StoreRequest, StoreResponse } from "../../proto/gen/proto.js";
import type { Ended } from "../run/launch.ts";
import {
  AF_UNIX,
  connectUnix,
  F_DUPFD_CLOEXEC,
  fcntl,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  socket,
  unixAddress,
} from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { EPOLLIN, type Watch, watch } from "../sys/poll.ts";
import { receiveMessage, sendMessage } from "../sys/scm.ts";

export interface Store {
  /** Keep a copy of `fd` under `name`, in place of an older one. */
  keep(name: string, fd: Fd): void;
  /** What the cmld before us kept; the caller owns it. It stays kept. Once for each name. */
  kept(name: string): Fd | undefined;
  /** Names that kept() has not given out yet. */
  names(): string[];
  forget(name: string): void;
  /** How a process that was no child of ours ended, if init knows. */
  exitOf(pid: number, startTime: number): Promise<Ended | undefined>;
}

const VERSION = 1;
const ANSWER_MAX = 160 * 1024; // 1024 names of 127 bytes
const FIRST = 3; // the first descriptor of LISTEN_FDS, sd_listen_fds(3)

const copy = (fd: Fd): Fd => new Fd(now(fcntl(fd.n, F_DUPFD_CLOEXEC, FIRST)));

/** The store of whoever started us, with what it kept. */
export async function openStore(
  env: Readonly<Record<string, string | undefined>>,
  log: (line: string) => void,
): Promise<Store> {
  if (env.CML_STORE !== undefined) return InitStore.open(env.CML_STORE, log);
  if (env.NOTIFY_SOCKET !== undefined) return new SystemdStore(env.NOTIFY_SOCKET, env, log);
  return NOWHERE;
}

const NOWHERE: Store = {
  keep() {},
  kept: () => undefined,
  names: () => [],
  forget() {},
  exitOf: async () => undefined,
};

interface Pending {
  readonly bytes: Uint8Array;
  readonly fd: Fd | undefined;
  readonly done: (answer: StoreResponse, fd: Fd | undefined) => void;
}

const send = (to: Fd, p: Pending): void => sendMessage(to, p.bytes, p.fd ? [p.fd] : []);

/** What an earlier cmld has kept, until somebody takes it. */
abstract class Finder {
  protected readonly found = new Map<string, Fd>();

  kept(name: string): Fd | undefined {
    const fd = this.found.get(name);
    this.found.delete(name);
    return fd;
  }

  names(): string[] {
    return [...this.found.keys()];
  }

  protected drop(name: string): void {
    this.kept(name)?.close();
  }
}

/** A client of src/init/store.ts. Requests are answered in order; when init executes itself again, the connection
 * ends, and what has no answer yet is sent again on a new one (each of them may be done twice). */
class InitStore extends Finder implements Store {
  readonly #path: string;
  readonly #log: (line: string) => void;
  #socket: Fd | undefined;
  #watch: Watch | undefined;
  #pending: Pending[] = [];

  private constructor(path: string, log: (line: string) => void) {
    super();
    this.#path = path;
    this.#log = log;
  }

  static async open(path: string, log: (line: string) => void): Promise<InitStore> {
    const store = new InitStore(path, log);
    const { answer } = await store.#ask({ command: StoreRequest.Command.LIST });
    for (const name of answer.names) {
      const { fd } = await store.#ask({ command: StoreRequest.Command.GET, name });
      if (fd) store.found.set(name, fd);
    }
    return store;
  }

  keep(name: string, fd: Fd): void {
    this.#tell({ command: StoreRequest.Command.STORE, name }, fd);
  }

  forget(name: string): void {
    this.drop(name);
    this.#tell({ command: StoreRequest.Command.TAKE, name });
  }

  async exitOf(pid: number, startTime: number): Promise<Ended | undefined> {
    const { answer } = await this.#ask({
      command: StoreRequest.Command.EXIT,
      pid,
      start_time: startTime,
    });
    const status = answer.wait_status;
    if (status === undefined) return undefined;
    const signal = status & 0x7f; // wait(2)
    return signal === 0 ? { status: (status >> 8) & 0xff } : { signal };
  }

  #tell(request: Omit<Parameters<typeof StoreRequest.encode>[0], "version">, fd?: Fd): void {
    this.#ask(request, fd).then(
      ({ answer, fd: given }) => {
        given?.close();
        if (answer.error_text !== undefined) this.#log(`store: ${answer.error_text}`);
      },
      (e) => this.#log(`store: ${chain(e)}`),
    );
  }

  #ask(
    request: Omit<Parameters<typeof StoreRequest.encode>[0], "version">,
    fd?: Fd,
  ): Promise<{ answer: StoreResponse; fd: Fd | undefined }> {
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        bytes: StoreRequest.encode({ version: VERSION, ...request }),
        fd: fd && copy(fd),
        done: (answer, given) => resolve({ answer, fd: given }),
      };
      this.#pending.push(pending);
      try {
        if (this.#socket) send(this.#socket, pending);
        else this.#connect();
      } catch (e) {
        try {
          this.#connect(); // the connection has ended, and we had not heard of it yet
        } catch (cause) {
          this.#pending = this.#pending.filter((p) => p !== pending);
          pending.fd?.close();
          reject(new Error(chain(e), { cause }));
        }
      }
    });
  }

  #connect(): void {
    this.#watch?.[Symbol.dispose]();
    this.#socket?.close();
    this.#socket = undefined;
    const fd = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
    try {
      now(connectUnix(fd.n, this.#path));
      for (const p of this.#pending) send(fd, p);
    } catch (e) {
      fd.close();
      throw e;
    }
    this.#socket = fd;
    this.#watch = watch(fd, EPOLLIN, () => this.#receive(fd));
  }

  #receive(fd: Fd): void {
    for (;;) {
      let got: ReturnType<typeof receiveMessage>;
      try {
        got = receiveMessage(fd, ANSWER_MAX);
      } catch {
        got = "closed"; // ECONNRESET
      }
      if (got === "later") return;
      if (got === "closed") {
        this.#watch?.[Symbol.dispose]();
        this.#socket = undefined;
        fd.close();
        if (this.#pending.length > 0) this.#connect();
        return;
      }
      const [given, ...more] = got.descriptors;
      for (const extra of more) extra.close();
      const p = this.#pending.shift();
      p?.fd?.close();
      p?.done(StoreResponse.decode(got.bytes), given);
    }
  }
}

/** systemd's file descriptor store, sd_pid_notify_with_fds(3): it gives everything back when it starts us again. */
class SystemdStore extends Finder implements Store {
  readonly #notify: string;
  readonly #log: (line: string) => void;

  constructor(
    notify: string,
    env: Readonly<Record<string, string | undefined>>,
    log: (line: string) => void,
  ) {
    super();
    this.#notify = notify;
    this.#log = log;
    if (env.LISTEN_PID !== String(process.pid)) return;
    const names = (env.LISTEN_FDNAMES ?? "").split(":");
    for (let i = 0; i < Number(env.LISTEN_FDS ?? 0); i++) {
      const name = names[i] ?? "unknown";
      if (!name.startsWith(SystemdStore.#PREFIX)) continue; // a socket of the unit's own
      using given = new Fd(FIRST + i); // it has no close-on-exec: the copy does
      this.found.set(name.slice(SystemdStore.#PREFIX.length), copy(given));
    }
  }

  static readonly #PREFIX = "cml.";

  keep(name: string, fd: Fd): void {
    this.#say(`FDSTORE=1\nFDNAME=${SystemdStore.#PREFIX}${name}\nFDPOLL=0\n`, [fd]);
  }

  forget(name: string): void {
    this.drop(name);
    this.#say(`FDSTOREREMOVE=1\nFDNAME=${SystemdStore.#PREFIX}${name}\n`);
  }

  /** systemd reaps orphans and does not tell. */
  async exitOf(): Promise<Ended | undefined> {
    return undefined;
  }

  #say(text: string, descriptors: Fd[] = []): void {
    try {
      notify(this.#notify, text, descriptors);
    } catch (e) {
      this.#log(`store: ${chain(e)}`);
    }
  }
}

/** One message to whoever started us, sd_notify(3): "READY=1", "WATCHDOG=1". `to`: $NOTIFY_SOCKET. */
export function notify(to: string, text: string, descriptors: readonly Fd[] = []): void {
  using fd = new Fd(now(socket(AF_UNIX, SOCK_DGRAM)));
  const address = unixAddress(to).data;
  if (to.startsWith("@")) address[2] = 0; // an abstract name
  sendMessage(fd, Buffer.from(text), descriptors, to.startsWith("@") ? address.subarray(0, -1) : address);
}
