// The audit: what happened to containers, to the CML and to the kernel under them, as records that survive. Each
// container has a trail of its own (trail.ts) with as much space as every other; what concerns none of them, or one that
// is not known, goes into core0's, which is the CML's.
//
// Whose a record of the kernel's is, is never read from text that a program sent: the kernel's own pid leads to the
// process' control group, if it is there still, and else the kernel's own uid to a range of ids, which no two
// containers share.
import { readFileSync } from "node:fs";
import { mkdir, readdir, rm } from "node:fs/promises";
import { C0 } from "../../lib/uuid.ts";
import {
  groupOfProcess,
  inFirstPidNamespace,
  isFromProgram,
  type KernelRecord,
  numberIn,
} from "../../sys/audit.ts";
import { chain } from "../../sys/error.ts";
import { sweep } from "../../sys/file.ts";
import { type Event, type Stored, Trail } from "./trail.ts";

/** What became of it: an attempt of a user's or of the system's own, or a limit that was reached. */
export type Outcome = "SUA" | "FUA" | "SSA" | "FSA" | "RLE";
export type Class =
  | "GENERIC"
  | "GUESTOS_MGMT"
  | "TOKEN_MGMT"
  | "CONTAINER_MGMT"
  | "CONTAINER_ISOLATION"
  | "TPM_COMM"
  | "KAUDIT";

export type Meta = Readonly<Record<string, string | number>>;

/** For whoever has something to record. */
export interface Audit {
  /** `container`: a uuid, or undefined for the CML. `foreign`: a client has caused it, who may not take the last quarter
   * of the space. Never throws, never waits. */
  record(
    outcome: Outcome,
    kind: Class,
    name: string,
    container?: string,
    meta?: Meta,
    foreign?: boolean,
  ): void;
  /** Resolves when everything recorded so far is on the disk. */
  settled(): Promise<void>;
}

/** The containers as they are now. */
export interface Owners {
  known(uuid: string): boolean;
  /** Who has this id of the host. */
  ofUid(uid: number): string | undefined;
  /** Where the containers' groups are, as /proc/PID/cgroup names it. */
  groups(): string;
}

export interface Options {
  readonly directory: string;
  /** Bytes for each trail. */
  readonly limit: number;
  readonly owners: Owners;
  warn(line: string): void;
}

const MIB = 2 ** 20;
/** device.conf counts in MB; the product is exact. */
export const limitOf = (auditSize: number): number => auditSize * MIB;

/** Records of the kernel that are kept: what programs send (isFromProgram), and of the kernel's own those on logins,
 * on audit itself, seccomp, device-mapper, crashes and promiscuous interfaces, security modules, integrity. Of the
 * others (rules of the firewall, loaded BPF programs, …) cmld itself would be the cause of most. linux/audit.h */
const KEPT: readonly (readonly [first: number, last: number])[] = [
  [1006, 1006], // LOGIN
  [1305, 1305], // CONFIG_CHANGE
  [1326, 1326], // SECCOMP
  [1338, 1339], // DM_CTRL, DM_EVENT
  [1400, 1499], // AVC, APPARMOR …, LANDLOCK_…
  [1500, 1599], // AppArmor, before Linux 2.6.36
  [1700, 1799], // ANOM_…
  [1800, 1899], // INTEGRITY_…
];
const isKept = (type: number): boolean =>
  isFromProgram(type) || KEPT.some(([first, last]) => type >= first && type <= last);

const [SECCOMP, TRUSTED_APP, DM_CTRL, DM_EVENT] = [1326, 1121, 1338, 1339];
/** Kernel records of one container that are taken at once, and the time for each one more. */
const [BURST, EVERY_MS] = [500, 20];

/** A container's share of the kernel's attention. */
class Share {
  #left = BURST;
  #at = performance.now();
  lost = 0;
  take(): boolean {
    const more = Math.floor((performance.now() - this.#at) / EVERY_MS);
    this.#at += more * EVERY_MS;
    this.#left = Math.min(BURST, this.#left + more);
    if (this.#left === 0) {
      this.lost++;
      return false;
    }
    this.#left--;
    return true;
  }
}

/** Whether it went well: what the kernel says, or else the program. Crashes and kills of seccomp's never did. */
function succeeded(r: KernelRecord): boolean {
  if (r.type === SECCOMP || (r.type >= 1700 && r.type <= 1799)) return false;
  const said = r.fields.get("res") ?? /(?:^|[ ,])res=([A-Za-z0-9]+)/.exec(r.message ?? "")?.[1] ?? "1";
  return said === "1" || said === "success" || said === "yes";
}

/** The name that a device-mapper device has been given; ours begin with the container's uuid. */
function dmName(device: string | undefined): string | undefined {
  if (device === undefined || !/^[0-9]{1,4}:[0-9]{1,7}$/.test(device)) return undefined;
  try {
    return readFileSync(`/sys/dev/block/${device}/dm/name`, "utf8").trim();
  } catch {
    return undefined; // it is gone already
  }
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/;

/** Whose a record is, and how that was found. */
export function attribute(
  r: KernelRecord,
  owners: Owners,
  groupOf: (r: KernelRecord) => string | undefined,
): { uuid: string | undefined; by: "device" | "cgroup" | "uid" | "none" } {
  if (r.type === DM_CTRL || r.type === DM_EVENT) {
    const uuid = UUID.exec(dmName(r.fields.get("dev")) ?? "")?.[0];
    if (uuid !== undefined && owners.known(uuid)) return { uuid, by: "device" };
  }
  const group = groupOf(r);
  if (group !== undefined) {
    const groups = `${owners.groups()}/`;
    const inside = group.startsWith(groups) ? group.slice(groups.length) : "";
    const uuid = UUID.exec(inside)?.[0];
    if (uuid !== undefined && owners.known(uuid)) return { uuid, by: "cgroup" };
  }
  const uid = numberIn(r, "uid");
  const uuid = uid === undefined ? undefined : owners.ofUid(uid);
  if (uuid !== undefined) return { uuid, by: "uid" };
  return { uuid: undefined, by: group === undefined ? "none" : "cgroup" };
}

/** The record that is kept of one of the kernel's. */
export function eventOf(r: KernelRecord, uuid: string | undefined, by: string): Event {
  const outcome = succeeded(r) ? "SSA" : "FSA";
  const name = r.type === DM_EVENT ? "dm-audit" : r.type === TRUSTED_APP ? "trusted-app" : `type=${r.type}`;
  const label = r.type === DM_CTRL || r.type === DM_EVENT ? dmName(r.fields.get("dev")) : undefined;
  return {
    type: `${outcome}.CMLD.KAUDIT.${name}`,
    timestamp: Math.floor(r.time),
    foreign: uuid !== undefined,
    ...(uuid !== undefined && { subject: uuid }),
    meta: [
      ["attributed", by],
      ...(label === undefined ? [] : [["label", label] as const]),
      ...r.fields,
      ...(r.message === undefined ? [] : [["msg", r.message] as const]),
    ],
  };
}

export class Auditor implements Audit {
  readonly #o: Options;
  readonly #trails = new Map<string, Promise<Trail>>();
  readonly #shares = new Map<string, Share>();
  readonly #pids = inFirstPidNamespace();
  /** The latest thing to wait for, of each trail. */
  readonly #pending = new Map<string, Promise<unknown>>();

  private constructor(options: Options) {
    this.#o = options;
  }

  static async open(options: Options): Promise<Auditor> {
    await mkdir(options.directory, { recursive: true, mode: 0o700 });
    await sweep(options.directory);
    return new Auditor(options);
  }

  record(
    outcome: Outcome,
    kind: Class,
    name: string,
    container?: string,
    meta: Meta = {},
    foreign = outcome === "SUA" || outcome === "FUA",
  ): void {
    const uuid = container !== undefined && this.#o.owners.known(container) ? container : C0;
    this.#append(uuid, {
      type: `${outcome}.CMLD.${kind}.${name}`,
      timestamp: Math.floor(Date.now() / 1000),
      foreign,
      ...(container !== undefined && { subject: container }),
      meta: Object.entries(meta).map(([key, value]) => [key, String(value)] as const),
    });
  }

  #append(uuid: string, event: Event): void {
    const before = this.#pending.get(uuid);
    const kept = this.trail(uuid).then((t) => t.append(event));
    const done = Promise.allSettled(before ? [before, kept] : [kept]).then(() => {
      if (this.#pending.get(uuid) === done) this.#pending.delete(uuid);
    });
    this.#pending.set(uuid, done);
    kept.catch((e) => this.#o.warn(chain(e)));
  }

  async settled(): Promise<void> {
    await Promise.all(this.#pending.values());
  }

  /** The trail of a container; opened when somebody wants it first. */
  trail(uuid: string): Promise<Trail> {
    let trail = this.#trails.get(uuid);
    if (!trail) {
      const which = uuid === C0 ? "audit of the CML" : `audit of ${uuid}`;
      trail = Trail.open({
        directory: this.#o.directory,
        name: uuid,
        limit: this.#o.limit,
        say: (line) => this.#o.warn(`${which}: ${line}`),
        warned: (full) => this.#warned(uuid, which, full),
      });
      this.#trails.set(uuid, trail);
      trail.catch(() => this.#trails.delete(uuid)); // the next one tries again
    }
    return trail;
  }

  #warned(uuid: string, which: string, full: boolean): void {
    if (full) this.#o.warn(`${which}: three quarters of its space are used`);
    if (uuid !== C0)
      this.record(full ? "RLE" : "SSA", "GENERIC", full ? "audit-nearly-full" : "audit-has-room", undefined, {
        container: uuid,
      });
  }

  /** A record of the kernel's. */
  kernel(r: KernelRecord): void {
    if (!isKept(r.type)) return;
    const { uuid, by } = attribute(r, this.#o.owners, this.#pids ? groupOfProcess : () => undefined);
    if (uuid !== undefined) {
      const share = this.#shares.get(uuid) ?? new Share();
      this.#shares.set(uuid, share);
      if (!share.take()) return;
      const { lost } = share;
      share.lost = 0;
      if (lost > 0) this.record("RLE", "KAUDIT", "too-many", uuid, { count: lost });
    }
    this.#append(uuid ?? C0, eventOf(r, uuid, by));
  }

  /** The kernel has dropped records before they came to us. */
  lost(count: number | undefined): void {
    this.record("FSA", "KAUDIT", "lost", undefined, { count: count ?? "unknown" });
    this.#o.warn(`the kernel's audit: ${count ?? "some"} records were lost`);
  }

  /** Records that nobody has acknowledged, as far as they are on the disk; with `follow`, what comes as well. */
  async *read(
    uuid: string,
    options: { lines?: number; follow?: AbortSignal } = {},
  ): AsyncGenerator<Stored[]> {
    const { lines, follow } = options;
    const trail = await this.trail(uuid);
    await trail.settled();
    let { promise: more, resolve: wake } = Promise.withResolvers<void>();
    using _ = trail.onRecords(() => wake());
    const stop = () => wake();
    follow?.addEventListener("abort", stop, { once: true });
    try {
      let at = lines === undefined ? 0 : Math.max(0, trail.last - lines);
      for (;;) {
        const some = await trail.next(at, READ_AT_ONCE);
        if (some.length > 0) {
          at = some.at(-1)!.sequence;
          yield some;
          continue;
        }
        if (!follow || follow.aborted) return;
        await more;
        ({ promise: more, resolve: wake } = Promise.withResolvers<void>());
      }
    } finally {
      follow?.removeEventListener("abort", stop);
    }
  }

  /** A container is gone, and its trail with it. How many records nobody has received. */
  async remove(uuid: string): Promise<number> {
    await this.#pending.get(uuid);
    const trail = await this.trail(uuid);
    this.#trails.delete(uuid);
    this.#shares.delete(uuid);
    await trail.close();
    await Trail.remove(this.#o.directory, uuid);
    return trail.last - trail.acknowledged;
  }

  /** Everything is wiped. */
  async wipe(): Promise<void> {
    await this.settled();
    const open = [...this.#trails.values()];
    this.#trails.clear();
    for (const trail of open) await trail.then((t) => t.close()).catch(() => {});
    for (const file of await readdir(this.#o.directory)) await rm(`${this.#o.directory}/${file}`);
  }
}

/** Records that a reader gets in one piece. */
const READ_AT_ONCE = 64;
