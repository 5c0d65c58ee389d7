// What a container is made of. Each file in modules/ exports one Module; container.ts calls the hooks in list
// order. Undoing is not a hook: what a hook acquires it gives to `owned`, which releases in reverse, also when a
// start fails halfway and also in the next cmld.

import type { Fd } from "../sys/fd.ts";
import type { Op } from "../sys/op.ts";
import type { Secret } from "../sys/secret.ts";
import type { Auditor } from "./audit/audit.ts";
import type { ContainerConfig, DeviceConfig, GuestOsConfig } from "./config.ts";
import type { Holder } from "./devices/rules.ts";
import type { Owned } from "./ledger.ts";

/** The machine that cmld runs on; one value for the whole daemon. */
export interface Host {
  /** An ordinary Linux host, no core0 (device.conf 14). */
  readonly hosted: boolean;
  readonly device: DeviceConfig;
  /** "/data/cml", or "/var/lib/cml" hosted: operatingsystems/, containers/, keys/, … beneath. */
  readonly base: string;
  /** "/data/logs", or "/var/log/cml" hosted. */
  readonly logs: string;
  /** Volatile state: ledgers, sockets. "/run/cml". */
  readonly run: string;
  /** Where cgroup2 is mounted, joined with our own delegated group: the parent of every container's group. */
  readonly cgroup: string;
  /** Controllers that can be used there. */
  readonly controllers: ReadonlySet<string>;
  /** What the configurations of all containers want of devices. */
  readonly claims: () => Iterable<Holder>;
  /** What keeps records, where audit_size asks for them: `host.audit?.record("FSA", "CONTAINER_ISOLATION", …)`. */
  readonly audit?: Auditor | undefined;
  /** A line of the log that is said once in this daemon's life. */
  warnOnce(line: string): void;
  /** Hexadecimal digest of the whole file that is open, which is called `name` in logs; scd reads it. */
  hash(file: Fd, name: string, algorithm: "sha1" | "sha256"): Promise<string>;
}

/** One start of one container. */
export interface Start {
  readonly uuid: string;
  /** For people: in quotes where it breaks the rule of names. */
  readonly name: string;
  readonly isC0: boolean;
  readonly setup: boolean;
  readonly config: ContainerConfig;
  readonly guestos: GuestOsConfig;
  /** Directory with the GuestOS' images (`<image_file>.img`). */
  readonly osDir: string;
  /** Directory with the container's own images. */
  readonly imageDir: string;
  readonly host: Host;
  /** First host id of the container's range of 65536. */
  readonly uidStart: number;
  readonly owned: Owned;
  /** The key of its sealed volumes, 96 bytes, as its token gave it: lent, and wiped as soon as they are open. Absent where no
   * token protects it (token_type NONE), in explain(), and where they stayed open (a reboot from inside). */
  readonly key: Secret | undefined;
  /** Descriptors that a later cmld needs again, by name ("service", "notify", "control"): kept in init's store. */
  keep(name: string, fd: Fd): void;
  /** What an earlier cmld kept under this name for this container, while adopting it. */
  kept(name: string): Fd | undefined;
  /** It is not needed again. At the container's end everything is forgotten. */
  forget(name: string): void;
  /** The container said that it has booted. */
  booted(): void;
  /** It must not go on: it is asked to stop, and killed when it does not. */
  end(why: string): void;
  /** One line for the daemon's log. */
  log(line: string): void;
}

/** The child as the hooks of the parent see it. */
export interface Process {
  readonly pid: number;
  readonly pidfd: Fd;
}

export interface Module {
  readonly name: string;
  /** Namespaces to create, as clone3 flags. */
  namespaces?(s: Start): bigint;
  /** In the host, before there is a child. */
  prepare?(s: Start): void | Promise<void>;
  /** The child waits at gate one: id maps, links, limits. */
  attach?(s: Start, p: Process): void | Promise<void>;
  /** What the child then does, as system calls. Pure: no I/O, no clock; called after prepare, before the clone. */
  child?(s: Start): Op[];
  /** The child has done them and waits at gate two. */
  ready?(s: Start, p: Process): void | Promise<void>;
  /** What the child does last before execve: drop, lock, filter. Pure. */
  last?(s: Start): Op[];
  /** The container's init runs; also called by a new cmld that adopts it. */
  started?(s: Start, p: Process): void | Promise<void>;
  /** Ask it to stop; container.ts kills after the timeout. Returns true if somebody was asked. */
  stop?(s: Start, p: Process): boolean | Promise<boolean>;
  /** Environment for the container's init, NAME=value. */
  env?(s: Start): string[];
}

/** What a module remembers of one start, from hook to hook. */
export class Slot<T> {
  readonly #of = new WeakMap<Start, T>();
  set(s: Start, value: T): T {
    this.#of.set(s, value);
    return value;
  }
  get(s: Start): T | undefined {
    return this.#of.get(s);
  }
  /** For hooks that run only after the one that sets. */
  need(s: Start): T {
    const value = this.#of.get(s);
    if (value === undefined) throw new Error(`${s.name}: hooks out of order`);
    return value;
  }
}
