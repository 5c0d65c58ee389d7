// Devices that come and go while containers run. The kernel says so (uevents); here it is decided whose a device is,
// and done what follows: a network card changes its namespace (network/router.ts), a device is allowed and gets its node
// (modules/devices.ts), a medium is mounted (media.ts), and the container is told in the kernel's words.
//
// Everything is worked off one after the other, beside the event loop: events, containers that come up, containers that
// end. What each of them does is the same: look whose the devices are now, and change what is different. When the kernel
// had to drop events, and when cmld starts, we look for ourselves.
import { open } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { openIn } from "../../run/netns.ts";
import { chain, ENOENT, ESRCH, isErrno } from "../../sys/error.ts";
import type { Fd } from "../../sys/fd.ts";
import { attribute, deviceAt, type Numbered, numbered, numberOf } from "../../sys/sysfs.ts";
import {
  printUevent,
  senderSocket,
  sendUevent,
  type Uevent,
  ueventSocket,
  uevents,
} from "../../sys/uevent.ts";
import type { Process, Start } from "../module.ts";
import {
  accessFor,
  allow,
  appeared,
  hotplugged,
  refreshAll,
  reserve,
  rulesOf,
  vanished,
  withdraw,
} from "../modules/devices.ts";
import { arrived, departed, lookAround } from "../network/router.ts";
import { eject, type Host, insert, placeOf } from "./media.ts";
import { isNodePath } from "./nodes.ts";
import { accessOf, DEFAULT, ruleOf, showRule } from "./rules.ts";
import { type Claimant, type UsbDevice, usbDevice, whose } from "./usb.ts";

/** Events that wait: more are answered by one look around. */
const WAITING_MAX = 4096;
/** Devices that are followed: the kernel has 16 minors of a bus for each of 127 devices. */
const USB_MAX = 4096;
/** How long a device may take to say its serial number. */
const SERIAL_MS = 10_000;

/** A container that is up. */
interface Member {
  readonly uuid: string;
  readonly start: Start;
  readonly host: Host;
  /** It has been told what was there when it came up. */
  told: boolean;
  /** Events go in here; made when there is one. */
  sender?: Fd;
}

/** A USB device, and what hangs off it: disks, terminals, keyboards. */
interface Usb {
  readonly device: UsbDevice;
  /** Devices with a number, by "c 189:3". */
  readonly nodes: Map<string, Numbered & { readonly path: string }>;
  /** Who has it, and whether nobody else may. */
  to: readonly string[];
  closed: boolean;
  /** Who wanted it last and could not have it: said once. */
  refused: string;
  readonly reserved: Map<string, Disposable>;
}

const key = (d: Numbered): string => `${d.kind} ${d.major}:${d.minor}`;
const beneath = (path: string, above: string): boolean => path === above || path.startsWith(`${above}/`);

class Hotplug {
  readonly #members = new Map<string, Member>();
  /** By path. */
  readonly #usb = new Map<string, Usb>();
  /** USB devices are followed: somebody could get at them. */
  #followed = false;
  #containers: () => Iterable<Claimant> = () => [];
  #log: (line: string) => void = () => {};
  #gone: (d: UsbDevice) => void = () => {};
  #end: DisposableStack | undefined;
  #turn: Promise<unknown> = Promise.resolve();
  /** Media are slow: they have a queue of their own. */
  #media: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  /** Grows when events were lost: those that still wait say nothing new. */
  #generation = 0;

  /** Listen from now on, and look at what is there already. `containers`: all that exist. `gone` hears of every USB
   * device that is unplugged while a container has a claim on one. */
  begin(
    containers: () => Iterable<Claimant>,
    log: (line: string) => void,
    gone: (d: UsbDevice) => void = () => {},
  ): void {
    this.#containers = containers;
    this.#log = log;
    this.#gone = gone;
    this.#end = new DisposableStack();
    const socket = this.#end.adopt(ueventSocket(), (fd) => fd.close());
    const look = (): void => {
      this.#generation++;
      this.#waiting = 0;
      void this.#inTurn(() => this.#lookAround());
    };
    const heard = (e: Uevent): void => {
      if (this.#waiting >= WAITING_MAX) {
        look();
        return;
      }
      this.#waiting++;
      const generation = this.#generation;
      void this.#inTurn(async () => {
        if (generation !== this.#generation) return;
        this.#waiting--;
        await this.#happened(e);
      });
    };
    this.#end.use(uevents(socket, heard, look));
    look();
  }

  /** For tests: as if there had never been a begin(). */
  end(): void {
    this.#end?.[Symbol.dispose]();
    this.#end = undefined;
    for (const usb of this.#usb.values()) for (const r of usb.reserved.values()) r[Symbol.dispose]();
    this.#usb.clear();
    this.#followed = false;
  }

  /** Resolves when all that was heard so far has been done. */
  async idle(): Promise<void> {
    for (let at: unknown; at !== this.#turn; await at) at = this.#turn;
    for (let at: unknown; at !== this.#media; await at) at = this.#media;
  }

  /** Nothing in here throws: what goes wrong is said. */
  #inTurn(work: () => void | Promise<void>): Promise<void> {
    const mine = this.#turn.then(work).catch((e) => this.#log(`hot-plug: ${chain(e)}`));
    this.#turn = mine;
    return mine;
  }

  // --- containers ----------------------------------------------------------------------

  /** A container comes up, and its init does not run yet: resolves when it has what is there for it, and what is to be
   * kept from it is. Also one of an earlier cmld. */
  async join(s: Start, p: Process, adopted: boolean): Promise<void> {
    const { uuid, uidStart } = s;
    const host: Host = { uidStart, pid: p.pid, pidfd: p.pidfd, stage: join(s.host.run, "root") };
    const member: Member = { uuid, start: s, host, told: adopted };
    this.#members.set(uuid, member);
    s.owned.use({ [Symbol.dispose]: () => this.#leave(member) });
    if (!this.#end) return; // begin() comes to it
    const { allow_dev, assign_dev, usb_configs } = s.config;
    if (allow_dev.length > 0 || assign_dev.length > 0 || usb_configs.length > 0) await this.settle();
  }

  #leave(member: Member): void {
    member.sender?.close();
    if (this.#members.get(member.uuid) !== member) return;
    this.#members.delete(member.uuid);
    if (![...this.#usb.values()].some((u) => u.to.includes(member.uuid))) return;
    void this.#inTurn(async () => {
      for (const usb of this.#usb.values()) {
        usb.to = usb.to.filter((uuid) => uuid !== member.uuid);
        await this.#settle(usb);
      }
    });
  }

  /** Configurations, or what containers may use, have changed. */
  settle(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#followed) await this.#follow();
      for (const usb of this.#usb.values()) await this.#settle(usb);
    });
  }

  /** As settle(), where it makes a difference. */
  async reconsider(): Promise<void> {
    if (this.#followed) await this.settle();
  }

  /** The container has booted: who listens in it now is told what it has. */
  running(uuid: string): void {
    const member = this.#members.get(uuid);
    if (!member || member.told) return;
    void this.#inTurn(async () => {
      member.told = true;
      if (!hasMore(uuid)) return;
      for (const n of await numbered()) {
        if (!this.#mayUse(member, n)) continue;
        const event = await deviceAt(n.path);
        if (event) this.#tell(member, event);
      }
    });
  }

  /** Beyond what every container has. */
  #mayUse(member: Member, d: Numbered): boolean {
    return accessOf(DEFAULT, d) === 0 && accessFor(member.uuid, d) !== 0;
  }

  // --- events ---------------------------------------------------------------------------

  async #happened(e: Uevent): Promise<void> {
    const { values } = e;
    const synthetic = values.get("SYNTH_UUID");
    const number = numberOf(e);
    switch (e.action) {
      case "add":
        if (values.get("SUBSYSTEM") === "net" && values.has("IFINDEX"))
          await arrived(Number(values.get("IFINDEX")), e.path.startsWith("/devices/virtual/net/"));
        else if (synthetic !== undefined) this.#tellOwners(e, number);
        else if (number) await this.#appears(e, number);
        else this.#tellOwners(e, number);
        return;
      case "remove":
      case "unbind":
        // A card that is in a container's namespace says there that it goes; its device says so here.
        await departed(basename(e.path));
        if (e.action === "remove" && number) this.#vanishes(e, number);
        else this.#tellOwners(e, number);
        return;
      default:
        this.#tellOwners(e, number);
        if (e.action === "change" && values.get("DISK_MEDIA_CHANGE") === "1" && number)
          for (const member of this.#members.values())
            if (this.#mayUse(member, number)) {
              this.#eject(member, e);
              this.#insert(member, e, number);
            }
    }
  }

  async #appears(e: Uevent, number: Numbered): Promise<void> {
    if (this.#followed) {
      if (e.values.get("DEVTYPE") === "usb_device") await this.#plug(e);
      const usb = this.#nearest(e.path);
      if (usb) {
        usb.nodes.set(key(number), { ...number, path: e.path });
        await this.#settle(usb, false);
      }
    }
    for (const uuid of appeared(number)) {
      const member = this.#members.get(uuid);
      if (!member) continue;
      this.#tell(member, e);
      this.#insert(member, e, number);
    }
  }

  #vanishes(e: Uevent, number: Numbered): void {
    const had = vanished(number);
    const usb = this.#nearest(e.path);
    for (const uuid of had) {
      const member = this.#members.get(uuid);
      if (!member) continue;
      this.#tell(member, e);
      this.#eject(member, e);
    }
    if (!usb) return;
    this.#release(usb, number);
    if (e.path === usb.device.path) this.#unplug(usb);
  }

  /** Those whose device, or whose USB device's part, it speaks of. */
  #tellOwners(e: Uevent, number: Numbered | undefined): void {
    const synthetic = e.values.get("SYNTH_UUID");
    const meant = synthetic === undefined ? e : { ...e, values: new Map(e.values).set("SYNTH_UUID", "0") };
    const usb = number ? undefined : this.#nearest(e.path);
    for (const member of this.#members.values()) {
      const owns = number ? this.#mayUse(member, number) : (usb?.to.includes(member.uuid) ?? false);
      if (owns && (synthetic === undefined || synthetic === "0" || synthetic === member.uuid))
        this.#tell(member, meant);
    }
  }

  #tell(member: Member, e: Uevent): void {
    if (!member.told || !member.start.config.netns) return;
    const bytes = printUevent(e);
    if (!bytes) return;
    try {
      member.sender ??= openIn(member.host.pidfd, [senderSocket])[0]!;
      sendUevent(member.sender, bytes, member.host.uidStart);
    } catch (e) {
      if (isErrno(e, ESRCH)) return; // it ends
      member.start.log(`device event: ${chain(e)}`);
    }
  }

  // --- USB ------------------------------------------------------------------------------

  /** The USB device that `path` is, or is a part of; a hub is not meant by what is plugged into it. */
  #nearest(path: string): Usb | undefined {
    let found: Usb | undefined;
    for (const usb of this.#usb.values())
      if (beneath(path, usb.device.path) && usb.device.path.length > (found?.device.path.length ?? 0))
        found = usb;
    return found;
  }

  async #plug(e: Uevent): Promise<void> {
    const known = this.#usb.get(e.path);
    if (known) this.#unplug(known);
    if (this.#usb.size >= USB_MAX) throw new Error(`${e.path}: more than ${USB_MAX} USB devices`);
    const serial = await soon(attribute(e.path, "serial"), SERIAL_MS);
    // Another may have been plugged in there since: then that one's event is to come.
    const still = await deviceAt(e.path);
    if (still?.values.get("DEVNAME") !== e.values.get("DEVNAME")) return;
    const device = usbDevice(e, serial);
    if (device)
      this.#usb.set(e.path, {
        device,
        nodes: new Map(),
        to: [],
        closed: false,
        refused: "",
        reserved: new Map(),
      });
  }

  #unplug(usb: Usb): void {
    for (const number of [...usb.nodes.values()]) this.#release(usb, number);
    this.#usb.delete(usb.device.path);
    this.#gone(usb.device);
    for (const uuid of usb.to) this.#members.get(uuid)?.start.log(`${shown(usb.device)} has gone`);
  }

  /** Nothing speaks of this device any more. */
  #release(usb: Usb, number: Numbered): void {
    usb.nodes.delete(key(number));
    for (const uuid of usb.to) withdraw(uuid, ruleOf(number));
    usb.reserved.get(key(number))?.[Symbol.dispose]();
    usb.reserved.delete(key(number));
  }

  /** Give it to whom it belongs now, and to nobody else. */
  async #settle(usb: Usb, tell = true): Promise<void> {
    const held = (uuid: string): boolean =>
      usb.to.includes(uuid) ||
      hotplugged(uuid).some((r) => [...usb.nodes.values()].some((n) => showRule(r) === showRule(ruleOf(n))));
    const up = [...this.#members.keys()];
    const verdict = whose(usb.device, this.#containers(), [
      ...up.filter(held),
      ...up.filter((uuid) => !held(uuid)),
    ]);
    const before = usb.to;
    usb.to = verdict.to;
    for (const uuid of before) {
      if (verdict.to.includes(uuid)) continue;
      for (const n of usb.nodes.values()) await this.#takeAway(uuid, n);
    }
    const owner = verdict.to[0];
    for (const n of usb.nodes.values()) {
      // Closed before it is given, so that nobody else has it in between.
      const old = usb.reserved.get(key(n));
      if (verdict.closed && (!old || !usb.closed || owner !== before[0]))
        usb.reserved.set(key(n), reserve(ruleOf(n), owner));
      else if (!verdict.closed) usb.reserved.delete(key(n));
      if (old && usb.reserved.get(key(n)) !== old) old[Symbol.dispose]();
      for (const uuid of verdict.to) await this.#give(uuid, usb, n, tell);
    }
    usb.closed = verdict.closed;
    for (const uuid of verdict.to)
      if (!before.includes(uuid)) this.#members.get(uuid)?.start.log(`${shown(usb.device)} is there`);
    const refused = verdict.refused.map(([uuid]) => uuid).join();
    if (refused !== usb.refused)
      for (const [uuid, why] of verdict.refused)
        this.#members.get(uuid)?.start.log(`${shown(usb.device)}: ${why}`);
    usb.refused = refused;
  }

  async #give(uuid: string, usb: Usb, n: Numbered & { path: string }, tell: boolean): Promise<void> {
    const member = this.#members.get(uuid);
    const rule = ruleOf(n);
    if (!member || hotplugged(uuid).some((r) => showRule(r) === showRule(rule))) return;
    try {
      allow(uuid, rule, { by: "hotplug" });
    } catch (e) {
      member.start.log(`${shown(usb.device)}: ${chain(e)}`);
      return;
    }
    if (!tell) return;
    const event = await deviceAt(n.path);
    if (!event) return;
    this.#tell(member, event);
    this.#insert(member, event, n);
  }

  async #takeAway(uuid: string, n: Numbered & { path: string }): Promise<void> {
    withdraw(uuid, ruleOf(n));
    const member = this.#members.get(uuid);
    if (!member || this.#mayUse(member, n)) return;
    const event = await deviceAt(n.path);
    if (event) this.#tell(member, { ...event, action: "remove" });
    if (event) this.#eject(member, event);
  }

  // --- media ------------------------------------------------------------------------------

  #slowly(member: Member, work: () => Promise<void>): void {
    this.#media = this.#media.then(work).catch((e) => {
      if (this.#members.get(member.uuid) === member) member.start.log(`media: ${chain(e)}`);
    });
  }

  #insert(member: Member, e: Uevent, number: Numbered): void {
    const node = e.values.get("DEVNAME") ?? "";
    if (number.kind !== "b" || !isNodePath(node)) return;
    this.#slowly(member, async () => {
      const state = await stateOf(e);
      if (!state || this.#members.get(member.uuid) !== member || !this.#mayUse(member, number)) return;
      const type = await insert({ ...number, node, sequence: state.sequence }, member.host, state.readOnly);
      if (type) member.start.log(`media: ${node} (${type}) is on /media/external/${placeOf({ node })}`);
    });
  }

  #eject(member: Member, e: Uevent): void {
    const node = e.values.get("DEVNAME") ?? "";
    if (e.values.get("SUBSYSTEM") !== "block" || !isNodePath(node)) return;
    this.#slowly(member, () => eject({ node }, member.host));
  }

  // --- looking for ourselves -----------------------------------------------------------------

  async #lookAround(): Promise<void> {
    await lookAround();
    const asked = [...this.#containers()].some((c) => c.usb_configs.length > 0);
    if (!this.#followed && !asked && ![...this.#members.keys()].some(hasMore)) return;
    await this.#follow();
    refreshAll();
    for (const usb of this.#usb.values()) await this.#settle(usb);
    // What an earlier cmld granted, or we did, of devices that are there no more.
    const there = new Set([...this.#usb.values()].flatMap((u) => [...u.nodes.keys()]));
    for (const member of this.#members.values()) {
      for (const rule of hotplugged(member.uuid))
        if (!there.has(showRule(rule).replace(/ \w+$/, ""))) withdraw(member.uuid, rule);
      this.#slowly(member, () => ejectGone(member.host));
    }
  }

  /** Find out about all USB devices, and forget those that are not there any more. */
  async #follow(): Promise<void> {
    this.#followed = true;
    const all = (await numbered()).filter((n) => /\/usb\d+(\/|$)/.test(n.path));
    const here = new Map(all.map((n) => [n.path, n]));
    for (const usb of [...this.#usb.values()]) {
      const own = here.get(usb.device.path);
      if (!own || !usb.nodes.has(key(own))) this.#unplug(usb);
      else for (const n of [...usb.nodes.values()]) if (!here.has(n.path)) this.#release(usb, n);
    }
    all.sort((a, b) => a.path.length - b.path.length); // a hub before what is plugged into it
    for (const n of all) {
      if (this.#usb.has(n.path)) continue;
      const event = await deviceAt(n.path);
      if (event?.values.get("DEVTYPE") === "usb_device") await this.#plug(event);
    }
    for (const n of all) this.#nearest(n.path)?.nodes.set(key(n), n);
  }
}

/** It may use something beyond what every container may. */
const hasMore = (uuid: string): boolean => rulesOf(uuid).length > 0;

/** A serial number for the log: it is the device's own word. */
const shown = (d: UsbDevice): string =>
  `USB device ${d.id} ${JSON.stringify(d.serial.replace(/[^ -~]/g, "?").slice(0, 64))} at ${d.port}`;

async function soon<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, ms, undefined);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What a disk or partition is now, if it is a medium: something that people plug in. */
async function stateOf(e: Uevent): Promise<{ sequence: string; readOnly: boolean } | undefined> {
  const still = await deviceAt(e.path);
  const same = (name: string): boolean => still?.values.get(name) === e.values.get(name);
  if (!still || !["MAJOR", "MINOR", "DEVNAME"].every(same)) return undefined;
  const disk = still.values.get("DEVTYPE") === "partition" ? dirname(e.path) : e.path;
  const plugged = /\/(usb\d+|mmc_host)\//.test(e.path) || (await attribute(disk, "removable")) === "1";
  if (!plugged) return undefined;
  return {
    sequence: (await attribute(disk, "diskseq")) ?? "",
    readOnly: (await attribute(e.path, "ro")) === "1",
  };
}

/** Bytes of a container's list of mounts that are looked at. */
const MOUNTS_MAX = 1 << 20;

/** Unmount media whose device is not there any more. */
async function ejectGone(host: Host): Promise<void> {
  const text = await mountinfo(host.pid);
  for (const [, number, place] of text.matchAll(/^\d+ \d+ (\d+:\d+) \S+ \/media\/external\/([^/\s\\]+) /gm))
    if ((await attribute(`/dev/block/${number}`, "dev")) === undefined)
      await eject({ node: place!.replaceAll("!", "/") }, host);
}

async function mountinfo(pid: number): Promise<string> {
  try {
    await using file = await open(`/proc/${pid}/mountinfo`);
    const bytes = Buffer.alloc(MOUNTS_MAX);
    let at = 0;
    for (;;) {
      const { bytesRead } = await file.read(bytes, at, bytes.length - at);
      at += bytesRead;
      if (bytesRead === 0 || at === bytes.length) return bytes.toString("utf8", 0, at);
    }
  } catch (e) {
    if (isErrno(e, ENOENT)) return ""; // it ends
    throw e;
  }
}

/** One for the whole daemon, as the devices are. */
export const hotplug = new Hotplug();
