// One call that waits for our answer, as the file of that call sees it: its arguments, who made it, how to read what
// they point to, how to do something in the caller's place. What must not wait is done here; the rest by hands.
//
// The rule of all of them: what a caller may is judged in the container's own user namespace, so whoever is in another
// one (a nested one has every capability in itself) gets what the kernel gives. And what was read of a caller counts
// only if its notification is valid afterwards.
import { Hand, type Outcome } from "../../../run/hand.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  CLONE_NEWNS,
  CLONE_NEWUSER,
  chroot,
  dup3,
  fchdir,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  openat,
  pidfdGetfd,
  pread64,
  setgroups,
  setns,
  setresgid,
  setresuid,
  signal,
  wait,
  writeRead,
} from "../../../sys/calls.ts";
import { Fd } from "../../../sys/fd.ts";
import { mem, Struct } from "../../../sys/mem.ts";
import type { Answer, Notification } from "../../../sys/notify.ts";
import { attempt } from "../../../sys/now.ts";
import { type Op, Reg } from "../../../sys/op.ts";
import { ID_RANGE } from "../../containers.ts";
import type { Device } from "../../devices/rules.ts";
import type { Capability } from "../caps.ts";
import { type Caller, hasCapability } from "./caller.ts";
import type { UnderWay } from "./underway.ts";

/** The container, as much as these calls need of it. */
export interface Contained {
  readonly name: string;
  readonly uidStart: number;
  /** Its init's user namespace, as /proc names it. */
  readonly namespace: string;
  /** The directory of its control group. */
  readonly group: string;
  /** Names of kernel modules it may load. */
  readonly modules: readonly string[];
  /** Access that it has to a device: bits of linux/bpf.h, BPF_DEVCG_ACC_*. */
  access(device: Device): number;
  log(line: string): void;
}

export type Handler = (call: Supervised) => Answer | Promise<Answer>;

/** Bytes that a path or mount's data may have, with their NUL: linux/limits.h. */
const TEXT_MAX = 4096;
/** Where a hand leaves what the next one takes, a place and its mount namespace: numbers that it does not use. */
const [LEFT_PLACE, LEFT_NAMESPACE] = [2, 1];
const [LENGTH, USERS, MOUNTS, ROOT, HERE, PLACE] = [0, 1, 2, 3, 4, 5].map((n) => new Reg(n)) as [
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
  Reg,
];
const AT_EACCESS = 0x200; // linux/fcntl.h
const [W_OK, X_OK] = [2, 1];
const CAPABILITY_VERSION_3 = 0x20080522; // linux/capability.h

/** Where children put what they have read: nobody else's until they have ended. */
const spare: Uint8Array<ArrayBuffer>[] = [];

export const int = (register: bigint): number => Number(BigInt.asIntN(32, register));

/** A directory entry in the caller's view, up to the last name. */
interface Split {
  /** A descriptor of the caller that the path begins at; undefined: its root or its working directory. */
  readonly from: number | undefined;
  /** "" for the beginning itself. */
  readonly path: string;
}

/** Where a path begins. /proc/self/fd/N means the caller's descriptor, which no child of ours could look up. */
export function begin(directory: number, path: string): Split {
  const own = /^\/proc\/(?:thread-)?self\/fd\/(\d{1,9})(?:\/+|$)(.*)$/s.exec(path);
  if (own) return { from: Number(own[1]), path: own[2]! };
  return { from: path.startsWith("/") || directory === AT_FDCWD ? undefined : directory, path };
}

/** struct __user_cap_data_struct[2]: effective and permitted. */
const capset = (set: bigint): Op => {
  const [low, high] = [Number(set & 0xffffffffn), Number(set >> 32n)];
  return {
    call: "capset",
    args: [
      { data: new Struct(8).u32(CAPABILITY_VERSION_3).u32(0).bytes, text: "{version=3, pid=0}" },
      {
        data: new Struct(24).u32(low).u32(low).u32(0).u32(high).u32(high).u32(0).bytes,
        text: `{effective=permitted=0x${set.toString(16)}}`,
      },
    ],
  };
};

/** File systems see the caller, with these capabilities in the user namespace that the child is in. */
export const asCaller = (ids: Pick<Caller, "uid" | "gid" | "groups">, capabilities: bigint): Op[] => [
  setgroups(ids.groups),
  { call: "setfsgid", args: [ids.gid] },
  { call: "setfsuid", args: [ids.uid] },
  capset(capabilities),
];

export class Supervised implements Disposable {
  #memory: Fd | undefined;
  readonly #hands: Hand[] = [];

  constructor(
    readonly container: Contained,
    readonly notification: Notification,
    readonly caller: Caller,
    /** The caller still waits: everything that was read of it is of it. */
    readonly valid: () => boolean,
    readonly underWay: UnderWay,
    readonly place: number,
  ) {}

  get args(): readonly bigint[] {
    return this.notification.args;
  }

  /** The caller has it in the container's own user namespace. */
  may(capability: Capability): boolean {
    return this.caller.namespace === this.container.namespace && hasCapability(this.caller, capability);
  }

  /** Resolves when no child of this call is left. */
  async idle(): Promise<void> {
    await Promise.all(this.#hands.map((h) => h.gone));
  }

  hand(given: readonly number[], program: (talk: number) => readonly Op[]): Hand {
    const hand = new Hand(given, program);
    this.#hands.push(hand);
    return hand;
  }

  /** In the program of a child that do() starts, after the call that matters: a later cmld does not do it again. */
  get done(): Op {
    return this.underWay.done(this.place);
  }

  async do(given: readonly number[], ops: readonly Op[]): Promise<Outcome> {
    return this.hand([...given, this.underWay.descriptor], () => ops).outcome();
  }

  /** The caller's memory: this very caller's, if it is valid now. Undefined: it is gone. */
  get memory(): Fd | undefined {
    if (this.#memory) return this.#memory;
    const n = attempt(openat(AT_FDCWD, `/proc/${this.caller.pid}/mem`, O_RDWR));
    if (n < 0) return undefined;
    this.#memory = new Fd(n);
    return this.valid() ? this.#memory : undefined;
  }

  /** Up to `lengths` bytes at each address; undefined if one of them cannot be read at all. */
  async #read(wanted: readonly { at: bigint; length: number }[]): Promise<Uint8Array[] | undefined> {
    const { memory } = this;
    if (!memory) return undefined;
    const rooms = wanted.map(() => spare.pop() ?? mem(TEXT_MAX));
    const hand = this.hand([memory.n], (talk) =>
      wanted.flatMap(({ at, length }, i) => {
        const room = rooms[i]!.subarray(0, length);
        return [pread64(memory.n, room, at, LENGTH), writeRead(talk, room, LENGTH)];
      }),
    );
    void hand.gone.then(() => spare.push(...rooms));
    const found: Uint8Array[] = [];
    for (const _ of wanted) {
      const bytes = await hand.heard();
      if (!bytes) return undefined;
      found.push(bytes);
    }
    return found;
  }

  /** Exactly so many bytes, or undefined: EFAULT. */
  async bytes(at: bigint, length: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const [found] = (await this.#read([{ at, length }])) ?? [];
    if (found?.length !== length) return undefined;
    const copy = mem(length);
    copy.set(found);
    return copy;
  }

  /** The strings at these addresses, "" at NULL; undefined if one cannot be read up to its end, or is too long. */
  async texts(...at: bigint[]): Promise<string[] | undefined> {
    const wanted = at.filter((a) => a !== 0n).map((a) => ({ at: a, length: TEXT_MAX }));
    const found = await this.#read(wanted);
    if (!found) return undefined;
    const texts: string[] = [];
    for (const a of at) {
      if (a === 0n) texts.push("");
      else {
        const bytes = found.shift()!;
        const end = bytes.indexOf(0);
        const text = end < 0 ? undefined : Buffer.from(bytes.subarray(0, end));
        // Names are bytes; we hand on only what is the same after a journey through a string.
        if (!text || !Buffer.from(text.toString()).equals(text)) return undefined;
        texts.push(text.toString());
      }
    }
    return texts;
  }

  /** An id of the host as the container names it; undefined: it has no such id. */
  #inside(id: number): number | undefined {
    const n = id - this.container.uidStart;
    return n >= 0 && n < ID_RANGE ? n : undefined;
  }

  /** Open what is at a path in the caller's view, with the caller's ids and capabilities: the file system may be
   * anything. Found: a hand that has it open, for another to take(). Undefined: the caller cannot get there. */
  async find(directory: number, path: string, toCreate: boolean): Promise<Hand | undefined> {
    const { pid, uid, gid, groups, capabilities } = this.caller;
    const ids = {
      uid: this.#inside(uid),
      gid: this.#inside(gid),
      groups: groups.map((g) => this.#inside(g)),
    };
    if (ids.uid === undefined || ids.gid === undefined || ids.groups.includes(undefined)) return undefined;
    const { from, path: rest } = begin(directory, path);
    const of = (name: string, flags: number, save: Reg): Op =>
      openat(AT_FDCWD, `/proc/${pid}/${name}`, flags, 0, save);
    const hand = this.hand([], (talk) => [
      of("ns/user", O_RDONLY, USERS),
      of("ns/mnt", O_RDONLY, MOUNTS),
      of("root", O_PATH, ROOT),
      of(from === undefined ? "cwd" : `fd/${from}`, O_PATH, HERE),
      dup3(MOUNTS, LEFT_NAMESPACE),
      setns(USERS, CLONE_NEWUSER),
      setns(MOUNTS, CLONE_NEWNS),
      setresgid(0),
      setresuid(0),
      fchdir(ROOT),
      chroot("."),
      ...asCaller(ids as Pick<Caller, "uid" | "gid" | "groups">, capabilities),
      ...(rest === "" && from !== undefined
        ? [dup3(HERE, LEFT_PLACE)]
        : [
            fchdir(HERE),
            openat(AT_FDCWD, rest, O_PATH | (toCreate ? O_DIRECTORY : 0), 0, PLACE),
            dup3(PLACE, LEFT_PLACE),
          ]),
      ...(toCreate
        ? [
            {
              call: "faccessat2",
              args: [LEFT_PLACE, "", W_OK | X_OK, AT_EMPTY_PATH | AT_EACCESS],
            } satisfies Op,
          ]
        : []),
      signal(talk),
      wait(talk), // until we are done with it
    ]);
    return (await hand.heard()) && this.valid() ? hand : undefined;
  }

  /** In a child's program: what find() has found. The child is given `found.pidfd`. */
  take(found: Hand, save: Reg): Op {
    return { ...pidfdGetfd(found.pidfd, LEFT_PLACE), save };
  }

  /** The mount namespace in which it was found. */
  takeNamespace(found: Hand, save: Reg): Op {
    return { ...pidfdGetfd(found.pidfd, LEFT_NAMESPACE), save };
  }

  [Symbol.dispose](): void {
    this.#memory?.close();
    for (const hand of this.#hands) hand[Symbol.dispose]();
  }
}
