// The folder containers/: what is known of each container while nothing runs. Per container, all named by its uuid:
//
//   .conf           its configuration, text        .sig .cert   signature, where configurations are signed
//   .uid            index of its range of ids      .created     seconds since 1970
//   <uuid>/         its own images
//
// The .conf makes the container: it is written last and removed last. One bad file costs one container, with a line in
// the log. Nothing here decides whether a container may be changed now; the callers know what runs.

import { existsSync } from "node:fs";
import { mkdir, readdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import * as proto from "../../proto/gen/proto.js";
import { print, TEXT_MAX } from "../lib/text.ts";
import { isUuid, newUuid } from "../lib/uuid.ts";
import { chain } from "../sys/error.ts";
import { readBounded, removeSynced, sweep, writeAtomic } from "../sys/file.ts";
import {
  type ContainerConfig,
  checkContainer,
  type DeviceConfig,
  type Read,
  readContainer,
  shownName,
} from "./config.ts";
import { SIGNATURE_MAX, type Signature, signatureOf, type Trust } from "./images/trust.ts";

/** In a container's folder while it is being created: without its .conf all of it goes. */
export const FILLING = ".filling";

/** Ids in a container's range: as the original. */
export const ID_RANGE = 65536;
/** First host id of range 0, and from range to range; as the original. */
const IDS_START = 100_000;
const IDS_STEP = 100_000;
/** The last range ends below 2^32-1, which is no id (user_namespaces(7)). */
const INDEX_MAX = Math.floor((2 ** 32 - 2 - ID_RANGE - IDS_START) / IDS_STEP);

/** First host id of the range with this index. */
export const uidStart = (index: number): number => IDS_START + IDS_STEP * index;

export interface Stored {
  readonly uuid: string;
  /** As it is written to the file. */
  readonly message: proto.ContainerConfig;
  readonly config: ContainerConfig;
  /** Seconds since 1970. */
  readonly created: number;
  readonly index: number;
}

/** A configuration that was read and is not stored yet. */
export interface Draft extends Read<proto.ContainerConfig, ContainerConfig> {
  readonly source: Uint8Array;
}

/** Ids that somebody else has been given. */
export interface Taken {
  readonly start: number;
  readonly count: number;
}

export interface Surroundings {
  /** …/containers */
  readonly folder: string;
  readonly device: DeviceConfig;
  readonly trust: Pick<Trust, "container">;
  provisioned(): boolean;
  /** A configuration of our own, which nobody has to sign: these very bytes for this container. */
  readonly builtIn?: { readonly uuid: string; readonly source: Uint8Array };
  log(line: string): void;
  /** Indices of containers that run, whatever has become of their files. */
  inUse?(): Iterable<number>;
  /** Hosted mode: ids of users of the host, see subordinateIds(). */
  readonly taken?: readonly Taken[];
}

/** What /etc/subuid and /etc/subgid give away (subuid(5)). */
export async function subordinateIds(files = ["/etc/subuid", "/etc/subgid"]): Promise<Taken[]> {
  const taken: Taken[] = [];
  for (const file of files) {
    const text = Buffer.from((await readBounded(file, TEXT_MAX)) ?? []).toString();
    for (const [, start, count] of text.matchAll(/^[^:\n#]+:(\d{1,10}):(\d{1,10})\s*$/gm))
      taken.push({ start: Number(start), count: Number(count) });
  }
  return taken;
}

export class Containers {
  #all: ReadonlyMap<string, Stored> = new Map();
  readonly #around: Surroundings;
  /** Indices of containers that exist and could not be loaded. */
  #reserved: ReadonlySet<number> = new Set();
  #last: Promise<unknown> = Promise.resolve();
  #notLoaded: readonly string[] = [];

  constructor(around: Surroundings) {
    this.#around = around;
  }

  get(uuid: string): Stored | undefined {
    return this.#all.get(uuid);
  }
  /** In the order of their creation. */
  all(): Stored[] {
    return [...this.#all.values()].sort((a, b) => a.created - b.created || (a.uuid < b.uuid ? -1 : 1));
  }

  /** What the last load() could not take, a line each, as the log has it. */
  get notLoaded(): readonly string[] {
    return this.#notLoaded;
  }

  /** Read the folder anew. Resolves with what is there now. */
  load(): Promise<Stored[]> {
    return this.#turn(async () => {
      const { folder, log } = this.#around;
      const notLoaded: string[] = [];
      const leave = (file: string, e: unknown): void => {
        log(`${join(folder, file)}: not loaded: ${chain(e)}`);
        notLoaded.push(`${file}: not loaded: ${chain(e)}`);
      };
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await sweep(folder);
      const found: { uuid: string; read: Draft; created: number; index: number | undefined }[] = [];
      const reserved = new Set<number>();
      const files = (await readdir(folder)).sort();
      await this.#clear(files, reserved);
      for (const file of files) {
        if (!file.endsWith(".conf")) continue;
        const uuid = file.slice(0, -".conf".length);
        try {
          if (!isUuid(uuid)) throw new Error("the name is no uuid in lower case");
          const source = await readBounded(join(folder, file), TEXT_MAX);
          if (!source) continue; // removed meanwhile
          if (!this.#isBuiltIn(uuid, source))
            await this.#around.trust.container(source, await signatureOf(folder, uuid));
          const read = { source, ...readContainer(source, this.#rules(true)) };
          found.push({ uuid, read, created: await this.#created(uuid), index: await this.#index(uuid) });
        } catch (e) {
          leave(file, e);
          if (isUuid(uuid)) await this.#reserve(uuid, reserved);
        }
      }
      this.#reserved = reserved;
      // Who came first keeps its ids when two have the same.
      found.sort((a, b) => a.created - b.created || (a.uuid < b.uuid ? -1 : 1));
      const used = new Map<number, string>();
      const without: typeof found = [];
      for (const one of found) {
        const first = one.index === undefined ? undefined : used.get(one.index);
        if (one.index === undefined || first !== undefined) {
          if (first !== undefined)
            log(`${one.uuid}: ids of ${one.uuid}.uid (${one.index}) belong to ${first}; it gets others`);
          without.push(one);
        } else used.set(one.index, one.uuid);
      }
      for (const one of without) {
        try {
          one.index = this.#free(used);
          used.set(one.index, one.uuid);
          await this.#writeIndex(one.uuid, one.index);
        } catch (e) {
          leave(`${one.uuid}.conf`, e);
          one.index = undefined;
        }
      }
      const loaded = new Map<string, Stored>();
      for (const { uuid, read, created, index } of found) {
        if (index === undefined) continue;
        if (this.#overlaps(index))
          log(
            `${uuid}: its ids from ${uidStart(index)} on are also given away in /etc/subuid or /etc/subgid`,
          );
        let stored: Stored = { uuid, message: read.message, config: read.config, created, index };
        try {
          await mkdir(join(folder, uuid), { recursive: true, mode: 0o755 });
          if (!this.#around.device.signed_configs) stored = await this.#canonical(stored, read.source);
        } catch (e) {
          log(`${uuid}: ${chain(e)}`);
        }
        loaded.set(uuid, stored);
      }
      this.#all = loaded;
      this.#notLoaded = notLoaded;
      return this.all();
    });
  }

  /** Read and check what a client sent, whose signature was judged. Nothing is stored. `message` may still be changed
   * (guestos_version). */
  draft(source: Uint8Array): Draft {
    return { source, ...readContainer(source, this.#rules(false)) };
  }

  /** Store a new container. Either all its files are there afterwards, or none. `fill`: its folder gets what it begins with, and
   * FILLING as long as that alone may be there. */
  create(draft: Draft, signature?: Signature, uuid = newUuid(), fill?: () => Promise<void>): Promise<Stored> {
    return this.#turn(async () => {
      const { folder } = this.#around;
      if (this.#all.has(uuid)) throw new Error(`container ${uuid} exists already`);
      // core0's: its owner may want to know why, and has data there.
      if ((await readBounded(join(folder, `${uuid}.conf`), TEXT_MAX)) !== undefined)
        throw new Error(`${uuid}.conf is there and was refused`);
      const created = Math.floor(Date.now() / 1000);
      const index = this.#free(new Map([...this.#all.values()].map((s) => [s.index, s.uuid])));
      const stored = { uuid, ...this.#finished(draft), created, index };
      try {
        await mkdir(join(folder, uuid), { recursive: true, mode: 0o755 });
        await this.#writeIndex(uuid, index);
        await this.#writeCreated(uuid, created);
        await fill?.();
        await this.#writeConfig(stored, draft, signature);
        if (fill) await removeSynced(join(folder, uuid), [FILLING]);
      } catch (cause) {
        await this.#removeFiles(uuid).catch(() => {});
        throw new Error(`store container ${shownName(stored.config.name)}`, { cause });
      }
      this.#keep(stored);
      return stored;
    });
  }

  /** Replace the configuration. */
  update(uuid: string, draft: Draft, signature?: Signature): Promise<Stored> {
    return this.#turn(async () => {
      const old = this.#need(uuid);
      const stored = { ...old, ...this.#finished(draft, old.message) };
      await this.#writeConfig(stored, draft, signature);
      this.#keep(stored);
      return stored;
    });
  }

  /** Change the stored configuration itself (an interface assigned for good). Refused where they are signed. */
  change(uuid: string, edit: (message: proto.ContainerConfig) => void): Promise<Stored> {
    return this.#turn(async () => {
      const old = this.#need(uuid);
      if (this.#around.device.signed_configs) throw new Error("signed configurations are not changed here");
      const message = proto.ContainerConfig.decode(proto.ContainerConfig.encode(old.message));
      edit(message);
      const stored = { ...old, message, config: checkContainer(message, this.#rules(true)) };
      await writeAtomic(join(this.#around.folder, `${uuid}.conf`), print(proto.ContainerConfig, message));
      this.#keep(stored);
      return stored;
    });
  }

  /** Remove the container and every file of it. A power cut in between leaves it listed, to be removed again. */
  remove(uuid: string): Promise<void> {
    return this.#turn(async () => {
      this.#need(uuid);
      await this.#removeFiles(uuid);
      this.#all = new Map([...this.#all].filter(([other]) => other !== uuid));
    });
  }

  /** What has no .conf was left by a cmld that was killed, or its .conf was taken away: removed, unless it has data. */
  async #clear(files: readonly string[], reserved: Set<number>): Promise<void> {
    const { folder, log } = this.#around;
    const there = new Set(files);
    const uuids = new Set(files.map((file) => file.replace(/\.(uid|created|sig|cert)$/, "")));
    for (const uuid of uuids) {
      if (!isUuid(uuid) || there.has(`${uuid}.conf`)) continue;
      try {
        if (there.has(uuid) && !existsSync(join(folder, uuid, FILLING))) await rmdir(join(folder, uuid));
        await this.#removeFiles(uuid);
      } catch (e) {
        log(`${join(folder, uuid)}: there is no ${uuid}.conf; what else there is stays: ${chain(e)}`);
        await this.#reserve(uuid, reserved);
      }
    }
  }

  async #reserve(uuid: string, reserved: Set<number>): Promise<void> {
    const index = await this.#index(uuid).catch(() => undefined);
    if (index !== undefined) reserved.add(index);
  }

  // --- files -----------------------------------------------------------------------

  /** One change at a time: indices and files are looked at and then written. */
  #turn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => {});
    return turn;
  }

  #keep(stored: Stored): void {
    this.#all = new Map(this.#all).set(stored.uuid, stored);
  }

  #need(uuid: string): Stored {
    const stored = this.#all.get(uuid);
    if (!stored) throw new Error(`no container ${uuid}`);
    return stored;
  }

  #rules(loaded: boolean) {
    return { device: this.#around.device, provisioned: this.#around.provisioned(), loaded };
  }

  /** What is kept of a draft: a veth gets the MAC address it will always have, and keeps the one it had. */
  #finished(draft: Draft, old?: proto.ContainerConfig): Read<proto.ContainerConfig, ContainerConfig> {
    const { message } = draft;
    if (!this.#around.device.signed_configs) {
      for (const v of message.vnet_configs)
        if (!v.if_mac)
          v.if_mac = old?.vnet_configs.find((o) => o.if_name === v.if_name)?.if_mac || randomMac();
    }
    return { message, config: checkContainer(message, this.#rules(true)) };
  }

  async #writeConfig(stored: Stored, draft: Draft, signed: Signature | undefined): Promise<void> {
    const at = (suffix: string) => join(this.#around.folder, stored.uuid + suffix);
    if (!this.#around.device.signed_configs) {
      await removeSynced(this.#around.folder, [`${stored.uuid}.sig`, `${stored.uuid}.cert`]);
      await writeAtomic(at(".conf"), print(proto.ContainerConfig, stored.message));
      return;
    }
    if (!signed && this.#isBuiltIn(stored.uuid, draft.source)) {
      await writeAtomic(at(".conf"), draft.source);
      return;
    }
    if (!signed) throw new Error("configurations must be signed here");
    for (const bytes of [signed.signature, signed.certificate])
      if (bytes.length > SIGNATURE_MAX)
        throw new Error(`signature of ${bytes.length} bytes, at most ${SIGNATURE_MAX}`);
    await writeAtomic(at(".sig"), signed.signature);
    await writeAtomic(at(".cert"), signed.certificate);
    await writeAtomic(at(".conf"), draft.source);
  }

  #isBuiltIn(uuid: string, source: Uint8Array): boolean {
    const { builtIn } = this.#around;
    return builtIn?.uuid === uuid && Buffer.from(builtIn.source).equals(source);
  }

  async #canonical(stored: Stored, source: Uint8Array): Promise<Stored> {
    const finished = { ...stored, ...this.#finished({ ...stored, source }) };
    const text = print(proto.ContainerConfig, finished.message);
    if (!Buffer.from(text).equals(source))
      await writeAtomic(join(this.#around.folder, `${stored.uuid}.conf`), text);
    return finished;
  }

  #removeFiles(uuid: string): Promise<void> {
    return removeSynced(
      this.#around.folder,
      ["", ".uid", ".created", ".sig", ".cert", ".conf"].map((suffix) => uuid + suffix),
    );
  }

  /** Seconds since 1970, int64 in the machine's order, which is little-endian on every machine we run on. */
  async #created(uuid: string): Promise<number> {
    const bytes = await readBounded(join(this.#around.folder, `${uuid}.created`), 4096);
    if (bytes?.length === 8) {
      const seconds = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
      if (seconds >= 0 && Number.isSafeInteger(seconds)) return seconds;
    }
    const created = Math.floor(Date.now() / 1000);
    this.#around.log(`${uuid}.created: ${bytes ? "unreadable" : "missing"}: made again`);
    await this.#writeCreated(uuid, created);
    return created;
  }

  #writeCreated(uuid: string, seconds: number): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigInt64(0, BigInt(seconds), true);
    return writeAtomic(join(this.#around.folder, `${uuid}.created`), bytes);
  }

  /** int32. */
  async #index(uuid: string): Promise<number | undefined> {
    const bytes = await readBounded(join(this.#around.folder, `${uuid}.uid`), 4096);
    if (!bytes) return undefined;
    const index = bytes.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset).getInt32(0, true) : -1;
    if (index >= 0 && index <= INDEX_MAX) return index;
    this.#around.log(`${uuid}.uid: unreadable: it gets other ids`);
    return undefined;
  }

  #writeIndex(uuid: string, index: number): Promise<void> {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setInt32(0, index, true);
    return writeAtomic(join(this.#around.folder, `${uuid}.uid`), bytes);
  }

  #overlaps(index: number): boolean {
    const start = uidStart(index);
    return (this.#around.taken ?? []).some((t) => t.start < start + ID_RANGE && start < t.start + t.count);
  }

  #free(used: ReadonlyMap<number, string>): number {
    const inUse = new Set(this.#around.inUse?.());
    for (let index = 0; index <= INDEX_MAX; index++)
      if (!used.has(index) && !this.#reserved.has(index) && !inUse.has(index) && !this.#overlaps(index))
        return index;
    throw new Error("no range of ids is free");
  }
}

/** As drawn; whoever makes the link clears the multicast bit and sets the local one. */
export const randomMac = (): string =>
  [...crypto.getRandomValues(new Uint8Array(6))].map((b) => b.toString(16).padStart(2, "0")).join(":");
