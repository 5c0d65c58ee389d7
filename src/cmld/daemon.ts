// What cmld does, behind whatever asks for it: a client (control.ts), a signal, the end of a container. It knows the
// containers, binds them to their GuestOS, starts core0 and after it the others, and ends everything when core0 ends.
//
// Starting, removing and wiping of one container happen one after the other; requests for different containers do not
// wait for each other.

import { existsSync } from "node:fs";
import { readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import * as proto from "../../proto/gen/proto.js";
import { Turns } from "../lib/turns.ts";
import { C0, newUuid } from "../lib/uuid.ts";
import { AT_FDCWD, O_DIRECTORY, O_PATH, O_RDONLY, openat } from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { destroy, removeSynced, sweep, writeAtomic } from "../sys/file.ts";
import type { Log } from "../sys/journal.ts";
import { now } from "../sys/now.ts";
import { SIGINT } from "../sys/process.ts";
import type { Secret } from "../sys/secret.ts";
import type { Auditor, Meta, Outcome } from "./audit/audit.ts";
import { Clock } from "./clock.ts";
import type { ContainerConfig, DeviceConfig } from "./config.ts";
import { shownName } from "./config.ts";
import { type BoundGuestOs, Container, type Surroundings } from "./container.ts";
import { Containers, type Draft, ID_RANGE, type Stored, type Taken, uidStart } from "./containers.ts";
import type { Daemon, Known, LogPiece, LogSource, Restoring, StateEvent } from "./control.ts";
import { loadDeviceId } from "./device.ts";
import { hotplug } from "./devices/hotplug.ts";
import { claimsOf, type Holder, parseDeviceAccess, showRule } from "./devices/rules.ts";
import { type Claimant, isTokenOf, type UsbDevice } from "./devices/usb.ts";
import type { Exec, Client as ExecClient, Request as ExecRequest, Session } from "./exec.ts";
import { timeOffset, type Web } from "./images/download.ts";
import { type GuestOs, GuestOses, type Installation, type Progress } from "./images/guestos.ts";
import { forgetImages } from "./images/mounted.ts";
import { type Signature, signatureOf, Trust } from "./images/trust.ts";
import { modulesLoaded } from "./kernel.ts";
import { Restoration } from "./keys/backup.ts";
import { isVolumeFile, KEY_BYTES, modeOf, STACKED } from "./keys/crypt.ts";
import { forgetKey } from "./keys/machine.ts";
import { typedPin } from "./keys/pinpad.ts";
import {
  clearUnfinished,
  keyWithoutToken,
  makeRecoveryKey,
  type Owner,
  recovered,
  restoringFolder,
  save,
  settle,
} from "./keys/saving.ts";
import { hasToken, TokenRefused, Tokens } from "./keys/tokens.ts";
import { Ledger, type Running } from "./ledger.ts";
import { readFrom, readLog, removeLog, removeOld, retrievable } from "./logs.ts";
import type { Host, Module } from "./module.ts";
import { grantOf } from "./modules/caps.ts";
import { childGroupOf, refuseAbsent } from "./modules/cgroups.ts";
import * as devices from "./modules/devices.ts";
import { Supervisor } from "./modules/seccomp/supervisor.ts";
import { imageName, volumeFile, volumeSize } from "./modules/volumes.ts";
import type { Scd } from "./scd.ts";
import { isUp, type State } from "./state.ts";
import { containerStats, deviceStats } from "./statistics.ts";
import type { Store } from "./store.ts";

const { ContainerState, ContainerTrust, ContainerType, CryptfsMode, GuestOSMount } = proto;
const { EMPTY, OVERLAY_RW } = GuestOSMount.Type;

/** Empty file below the data folder: the device is provisioned. */
const PROVISIONED = "_cml_provisioned_";
export const LOG_NAME = "cml-daemon";
/** Part of the disk that a new container's volumes must leave free, and their overhead; as the original. */
const [SPARE, OVERHEAD] = [0.2, 1.1];

/** core0 without a configuration of its own: core.md 7.4, but with a user namespace. */
const CORE0 = (os: string): string =>
  `name: "c0"\nguest_os: "${os}"\nram_limit: 1024\ncolor: 0xffffff00\ntoken_type: NONE\n`;

/** Ends the machine; resolves never, or when there is none to end. */
export type End = "power off" | "reboot";

/** The network's part, by uuid. */
export interface Interfaces {
  /** As `ip link` prints them. */
  readonly texts: string[];
  readonly table: proto.IContainerInterface[];
}

export interface Network {
  interfaces(uuid: string): Interfaces;
  assign(uuid: string, which: string): Promise<void>;
  unassign(uuid: string, which: string): Promise<void>;
  /** The veths as they are now, or undefined where the configuration says all. */
  vnets(uuid: string): readonly proto.IContainerVnetConfig[] | undefined;
}

export interface Machine {
  readonly host: Host;
  readonly device: DeviceConfig;
  readonly modules: readonly Module[];
  readonly store: Store;
  readonly scd: Scd;
  readonly log: Log;
  readonly exec: Exec;
  readonly network: Network;
  /** Ids that users of the host have been given. */
  readonly taken: readonly Taken[];
  /** core0 has ended, and everything else. */
  end(how: End): void;
}

/** A container with what is stored of it. */
class Managed extends Container implements Known {
  stored: Stored;
  /** What a client was told last; frozen, so that its encoding is kept (src/lib/protobuf.ts). */
  told: proto.IContainerStatus | undefined;
  constructor(stored: Stored, around: Surroundings, imageDir: string) {
    super(stored.uuid, stored.config, stored.created, uidStart(stored.index), imageDir, around);
    this.stored = stored;
  }
}

/** Changes of state that are recorded; a start is, where it is asked for. */
const AUDITED: Partial<Record<State, string>> = {
  SHUTDOWN: "shutting-down",
  STOPPED: "container-stop",
  REBOOTING: "reboot",
};

const runs = (c: Container): boolean => isUp(c.state) || c.state === "REBOOTING";

export class Manager implements Daemon {
  readonly #m: Machine;
  readonly #store: Containers;
  readonly #oses: GuestOses;
  readonly #clock: Clock;
  readonly trust: Trust;
  readonly #tokens: Tokens;
  readonly #around: Surroundings;
  #all = new Map<string, Managed>();
  /** What a configuration was bound to last: chosen when it is loaded and again before a start. */
  readonly #bound = new WeakMap<ContainerConfig, GuestOs | Error>();
  /** One change of a container after the other. */
  readonly #turns = new Turns();
  readonly #subscribers = new Set<(e: StateEvent) => void>();
  #provisioned = false;
  #deviceUuid: string | undefined;
  /** core0 has ended, or somebody wants us to: nothing is started any more. */
  #ending = false;
  #how: End = "power off";

  constructor(machine: Machine) {
    this.#m = machine;
    const { host, device, log, store } = machine;
    this.trust = new Trust(machine.scd, device, host.base, () => this.#provisioned);
    this.#tokens = new Tokens(machine.scd, host.base);
    this.#store = new Containers({
      folder: join(host.base, "containers"),
      device,
      trust: this.trust,
      provisioned: () => this.#provisioned,
      builtIn: { uuid: C0, source: Buffer.from(CORE0(device.c0os)) },
      log: (line) => log.warn(line),
      taken: machine.taken,
      inUse: () => [...this.#all.values()].filter(runs).map((c) => c.stored.index),
    });
    const web: Web = { dns: device.host_dns, network: () => this.#network() };
    this.#clock = new Clock({
      server: device.ntp_server,
      ask: (server) => timeOffset(web, server),
      audit: host.audit,
      warn: (line) => log.warn(line),
    });
    this.#oses = new GuestOses({
      folder: join(host.base, "operatingsystems"),
      device,
      web,
      trust: this.trust,
      scd: machine.scd,
      log: (line) => log.warn(line),
      forget: (folder) => forgetImages(`${folder}/`),
      users: (name, version) =>
        [...this.#all.values()]
          .filter((c) =>
            // One that is being started has chosen already, and shows it once it has a process.
            version === undefined || (c.state === "STARTING" && !c.process)
              ? c.config.guest_os === name
              : c.guestos?.name === name && c.guestos.version === version,
          )
          .map((c) => shownName(c.config.name)),
    });
    this.#around = {
      host,
      modules: machine.modules,
      keep: (name, fd) => store.keep(name, fd),
      kept: (name) => store.kept(name),
      forget: (name) => store.forget(name),
      exitOf: (pid, startTime) => store.exitOf(pid, startTime),
      bind: (config) => this.#bind(config),
      changed: (container, from, to) => this.#changed(container as Managed, from, to),
      log: (line) => log.info(line),
    };
  }

  // --- beginning --------------------------------------------------------------------

  /** Read everything, take over what runs, release what an earlier cmld left half done. */
  async load(): Promise<void> {
    const { host, log } = this.#m;
    this.#provisioned = (await readdir(host.base)).includes(PROVISIONED);
    this.#deviceUuid = await loadDeviceId(host.base).catch((e) => {
      log.warn(chain(e));
      return undefined;
    });
    await this.#oses.load();
    if (!host.hosted && this.#oses.all().length === 0)
      throw new Error("no guest operating system is installed");
    await clearUnfinished(host.base);
    await this.#reload();
    await this.#adopt();
    for (const name of this.#m.store.names()) this.#m.store.forget(name); // of containers that are gone
    await this.#oses.purge();
    if (existsSync(join(host.base, "keys"))) await sweep(join(host.base, "keys"));
    log.info(
      `loaded ${this.#all.size} containers, ${this.#oses.all().length} guest operating systems` +
        (this.#provisioned ? ", provisioned" : ""),
    );
  }

  async #adopt(): Promise<void> {
    const { host, log } = this.#m;
    const left = await Ledger.load(join(host.run, "ledger"), (line) => log.warn(line));
    // core0 first: the others' networks end in it.
    left.sort((a, b) => Number(b.ledger.head.uuid === C0) - Number(a.ledger.head.uuid === C0));
    for (const { ledger, running } of left) {
      const { uuid } = ledger.head;
      try {
        if (running && (await this.#takeOver(ledger, running))) continue;
      } catch (e) {
        log.error(`${uuid}: cannot be taken over: ${chain(e)}`);
        if (this.#all.get(uuid)?.process) continue; // adopted so far that it is watched
      }
      log.info(`${uuid}: releasing what an earlier cmld has left`);
      await ledger.release().catch((e) => log.error(`${uuid}: ${chain(e)}`));
    }
  }

  async #takeOver(ledger: Ledger, running: Running): Promise<boolean> {
    const { uuid, guestos, guestosVersion } = ledger.head;
    const container = this.#all.get(uuid);
    const os = this.#oses.find(guestos, guestosVersion);
    if (!container) throw new Error("it has no configuration any more");
    if (!os) throw new Error(`its guest_os ${guestos}-${guestosVersion} is not installed any more`);
    return container.adopt(ledger, running, { config: os.config, directory: os.folder });
  }

  /** Where the network is: in core0. */
  #network(): Fd | "ours" {
    if (this.#m.host.hosted) return "ours";
    const pid = this.#all.get(C0)?.pid;
    if (pid === undefined) throw new Error("core0, which has the network, does not run");
    return new Fd(now(openat(AT_FDCWD, `/proc/${pid}/ns/net`, O_RDONLY)));
  }

  /** On a device: core0, and after it those that want it. */
  async begin(): Promise<void> {
    if (this.#m.host.hosted) return;
    let core0 = this.#all.get(C0);
    if (!core0) {
      const draft = this.#store.draft(Buffer.from(CORE0(this.#m.device.c0os)));
      core0 = this.#add(await this.#store.create(draft, undefined, C0));
    }
    if (!isUp(core0.state)) await this.start(core0, false);
  }

  async #autostart(): Promise<void> {
    for (const c of this.containers()) {
      if (this.#ending) return;
      if (c.isC0 || !c.config.allow_autostart || c.state !== "STOPPED") continue;
      if (c.config.token_type !== proto.ContainerTokenType.NONE) {
        this.#m.log.warn(`${shownName(c.config.name)}: not started: its token needs a PIN`);
        continue;
      }
      await this.start(c, false).catch((e) => this.#m.log.error(chain(e)));
    }
  }

  get audit(): Auditor | undefined {
    return this.#m.host.audit;
  }

  #record(outcome: Outcome, name: string, c: Managed, meta: Meta = {}): void {
    this.audit?.record(outcome, "CONTAINER_MGMT", name, c.uuid, { name: c.config.name, ...meta });
  }

  /** Whose range of ids an id of the host is in. */
  ofUid(uid: number): string | undefined {
    for (const c of this.#all.values()) if (uid >= c.uidStart && uid < c.uidStart + ID_RANGE) return c.uuid;
    return undefined;
  }

  // --- changes of state ----------------------------------------------------------------

  #changed(c: Managed, from: State, to: State): void {
    this.#m.log.info(`${shownName(c.config.name)}: ${from} → ${to}${to === "STOPPED" ? ended(c) : ""}`);
    this.#tell(c, to);
    if (to === "RUNNING") {
      hotplug.running(c.uuid);
      if (c.guestos) void this.#oses.ran(c.guestos.name, c.guestos.version);
      void this.#clock.look();
    }
    const name = AUDITED[to];
    if (name !== undefined) this.#record("SSA", name, c, to === "STOPPED" ? { ...c.exit } : {});
    if (c.isC0 && !this.#m.host.hosted) {
      if (to === "RUNNING" && (from === "BOOTING" || from === "STARTING")) void this.#autostart();
      if (!this.#ending && (to === "SHUTDOWN" || to === "STOPPED" || to === "ZOMBIE"))
        void this.#everything();
    }
    // A configuration that waited for this moment.
    if (to === "STOPPED")
      void this.#rebind(c)
        .then(() => this.#oses.purge())
        .catch((e) => this.#m.log.error(chain(e)));
  }

  #tell(c: Managed, state?: State, error?: string): void {
    if (this.#subscribers.size === 0) return;
    const message: proto.IContainerEvent = {
      uuid: c.uuid,
      name: c.config.name,
      state: state && ContainerState[state],
      timestamp: Date.now(),
      error_text: error ?? (state === "STOPPED" ? c.why : undefined),
      ...(state === "STOPPED" && c.exit && { exit_status: c.exit.status, exit_signal: c.exit.signal }),
    };
    for (const tell of [...this.#subscribers]) tell({ container: c.uuid, message });
  }

  onEvent(tell: (event: StateEvent) => void): Disposable {
    this.#subscribers.add(tell);
    return { [Symbol.dispose]: () => void this.#subscribers.delete(tell) };
  }

  /** core0 ends: every other container ends, then the machine. */
  async #everything(): Promise<void> {
    this.#ending = true;
    await this.#stopAll();
    this.#m.log.info(`all containers have stopped: ${this.#how}`);
    this.#m.end(this.#how);
  }

  #refuseAtEnd(): void {
    if (this.#ending) throw new Error("everything is being stopped");
  }

  /** Stop all containers, core0 last; each is killed when its time is over. */
  async #stopAll(): Promise<void> {
    const all = [...this.#all.values()];
    await Promise.all(all.filter((c) => !c.isC0).map((c) => this.#stopOne(c)));
    await Promise.all(all.filter((c) => c.isC0).map((c) => this.#stopOne(c)));
  }

  async #stopOne(c: Managed): Promise<void> {
    if (c.state === "STOPPED" || c.state === "ZOMBIE") return c.kill(); // an explain() under way comes to its end
    if (c.state !== "SHUTDOWN")
      await c.stop().catch((e) => {
        this.#m.log.warn(chain(e));
        return c.kill();
      });
    await c.whenStopped();
  }

  /** For SIGTERM: resolves when nothing runs any more. The second time: at once. */
  async shutdown(): Promise<void> {
    if (this.#ending) {
      await Promise.all([...this.#all.values()].map((c) => c.kill()));
      return;
    }
    this.#ending = true;
    await this.#stopAll();
  }

  // --- containers ---------------------------------------------------------------------

  get hosted(): boolean {
    return this.#m.host.hosted;
  }
  get provisioned(): boolean {
    return this.#provisioned;
  }
  get deviceUuid(): string | undefined {
    return this.#deviceUuid;
  }
  /** In the order of their creation: as the store lists them, new ones at the end. */
  containers(): readonly Managed[] {
    return [...this.#all.values()];
  }
  container(uuid: string): Managed | undefined {
    return this.#all.get(uuid);
  }

  #managed(c: Known): Managed {
    const found = this.#all.get(c.uuid);
    if (!found) throw new Error(`there is no container ${c.uuid} any more`);
    return found;
  }

  #imageDir(uuid: string): string {
    return join(this.#m.host.base, "containers", uuid);
  }

  #add(stored: Stored): Managed {
    const c = new Managed(stored, this.#around, this.#imageDir(stored.uuid));
    this.#all.set(stored.uuid, c);
    return c;
  }

  #bind(config: ContainerConfig): BoundGuestOs {
    const os = this.#bound.get(config) ?? new Error(`guest_os ${config.guest_os} is not known`);
    if (os instanceof Error) throw os;
    return { config: os.config, directory: os.folder };
  }

  /** Choose the GuestOS anew, for the configuration in use and the one that waits. */
  async #rebind(c: Managed): Promise<void> {
    for (const config of new Set([c.config, c.stored.config]))
      this.#bound.set(config, await this.#oses.select(config).catch((e) => e as Error));
  }

  async #rebindAll(): Promise<void> {
    for (const c of this.#all.values()) await this.#rebind(c);
  }

  status(known: Known): proto.IContainerStatus {
    const c = this.#managed(known);
    const { guestos, told, uptime } = c;
    const os = guestos && this.#oses.find(guestos.name, guestos.version);
    const state = ContainerState[c.state];
    const trust_level = os?.trust ?? ContainerTrust.UNSIGNED;
    // Clients ask for the list again and again, and little changes in between.
    if (
      told?.uptime === uptime &&
      told.state === state &&
      told.guestos === (guestos?.name ?? "none") &&
      told.trust_level === trust_level &&
      told.name === c.config.name
    )
      return told;
    c.told = Object.freeze({
      uuid: c.uuid,
      name: c.config.name,
      type: ContainerType.CONTAINER,
      state,
      uptime,
      created: c.created,
      guestos: guestos?.name ?? "none",
      trust_level,
      cryptfs_mode: CryptfsMode[this.#sealing(c)],
    });
    return c.told;
  }

  /** How its own volumes are kept, or will be. */
  #sealing(c: Managed): keyof typeof CryptfsMode {
    const { hosted } = this.#m.host;
    return hosted && !existsSync(join(c.imageDir, STACKED))
      ? "NOT_IMPLEMENTED"
      : modeOf(c.imageDir, KEY_BYTES);
  }

  configuration(c: Known): proto.IContainerConfig {
    const { message } = c.stored;
    const now = this.#m.network.vnets(c.uuid);
    return now ? { ...message, vnet_configs: now } : message;
  }

  /** Refuse what has no GuestOS or no room, before anything is stored. */
  async #check(draft: Draft, imageDir?: string): Promise<GuestOs> {
    refuseAbsent(draft.config, this.#m.host);
    const os = await this.#oses.select(draft.config);
    draft.message.guestos_version = os.config.version;
    let need = 0;
    const has = new Set(imageDir ? await readdir(imageDir).catch(() => []) : []);
    const hasVolume = (c: ContainerConfig, m: (typeof os.config.mounts)[number]) =>
      has.has(volumeFile(c, m)) || has.has(`${imageName(c, m)}.img`);
    for (const m of os.config.mounts) {
      if (m.mount_type !== OVERLAY_RW && m.mount_type !== EMPTY) continue;
      if (m.fs_type.startsWith("tmpfs") || hasVolume(draft.config, m)) continue;
      need += volumeSize(draft.config, m) * 2 ** 20;
    }
    const { disk_system: total, disk_system_free: free } = await this.deviceStats();
    if (need > 0 && free - need * OVERHEAD < total * SPARE)
      throw new Error(
        `its volumes need ${Math.ceil((need * OVERHEAD) / 2 ** 20)} MiB; ${Math.floor(free / 2 ** 20)} of ` +
          `${Math.floor(total / 2 ** 20)} MiB are free and a fifth must stay so`,
      );
    return os;
  }

  create(source: Uint8Array, signed?: Signature): Promise<Known> {
    return this.#create(source, signed);
  }

  /** `restored`: its volumes, before anybody can start it. */
  async #create(
    source: Uint8Array,
    signed?: Signature,
    restored?: { readonly folder: string; settle(c: Owner): Promise<void> },
  ): Promise<Managed> {
    await this.trust.container(source, signed);
    const draft = this.#store.draft(source);
    await this.#check(draft, restored?.folder);
    devices.checkClaims({ host: this.#m.host, uuid: "" }, draft.config);
    if ([...this.#all.values()].some((c) => c.config.name === draft.config.name))
      this.#m.log.warn(`a container named ${shownName(draft.config.name)} exists already: name them by uuid`);
    const uuid = newUuid();
    const fill = restored && (() => restored.settle({ uuid, imageDir: this.#imageDir(uuid) }));
    const stored = await this.#store.create(draft, signed, uuid, fill).catch(async (e) => {
      if (fill) await forgetKey(join(this.#m.host.base, "keys"), uuid).catch(() => {}); // why it failed is to be told
      throw e;
    });
    const c = this.#add(stored);
    await hotplug.reconsider(); // a token is kept from others from now on
    await this.#rebind(c);
    this.#newToken(c);
    this.#m.log.info(`${shownName(c.config.name)}: created, ${c.uuid}`);
    this.#record("SSA", "container-create", c);
    this.#tell(c, c.state);
    return c;
  }

  async update(known: Known, source: Uint8Array, signed?: Signature): Promise<Known> {
    const c = this.#managed(known);
    await this.trust.container(source, signed);
    const draft = this.#store.draft(source);
    await this.#check(draft, c.imageDir);
    devices.checkClaims({ host: this.#m.host, uuid: c.uuid }, draft.config);
    if (draft.config.token_type !== c.stored.config.token_type && this.#tokens.hasKey(c))
      throw new Error("token_type cannot change while there is data that its token protects: wipe it first");
    const stored = await this.#store.update(c.uuid, draft, signed);
    this.#apply(c, stored);
    await hotplug.reconsider();
    await this.#rebind(c);
    this.#record("SSA", "container-update", c);
    this.#m.log.info(
      `${shownName(stored.config.name)}: configuration updated${c.outOfSync ? ", applied when it has stopped" : ""}`,
    );
    return c;
  }

  #apply(c: Managed, stored: Stored): void {
    c.stored = stored;
    c.reconfigure(stored.config);
  }

  remove(known: Known): Promise<void> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      await c.kill();
      await forgetKey(join(this.#m.host.base, "keys"), c.uuid);
      await this.#tokens.destroy(c);
      await this.#store.remove(c.uuid);
      await removeLog(this.#m.host.logs, consoleLog(c));
      const left = await this.audit?.remove(c.uuid);
      this.#all.delete(c.uuid);
      this.#record("SSA", "container-remove", c, { unacknowledged: left ?? 0 });
      this.#m.log.info(`${shownName(c.config.name)}: removed`);
      this.#tell(c);
    });
  }

  wipe(known: Known): Promise<void> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      if (c.isC0 && isUp(c.state)) throw new Error("core0 runs: without its volumes the machine would end");
      await c.kill();
      await forgetKey(join(this.#m.host.base, "keys"), c.uuid);
      await this.#tokens.destroy(c); // first: a wipe that is interrupted has wiped what matters
      if (existsSync(c.imageDir))
        await removeSynced(c.imageDir, (await readdir(c.imageDir)).filter(isVolumeFile));
      this.#newToken(c);
      if (c.state === "ZOMBIE") c.mark("STOPPED");
      this.#record("SSA", "container-wipe", c);
      this.#m.log.info(`${shownName(c.config.name)}: wiped`);
    });
  }

  async reload(): Promise<readonly string[]> {
    await this.#reload();
    this.audit?.record("SSA", "CONTAINER_MGMT", "reload");
    return this.#store.notLoaded;
  }

  /** Containers that run stay as they are; their configuration is taken when they have stopped. */
  async #reload(): Promise<void> {
    const found = new Map((await this.#store.load()).map((s) => [s.uuid, s]));
    for (const c of this.#all.values()) {
      const stored = found.get(c.uuid);
      if (!stored && !runs(c)) {
        this.#all.delete(c.uuid);
        this.#tell(c);
      }
      if (stored && (runs(c) || uidStart(stored.index) === c.uidStart)) {
        this.#apply(c, stored);
        found.delete(c.uuid);
      }
    }
    for (const stored of found.values()) this.#add(stored);
    await this.#rebindAll();
  }

  // --- what a token protects ------------------------------------------------------------

  /** Seconds: beside everything else. */
  #newToken(c: Managed): void {
    if (hasToken(c))
      this.#tokens.addSoon(c, (line) => this.#m.log.warn(`${shownName(c.config.name)}: ${line}`));
  }

  /** As the original's records call it. */
  async #withToken<T>(c: Managed, good: string, work: Promise<T>): Promise<T> {
    const name = { name: c.config.name };
    try {
      const made = await work;
      this.audit?.record("SSA", "TOKEN_MGMT", good, c.uuid, name);
      return made;
    } catch (e) {
      const wrong = e instanceof TokenRefused && e.reason === "wrong PIN";
      this.audit?.record("FSA", "TOKEN_MGMT", wrong ? "unlock-wrong-pin" : good, c.uuid, {
        ...name,
        error: chain(e),
      });
      if (e instanceof TokenRefused && e.reason === "corrupt" && c.state === "STOPPED") c.mark("ZOMBIE");
      throw e;
    }
  }

  /** In its turn, as everything that uses the key: one that is wiped meanwhile must not get volumes with a key that is gone. */
  #unsealed(c: Managed, pin: Secret): Promise<Secret> {
    return this.#withToken(c, "unlock-successful", this.#tokens.open(c, pin));
  }

  async checkPin(known: Known, pin: Secret): Promise<void> {
    const c = this.#managed(known);
    await this.#withToken(c, "unlock-successful", this.#tokens.check(c, pin));
  }

  changePin(known: Known, pin: Secret, fresh: Secret): Promise<void> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      await this.#withToken(c, "container-change-pin", this.#tokens.changePin(c, pin, fresh));
      this.#m.log.info(`${shownName(c.config.name)}: its PIN was changed`);
    });
  }

  typedPin(known: Known, gone: AbortSignal): Promise<Secret> {
    const c = this.#managed(known);
    this.#m.log.info(`${shownName(c.config.name)}: waiting for a PIN at its keypad`);
    return typedPin(shownName(c.config.name), c.config.usb_configs, gone);
  }

  /** The key of its volumes: for its token's PIN, or cmld's own. */
  async #keyOf(c: Managed, pin: Secret | undefined): Promise<Secret> {
    if (pin) return this.#unsealed(c, pin);
    if (hasToken(c)) throw new Error(`${shownName(c.config.name)}: its token needs a PIN`);
    return keyWithoutToken(this.#m.host.base, c, (line) =>
      this.#m.log.warn(`${shownName(c.config.name)}: ${line}`),
    );
  }

  recoveryKey(known: Known, pin: Secret | undefined): Promise<Secret> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      using key = await this.#keyOf(c, pin);
      const recovery = await makeRecoveryKey(this.#m.host.base, c, key);
      this.#record("SSA", "container-recovery-key", c);
      return recovery;
    });
  }

  save(
    known: Known,
    by: { readonly pin?: Secret | undefined; readonly recovery?: Secret | undefined },
    to: (piece: Uint8Array) => Promise<void>,
  ): Promise<void> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      const still = c.state === "STOPPED" || (by.recovery && c.state === "ZOMBIE"); // its token is damaged
      if (!still) throw new Error(`${shownName(c.config.name)} is ${c.state}: stop it first`);
      const { base } = this.#m.host;
      using key = await (by.recovery ? recovered(base, c, by.recovery) : this.#keyOf(c, by.pin));
      const folder = join(base, "containers");
      const signed = this.#m.device.signed_configs ? await signatureOf(folder, c.uuid) : undefined;
      const about = {
        config: await readFile(join(folder, `${c.uuid}.conf`), "utf8"),
        ...(signed && {
          signature: Buffer.from(signed.signature).toString("base64"),
          certificate: Buffer.from(signed.certificate).toString("base64"),
        }),
      };
      for await (const piece of save(base, c, about, key)) {
        this.#refuseAtEnd();
        await to(piece);
      }
      this.#record("SSA", "container-export", c);
    });
  }

  #restoring = false;

  async restore(given: Secret): Promise<Restoring> {
    if (this.#restoring) {
      given[Symbol.dispose]();
      throw new Error("another backup is being restored");
    }
    this.#restoring = true;
    const { base } = this.#m.host;
    let coming: Restoration | undefined = new Restoration(restoringFolder(base), given);
    const end = async () => {
      await coming?.[Symbol.asyncDispose]();
      coming = undefined;
      this.#restoring = false;
    };
    /** One after the other: the client may go while a piece is being written. Nothing once it is over. */
    const inTurn = <T>(work: (coming: Restoration) => Promise<T>): Promise<T> =>
      this.#turns.take("restoring", async () => {
        if (!coming) throw new Error("it is over");
        return await work(coming);
      });
    return {
      push: (piece) => inTurn((coming) => coming.push(piece)),
      done: () =>
        inTurn(async (coming) => {
          const { about, key: opened, recovery: words } = await coming.done();
          using key = opened;
          using recovery = words; // opens the restored container's next backup as well
          const signature = about.signature && Buffer.from(about.signature, "base64");
          const certificate = about.certificate && Buffer.from(about.certificate, "base64");
          const c = await this.#create(
            Buffer.from(about.config),
            signature && certificate ? { signature, certificate } : undefined,
            { folder: restoringFolder(base), settle: (owner) => settle(base, owner, key, recovery) },
          );
          this.#record("SSA", "container-import", c);
          await end();
          return c;
        }),
      abort: () =>
        inTurn((coming) => coming.abort().finally(end)).catch((e) =>
          this.#m.log.info(`what was restored: ${chain(e)}`),
        ),
    };
  }

  /** A USB device was pulled out. Whose token it was runs no longer. */
  unplugged(d: UsbDevice): void {
    for (const c of this.#all.values()) {
      if (!isTokenOf(c.config, d) || !isUp(c.state)) continue;
      const freeze = c.config.freeze_without_token;
      const why = `its token ${JSON.stringify(d.serial)} was pulled out`;
      this.#m.log.warn(`${shownName(c.config.name)}: ${why}: ${freeze ? "frozen" : "stopped"}`);
      this.#record("SSA", "token-removed", c);
      this.#tell(c, c.state, why);
      const done = freeze
        ? c.freeze().catch((e) => {
            this.#m.log.warn(chain(e));
            return this.#stopOne(c);
          })
        : this.#stopOne(c);
      done.catch((e) => this.#m.log.error(chain(e)));
    }
  }

  start(known: Known, setup: boolean, pin?: Secret): Promise<void> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      this.#refuseAtEnd();
      if (c.state === "SHUTDOWN")
        throw new Error(`${shownName(c.config.name)} is SHUTDOWN: wait until it has stopped (stop --wait)`);
      if (runs(c)) throw new Error(`${shownName(c.config.name)} is ${c.state} already`);
      const key = pin && (await this.#unsealed(c, pin));
      try {
        await this.#rebind(c);
        await this.#noteVersion(c);
        await modulesLoaded(c.isC0 ? "core" : "guests");
        this.#refuseAtEnd(); // which waits for no token, nor for anything else that has not begun
        if (this.#managed(known) !== c) throw new Error(`${shownName(c.config.name)}: it is another by now`);
      } catch (e) {
        key?.[Symbol.dispose]();
        throw e;
      }
      const what = c.isC0 ? "c0-start" : "container-start";
      try {
        await c.start({ setup, key });
        this.#record("SSA", what, c);
      } catch (e) {
        this.#m.log.error(chain(e));
        this.#record("FSA", what, c, { error: chain(e) });
        this.#tell(c, c.state, chain(e));
        throw e;
      }
    });
  }

  /** An unsigned configuration follows its GuestOS' version. */
  async #noteVersion(c: Managed): Promise<void> {
    const version = c.guestos?.version;
    if (this.#m.device.signed_configs || version === undefined || version === c.config.guestos_version)
      return;
    c.stored = await this.#store.change(c.uuid, (message) => {
      message.guestos_version = version;
    });
    c.reconfigure(c.stored.config);
    await this.#rebind(c);
  }

  explain(known: Known): Promise<string[]> {
    return this.#turns.take(known.uuid, async () => {
      const c = this.#managed(known);
      await this.#rebind(c);
      return c.explain();
    });
  }

  exec(known: Known, request: ExecRequest, client: ExecClient): Session {
    const c = this.#managed(known);
    const supervisor = Supervisor.of(c.uuid);
    if (!c.process) throw new Error(`${shownName(c.config.name)} is ${c.state}: not running`);
    const target = {
      name: shownName(c.config.name),
      pid: c.process.pid,
      pidfd: c.process.pidfd,
      cgroup: childGroupOf({ host: this.#m.host, uuid: c.uuid }),
      uidStart: c.uidStart,
      grant: grantOf(c.config),
      ...(supervisor && { supervisor }),
    };
    return this.#m.exec(target, request, client);
  }

  stats(known: Known): proto.IContainerStats {
    const c = this.#managed(known);
    return containerStats(c.uuid, c.config.name, c.process ? c.group : undefined);
  }

  // --- network and devices --------------------------------------------------------------

  async interfaces(known: Known): Promise<Interfaces> {
    const c = this.#managed(known);
    return c.process ? this.#m.network.interfaces(c.uuid) : { texts: [], table: [] };
  }

  async assignInterface(known: Known, name: string, persistent: boolean): Promise<void> {
    const c = this.#managed(known);
    if (c.process || !persistent) await this.#m.network.assign(c.uuid, name); // else when it starts
    if (!persistent) return;
    await this.#edit(c, (m) => {
      if (!m.net_ifaces.some((i) => i.netif === name))
        m.net_ifaces.push(proto.ContainerPnetConfig.create({ netif: name }));
    });
  }

  async unassignInterface(known: Known, name: string, persistent: boolean): Promise<void> {
    const c = this.#managed(known);
    await this.#m.network.unassign(c.uuid, name);
    if (!persistent) return;
    await this.#edit(c, (m) => {
      m.net_ifaces = m.net_ifaces.filter((i) => i.netif !== name);
    });
  }

  async #edit(c: Managed, change: (m: proto.ContainerConfig) => void): Promise<void> {
    this.#apply(c, await this.#store.change(c.uuid, change));
    await this.#rebind(c);
  }

  /** What each container's configuration wants of devices. */
  *claims(): Iterable<Holder> {
    for (const { stored } of this.#all.values())
      yield {
        uuid: stored.uuid,
        name: shownName(stored.config.name),
        created: stored.created,
        claims: claimsOf(stored.config),
      };
  }

  /** What each container's configuration wants of USB devices; a token is one from the moment that it is configured. */
  *claimants(): Iterable<Claimant> {
    for (const { uuid, config, stored } of this.#all.values()) {
      const next = stored.config.usb_configs.filter((u) => u.type !== proto.ContainerUsbType.GENERIC);
      yield { uuid, name: shownName(config.name), usb_configs: [...config.usb_configs, ...next] };
    }
  }

  async deviceAccess(known: Known, text: string): Promise<void> {
    const c = this.#managed(known);
    const { rule, allow } = parseDeviceAccess(text);
    if (!c.process) throw new Error(`${shownName(c.config.name)} is ${c.state}: not running`);
    if (allow) await hotplug.settle(); // tokens are kept from it before it has anything
    if (allow) devices.allow(c.uuid, rule, { by: "control" });
    else devices.deny(c.uuid, rule);
    this.#m.log.info(
      `${shownName(c.config.name)}: devices: ${allow ? "allowed" : "denied"} ${showRule(rule)}`,
    );
  }

  // --- guest operating systems ------------------------------------------------------------

  guestOses(): readonly GuestOs[] {
    return this.#oses.all();
  }

  /** The root of the container in which a client is that has this id. */
  #rootOf(uid: number): Fd {
    const uuid = this.ofUid(uid);
    const c = uuid === undefined ? undefined : this.#all.get(uuid);
    if (!c) throw new Error("the client is in no container");
    if (c.pid === undefined)
      throw new Error(`${shownName(c.config.name)}, where the client was, does not run`);
    return new Fd(now(openat(AT_FDCWD, `/proc/${c.pid}/root`, O_PATH | O_DIRECTORY)));
  }

  async push(
    source: Uint8Array,
    uid: number,
    signed?: Signature,
    progress?: Progress,
  ): Promise<Installation> {
    const { os, finished } = await this.#oses.push(source, signed, progress, () => this.#rootOf(uid));
    const title = `${os.config.name}-${os.config.version}`;
    return {
      os,
      finished: finished.then(
        async () => {
          this.audit?.record("SSA", "GUESTOS_MGMT", "push-os", undefined, { guestos: title });
          this.#m.log.info(`${title}: installed`);
          await this.#rebindAll();
          await this.#oses.purge();
        },
        (e) => {
          this.audit?.record("FSA", "GUESTOS_MGMT", "push-os", undefined, {
            guestos: title,
            error: chain(e),
          });
          this.#m.log.warn(chain(e));
          throw e;
        },
      ),
    };
  }

  async removeGuestOs(name: string): Promise<void> {
    await this.#oses.remove(name);
    await this.#rebindAll();
  }

  // --- the machine --------------------------------------------------------------------------

  deviceStats(): Promise<proto.IDeviceStats> {
    const { base } = this.#m.host;
    return deviceStats(base, join(base, "containers"));
  }

  async setProvisioned(): Promise<void> {
    await writeAtomic(join(this.#m.host.base, PROVISIONED), "", 0o644);
    this.#provisioned = true;
    this.#m.log.info("the device is provisioned");
  }

  /** core0's end is the machine's end. */
  async reboot(): Promise<void> {
    if (this.#m.host.hosted) throw new Error("in hosted mode the machine is not cmld's to reboot");
    this.#how = "reboot";
    const core0 = this.#all.get(C0);
    if (core0 && isUp(core0.state) && core0.state !== "SHUTDOWN")
      await core0.stop().catch((e) => {
        this.#m.log.warn(chain(e));
        void core0.kill();
      });
    else if (!this.#ending) void this.#everything();
  }

  async wipeDevice(): Promise<void> {
    const { host, log } = this.#m;
    const before = this.#ending;
    this.#ending = true;
    try {
      await Promise.all([...this.#all.values()].map((c) => c.kill()));
      forgetImages(join(host.base, "operatingsystems/"));
      // Keys first: without them the rest is noise.
      for (const folder of ["keys", "tokens"]) await destroyAll(join(host.base, folder));
      for (const folder of ["containers", "operatingsystems", "restoring"])
        await rm(join(host.base, folder), { recursive: true, force: true });
      for (const file of await retrievable(host.logs)) await removeOld(host.logs, file);
    } finally {
      this.#ending = before;
    }
    await this.audit?.wipe();
    this.audit?.record("SSA", "GENERIC", "wipe-device");
    log.info("the device was wiped");
    await this.#oses.load();
    await this.#reload();
    if (!host.hosted) setImmediate(() => this.#m.end("power off")); // after the answer
  }

  // --- logs -----------------------------------------------------------------------------------

  logFiles(): Promise<string[]> {
    return retrievable(this.#m.host.logs);
  }
  removeLog(file: string): Promise<void> {
    return removeOld(this.#m.host.logs, file);
  }
  log(source: LogSource): AsyncIterable<LogPiece> {
    const { logs } = this.#m.host;
    if ("file" in source) return readFrom(join(logs, source.file));
    const name = source.container ? consoleLog(source.container) : LOG_NAME;
    return readLog(logs, name, source);
  }

  info(line: string): void {
    this.#m.log.info(line);
  }
  warn(line: string): void {
    this.#m.log.warn(line);
  }
}

/** A folder, each file overwritten first. */
async function destroyAll(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true, recursive: true }).catch(() => []))
    if (entry.isFile()) await destroy(join(entry.parentPath, entry.name));
  await rm(folder, { recursive: true, force: true });
}

/** What modules/console.ts writes. */
const consoleLog = (c: { readonly uuid: string }): string => `container-${c.uuid}`;

function ended(c: Container): string {
  if (c.why !== undefined) return `, ${c.why}`;
  if (c.exit === undefined) return "";
  if (c.exit.signal === SIGINT) return ", powered off"; // by reboot(2): pid_namespaces(7)
  return c.exit.signal === undefined
    ? `, exit status ${c.exit.status}`
    : `, killed by signal ${c.exit.signal}`;
}
