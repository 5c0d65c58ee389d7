// The audit trail of one container, or of the CML: records in order, kept until whoever receives them acknowledges them.
//
// `<uuid>.log` is the original's file: records as protobuf text, each followed by a line of five dashes. Ours is only
// ever appended to. The last two entries of a record's `meta` are its number and a hash over the record before it and
// its own text, so that what a power cut leaves of the last write is told from a record, and a reader sees a gap.
// `<uuid>.ack` says up to which number records were acknowledged; those are cut off when they have become a quarter of
// the file, not one by one.
//
// A record counts when append() has resolved: then it is on the disk, and everything before it. Records that come while
// a write is under way share the next one (one write, one fdatasync). What does not fit is dropped, never what is there.
import { constants, type FileHandle, open, rename } from "node:fs/promises";
import { join } from "node:path";
import { AuditRecord, type IAuditRecord } from "../../../proto/gen/proto.js";
import { BadText, parse, print } from "../../lib/text.ts";
import { chain, ENOENT, isErrno } from "../../sys/error.ts";
import { readBounded, removeSynced, synced, writeAtomic } from "../../sys/file.ts";

/** Bytes of one record with everything around it: the kernel's longest has 8970, and octal escapes make four of one. */
export const RECORD_MAX = 64 << 10;
/** Bytes of all values of one record together, before they are escaped. */
const VALUES_MAX = 12 << 10;
const [KEY_MAX, TYPE_MAX, META_MAX] = [64, 128, 48];
/** Bytes that are written and synced at once. */
const BATCH = 1 << 20;
const PIECE = 256 << 10;
/** Acknowledged bytes that are worth rewriting the file for. */
const WORTH = 64 << 10;
/** Part of the limit from which a warning is due, and below which it may come again. */
const [FULL_AT, EASED_AT] = [0.75, 0.5];

/** Readers whose places are remembered. */
const PLACES = 16;

const DASHES = "-----\n";
const END = Buffer.from(`\n${DASHES}`);
const ACK_MAX = 128;

/** An event on its way into the trail. Times are seconds since 1970, as the original's. */
export interface Event {
  readonly type: string;
  readonly timestamp: number;
  readonly subject?: string;
  readonly meta?: readonly (readonly [key: string, value: string])[];
  /** Caused by the container itself: may not take the last quarter of the space. */
  readonly foreign?: boolean;
}

export interface Stored {
  readonly sequence: number;
  readonly record: AuditRecord;
}

interface Waiting {
  readonly text: string;
  readonly bytes: number;
  readonly done: (kept: boolean) => void;
}

/** "SSA.CMLD.GENERIC.corrupt-record": for bytes in the file that are none. */
const CORRUPT = "FSA.CMLD.GENERIC.corrupt-record";
const LOST = "FSA.CMLD.GENERIC.records-lost";

const seal = (before: string, text: string): string =>
  new Bun.CryptoHasher("sha256").update(before).update("\n").update(text).digest("hex").slice(0, 32);

const entry = (key: string, value: string): string => `meta {\n  key: "${key}"\n  value: "${value}"\n}\n`;
const SEALED =
  /meta \{\n {2}key: "sequence"\n {2}value: "([0-9]{1,15})"\n\}\nmeta \{\n {2}key: "chain"\n {2}value: "([0-9a-f]{32})"\n\}\n$/;
const SEAL_MAX =
  entry("sequence", "0".repeat(15)).length + entry("chain", "0".repeat(32)).length + DASHES.length;
const CHAIN_LENGTH = entry("chain", "0".repeat(32)).length;

/** A record's text without number and hash; whatever comes, it fits. */
export function bounded(event: Event): string {
  let room = VALUES_MAX;
  const cut = (text: string, max: number): string => {
    const bytes = Buffer.from(text.replaceAll("\0", "\ufffd")); // the text format has no NUL
    const n = Math.min(max, room);
    room -= Math.min(n, bytes.length);
    return bytes.length <= n ? bytes.toString() : `${bytes.toString("utf8", 0, n)}…`;
  };
  const message: IAuditRecord = {
    timestamp: event.timestamp,
    type: cut(event.type, TYPE_MAX),
    ...(event.subject !== undefined && { subject_id: cut(event.subject, KEY_MAX) }),
    meta: (event.meta ?? []).slice(0, META_MAX).map(([key, value]) => ({
      key: cut(key, KEY_MAX),
      value: cut(value, room),
    })),
  };
  return print(AuditRecord, message);
}

/** What stands before a line of dashes, or at the end of a file without one. */
interface Chunk {
  readonly at: number;
  readonly end: number;
  readonly text: Buffer;
  readonly complete: boolean;
}

/** The chunks of a file between two places. Garbage without dashes comes in pieces. */
async function* chunks(file: FileHandle, from: number, to: number): AsyncGenerator<Chunk> {
  let rest = Buffer.alloc(0);
  let [at, read] = [from, from];
  for (;;) {
    for (let end = rest.indexOf(END); end >= 0; end = rest.indexOf(END)) {
      const length = end + END.length;
      yield { at, end: at + length, text: rest.subarray(0, end + 1), complete: true };
      rest = rest.subarray(length);
      at += length;
    }
    while (rest.length > RECORD_MAX) {
      yield { at, end: at + RECORD_MAX, text: rest.subarray(0, RECORD_MAX), complete: false };
      rest = rest.subarray(RECORD_MAX);
      at += RECORD_MAX;
    }
    const piece = Buffer.alloc(Math.min(PIECE, to - read));
    const { bytesRead } = piece.length > 0 ? await file.read(piece, 0, piece.length, read) : { bytesRead: 0 };
    if (bytesRead === 0) break;
    read += bytesRead;
    rest = Buffer.concat([rest, piece.subarray(0, bytesRead)]);
  }
  if (rest.length > 0) yield { at, end: at + rest.length, text: rest, complete: false };
}

interface Sealed {
  readonly sequence: number;
  readonly chain: string;
  /** The text that the hash is over. */
  readonly body: string;
}

function sealed(c: Chunk): Sealed | undefined {
  if (!c.complete || c.text.length > RECORD_MAX) return undefined;
  const text = c.text.toString("utf8");
  const found = SEALED.exec(text);
  return found
    ? { sequence: Number(found[1]), chain: found[2]!, body: text.slice(0, text.length - CHAIN_LENGTH) }
    : undefined;
}

function parsed(c: Chunk): AuditRecord | undefined {
  if (c.text.length > RECORD_MAX) return undefined;
  try {
    return parse<AuditRecord>(AuditRecord, c.text);
  } catch (e) {
    if (e instanceof BadText) return undefined;
    throw e;
  }
}

/** A chunk as it is delivered: one that is no record says so, with its text. */
function recordOf(c: Chunk, sequence: number): AuditRecord {
  const meta = [
    ["raw_text", c.text.toString("latin1").slice(0, VALUES_MAX)],
    ["sequence", String(sequence)],
  ].map(([key, value]) => AuditRecord.Meta.create({ key: key!, value: value! }));
  return parsed(c) ?? AuditRecord.create({ timestamp: 0, type: CORRUPT, meta });
}

/** What `<uuid>.ack` holds: a number, the hash of that record, and a hash over both. */
const ackText = (sequence: number, hash: string): string =>
  `${sequence} ${hash || "-"} ${seal("ack", `${sequence} ${hash}`)}\n`.padEnd(ACK_MAX - 1).concat("\n");

function readAck(text: string): { sequence: number; hash: string } | undefined {
  const found = /^([0-9]{1,15}) (-|[0-9a-f]{32}) ([0-9a-f]{32})\n/.exec(text);
  if (!found) return undefined;
  const hash = found[2] === "-" ? "" : found[2]!;
  return seal("ack", `${found[1]} ${hash}`) === found[3] ? { sequence: Number(found[1]), hash } : undefined;
}

export interface Options {
  readonly directory: string;
  /** A uuid. */
  readonly name: string;
  /** Bytes that records which nobody has acknowledged may take. */
  readonly limit: number;
  /** A sentence for the log. */
  say(line: string): void;
  /** The trail has passed three quarters of its space (true), or has room again. */
  warned?(full: boolean): void;
}

export class Trail {
  readonly #o: Options;
  #file!: FileHandle; // both are opened by open()
  #ackFile!: FileHandle;
  /** Length of the file; of what has been acknowledged at its beginning. */
  #size = 0;
  #passed = 0;
  /** Number and hash of the last record, and of the last acknowledged one. */
  #last = { sequence: 0, hash: "" };
  #acked = { sequence: 0, hash: "" };
  #ackDirty = false;
  readonly #queue: Waiting[] = [];
  #queued = 0;
  #lost = 0;
  #full = false;
  #newest: Promise<unknown> = Promise.resolve();
  #turn: Promise<unknown> = Promise.resolve();
  #working: Promise<void> | undefined;
  readonly #listeners = new Set<() => void>();
  #closed = false;

  private constructor(options: Options) {
    this.#o = options;
  }

  static async open(options: Options): Promise<Trail> {
    const trail = new Trail(options);
    try {
      await trail.#load();
    } catch (cause) {
      await trail.close();
      throw new Error(`audit trail ${options.name}`, { cause });
    }
    return trail;
  }

  /** Remove the trail from the disk; nobody may have it open. */
  static remove(directory: string, name: string): Promise<void> {
    return removeSynced(directory, [`${name}.log`, `${name}.ack`]);
  }

  get #log(): string {
    return join(this.#o.directory, `${this.#o.name}.log`);
  }
  get #ack(): string {
    return join(this.#o.directory, `${this.#o.name}.ack`);
  }

  // --- loading ---------------------------------------------------------------------------

  async #load(): Promise<void> {
    const known = await readBounded(this.#ack, ACK_MAX);
    const ack = known && readAck(Buffer.from(known).toString("latin1"));
    if (known && !ack) this.#o.say("which records were acknowledged is not known: they are delivered again");
    if (ack) this.#acked = ack;
    // Without the one beside it, the log is the original's: nothing of it was written by us.
    if (!known) await this.#convert();
    if (!ack) await writeAtomic(this.#ack, ackText(0, ""));
    const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants;
    this.#ackFile = await open(this.#ack, O_RDWR | O_NOFOLLOW);
    this.#file = await open(this.#log, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600);
    await synced(this.#o.directory);
    if (await this.#check()) return;
    await this.#file.close();
    await this.#convert();
    this.#file = await open(this.#log, O_RDWR | O_NOFOLLOW);
    await this.#check();
  }

  /** Find the last record; cut off what a power cut has left after it. False: another version has written to it. */
  async #check(): Promise<boolean> {
    const { size } = await this.#file.stat();
    let before: string | undefined;
    let [sequence, good, first] = [0, 0, true];
    let bad = 0;
    for await (const c of chunks(this.#file, 0, size)) {
      const s = sealed(c);
      if (first && s && s.sequence === this.#acked.sequence + 1) before = this.#acked.hash;
      // The first record's predecessor may be gone: then it is taken as it is.
      const chained = s && (before === undefined ? first : seal(before, s.body) === s.chain);
      if (s && chained && s.sequence > sequence) {
        sequence = s.sequence;
        good = c.end;
        this.#last = { sequence, hash: s.chain };
        if (sequence <= this.#acked.sequence) this.#passed = c.end;
      } else if (c.complete && !s && parsed(c)) return false;
      else bad++;
      before = s?.chain;
      first = false;
    }
    this.#size = good;
    if (good < size) {
      await this.#file.truncate(good);
      await this.#file.datasync();
      this.#o.say(`${size - good} bytes at its end are no whole record (a power cut, probably): cut off`);
      bad = 0;
    }
    if (bad > 0) this.#o.say(`${bad} records within it are damaged: delivered as ${CORRUPT}`);
    // Acknowledged, and cut off with the file since: numbers go on from there.
    if (this.#last.sequence < this.#acked.sequence) this.#last = { ...this.#acked };
    return true;
  }

  /** Records of the original have no numbers: they get them, and all are written anew. */
  async #convert(): Promise<void> {
    let file: FileHandle;
    try {
      file = await open(this.#log, "r");
    } catch (e) {
      if (isErrno(e, ENOENT)) return;
      throw e;
    }
    await using _ = file;
    const { size } = await file.stat();
    const out: string[] = [];
    let { sequence, hash } = this.#acked;
    for await (const c of chunks(file, 0, size)) {
      const numbered = sealed(c);
      if (numbered && numbered.sequence <= this.#acked.sequence) continue;
      const record = recordOf(c, 0);
      record.meta = record.meta.filter((m) => m.key !== "sequence" && m.key !== "chain");
      const made = this.#sealed(print(AuditRecord, record), ++sequence, hash);
      hash = made.hash;
      out.push(made.text);
    }
    if (out.length > 0) this.#o.say(`${out.length} records, some of another version, are taken over`);
    await writeAtomic(this.#log, out.join(""));
  }

  // --- writing ---------------------------------------------------------------------------

  #sealed(text: string, sequence: number, before: string): { text: string; hash: string } {
    const body = text + entry("sequence", String(sequence));
    const hash = seal(before, body);
    return { text: body + entry("chain", hash) + DASHES, hash };
  }

  /** Bytes that are left for records. */
  get remaining(): number {
    return Math.max(0, this.#o.limit - this.#used);
  }
  get #used(): number {
    return this.#size - this.#passed + this.#queued;
  }
  /** Number of the last record on the disk, and of the last one that was acknowledged. */
  get last(): number {
    return this.#last.sequence;
  }
  get acknowledged(): number {
    return this.#acked.sequence;
  }
  /** Records that found no room since one last did. */
  get lost(): number {
    return this.#lost;
  }

  /** True when it is on the disk; false: there was no room, or the disk refused. */
  append(event: Event): Promise<boolean> {
    const text = bounded(event);
    const need = Buffer.byteLength(text) + SEAL_MAX;
    const limit = event.foreign ? this.#o.limit * FULL_AT : this.#o.limit;
    if (this.#closed || this.#used + need > limit) {
      this.#lose(1);
      return Promise.resolve(false);
    }
    if (this.#lost > 0) {
      const lost = this.#lost;
      this.#lost = 0;
      const note: Event = { type: LOST, timestamp: event.timestamp, meta: [["count", String(lost)]] };
      void this.#enqueue(bounded(note)).then((kept) => !kept && this.#lose(lost));
    }
    return this.#enqueue(text);
  }

  #enqueue(text: string): Promise<boolean> {
    const { promise, resolve: done } = Promise.withResolvers<boolean>();
    this.#newest = promise;
    const bytes = Buffer.byteLength(text) + SEAL_MAX;
    this.#queue.push({ text, bytes, done });
    this.#queued += bytes;
    this.#work();
    return promise;
  }

  #lose(n: number): void {
    if (this.#lost === 0) this.#o.say("it is full: records are dropped");
    this.#lost += n;
  }

  /** Resolves when everything that was appended before is on the disk, or dropped. */
  async settled(): Promise<void> {
    await this.#newest;
  }

  /** One after the other: writes, reads, and the exchange of the file. */
  #exclusive<T>(act: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(act);
    this.#turn = turn.catch(() => {});
    return turn;
  }

  #work(): void {
    this.#working ??= this.#loop();
  }

  async #loop(): Promise<void> {
    // Everything that comes in this turn of the event loop goes into one write.
    await new Promise<void>((next) => setImmediate(next));
    while (this.#queue.length > 0 || this.#ackDirty || this.#worthwhile) {
      try {
        if (this.#queue.length > 0) await this.#exclusive(() => this.#write());
        if (this.#ackDirty) await this.#exclusive(() => this.#writeAck());
        if (this.#worthwhile) await this.#exclusive(() => this.#shorten());
      } catch (e) {
        this.#o.say(chain(e));
        this.#ackDirty = false; // tried again with the next one
        if (this.#queue.length === 0) break;
      }
      this.#warn();
    }
    this.#working = undefined;
  }

  #warn(): void {
    const part = this.#used / this.#o.limit;
    if (this.#full ? part > EASED_AT : part < FULL_AT) return;
    this.#full = !this.#full;
    this.#o.warned?.(this.#full);
  }

  async #write(): Promise<void> {
    const batch: Waiting[] = [];
    const out: Buffer[] = [];
    let { sequence, hash } = this.#last;
    let bytes = 0;
    for (let next = this.#queue[0]; next && bytes < BATCH; next = this.#queue[0]) {
      const made = this.#sealed(next.text, ++sequence, hash);
      hash = made.hash;
      const text = Buffer.from(made.text);
      out.push(text);
      bytes += text.length;
      batch.push(this.#queue.shift()!);
    }
    let kept = false;
    try {
      const all = Buffer.concat(out);
      for (let at = 0; at < all.length; ) {
        const { bytesWritten } = await this.#file.write(all, at, all.length - at, this.#size + at);
        at += bytesWritten;
      }
      await this.#file.datasync();
      this.#size += all.length;
      this.#last = { sequence, hash };
      kept = true;
    } catch (e) {
      // What of it has reached the file is overwritten by the next one, and no record by its hash until then.
      await this.#file.truncate(this.#size).catch(() => {});
      this.#lose(batch.length);
      throw e;
    } finally {
      for (const w of batch) this.#queued -= w.bytes;
      for (const w of batch) w.done(kept);
    }
    for (const tell of [...this.#listeners]) tell();
  }

  // --- acknowledging -----------------------------------------------------------------------

  /** Records up to this number, which read() has given, are not needed any more. */
  async acknowledge(sequence: number): Promise<void> {
    await this.#exclusive(async () => {
      if (this.#closed || sequence <= this.#acked.sequence || sequence > this.#last.sequence) return;
      for await (const s of this.#units(this.#passed, this.#acked.sequence)) {
        if (s.sequence > sequence) break;
        this.#passed = s.end;
        this.#acked = { sequence: s.sequence, hash: s.chain ?? "" };
        this.#ackDirty = true;
      }
    });
    this.#work();
  }

  async #writeAck(): Promise<void> {
    this.#ackDirty = false;
    // One sector, in place: a disk writes it whole. If it does not, records are delivered again.
    const text = Buffer.from(ackText(this.#acked.sequence, this.#acked.hash));
    await this.#ackFile.write(text, 0, text.length, 0);
    await this.#ackFile.datasync();
  }

  get #worthwhile(): boolean {
    if (this.#passed < WORTH || this.#ackDirty) return false;
    return this.#passed === this.#size || this.#passed >= this.#o.limit / 4;
  }

  /** Cut off what was acknowledged: the rest moves into a new file. */
  async #shorten(): Promise<void> {
    const fresh = join(this.#o.directory, `.${this.#o.name}.log.new`); // sweep() of sys/file.ts knows such names
    const rest = this.#size - this.#passed;
    const file = await open(fresh, "w+", 0o600);
    try {
      const piece = Buffer.alloc(PIECE);
      for (let at = 0; at < rest; ) {
        const want = Math.min(PIECE, rest - at);
        const { bytesRead } = await this.#file.read(piece, 0, want, this.#passed + at);
        if (bytesRead === 0) throw new Error(`${this.#log} has become shorter`);
        await file.write(piece, 0, bytesRead, at);
        at += bytesRead;
      }
      await file.sync();
      await rename(fresh, this.#log);
    } catch (e) {
      await file.close();
      throw e;
    }
    const old = this.#file;
    this.#file = file;
    this.#size = rest;
    this.#passed = 0;
    this.#places.clear();
    await old.close();
    await synced(this.#o.directory);
  }

  // --- reading -----------------------------------------------------------------------------

  /** Records from a place in the file; a damaged one counts as the number after its predecessor's. */
  async *#units(
    from: number,
    sequence: number,
  ): AsyncGenerator<{ sequence: number; chain: string | undefined; chunk: Chunk; end: number }> {
    for await (const chunk of chunks(this.#file, from, this.#size)) {
      const s = sealed(chunk);
      sequence = s?.sequence ?? sequence + 1;
      yield { sequence, chain: s?.chain, chunk, end: chunk.end };
    }
  }

  /** Up to `max` records that nobody has acknowledged, after number `after`, or from the first. */
  next(after = 0, max = 1): Promise<Stored[]> {
    return this.#exclusive(async () => {
      const found: Stored[] = [];
      if (this.#closed) return found;
      const place = after > this.#acked.sequence ? this.#places.get(after) : undefined;
      let at = place ?? this.#passed;
      for await (const u of this.#units(at, place === undefined ? this.#acked.sequence : after)) {
        if (u.sequence > after) found.push({ sequence: u.sequence, record: recordOf(u.chunk, u.sequence) });
        at = u.end;
        if (found.length >= max) break;
      }
      const last = found.at(-1);
      if (last) this.#remember(last.sequence, at);
      return found;
    });
  }

  /** Where a reader goes on that comes back for more. */
  readonly #places = new Map<number, number>();
  #remember(sequence: number, at: number): void {
    if (this.#places.size >= PLACES) this.#places.delete(this.#places.keys().next().value!);
    this.#places.set(sequence, at);
  }

  /** Called when there are new records on the disk. */
  onRecords(tell: () => void): Disposable {
    this.#listeners.add(tell);
    return { [Symbol.dispose]: () => void this.#listeners.delete(tell) };
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#working;
    await this.#exclusive(async () => {
      await this.#file?.close();
      await this.#ackFile?.close();
    });
  }
}
