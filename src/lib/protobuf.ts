// Protocol buffers (proto2), read and written by one table per message. proto/generate.ts makes the tables from
// proto/*.proto; src/lib/text.ts reads and prints the text format by the same tables.
//
// Why not generated code: the tables are a tenth of its size, a required field that is missing is named, and every
// count that a peer can choose has a limit (protobufjs would turn a frame of empty elements into a hundred times its
// memory). Judged here, so that nobody behind the door has to: wire types, lengths, UTF-8, required fields.
//
// 64-bit numbers are JavaScript numbers. Above 2^53 they are the nearest double; 2^64 and more is written as
// 2^64-1, which is read as 2^64 (UINT64_MAX): the one large value with a meaning ("unknown") survives exactly.

export type Kind = "string" | "bytes" | "bool" | "int32" | "int64" | "uint32" | "uint64" | "fixed32";
export type Label = "required" | "optional" | "repeated";
export type EnumTable = { readonly [name: string]: number | string };

export interface Field {
  readonly id: number;
  readonly name: string;
  readonly label: Label;
  readonly type: Kind | EnumType | Schema;
  /** Only one that the .proto file states. */
  readonly fallback?: unknown;
}

export class EnumType {
  readonly byName: ReadonlyMap<string, number>;
  readonly byNumber: ReadonlyMap<number, string>;
  constructor(
    readonly name: string,
    values: Record<string, number>,
  ) {
    this.byName = new Map(Object.entries(values));
    this.byNumber = new Map(Object.entries(values).map(([word, n]) => [n, word]));
  }
}

/** A message as an object: own properties are the fields that are present; stated defaults are inherited. */
export type Message = Record<string, unknown>;

export class Schema {
  readonly fields: readonly Field[];
  readonly byId: ReadonlyMap<number, Field>;
  readonly byName: ReadonlyMap<string, Field>;
  readonly #repeated: readonly string[];
  readonly #defaults: Message = {};
  constructor(
    readonly name: string,
    fields: readonly Field[],
  ) {
    this.fields = fields.toSorted((a, b) => a.id - b.id);
    this.byId = new Map(fields.map((f) => [f.id, f]));
    this.byName = new Map(fields.map((f) => [f.name, f]));
    this.#repeated = fields.filter((f) => f.label === "repeated").map((f) => f.name);
    for (const f of fields) if (f.fallback !== undefined) this.#defaults[f.name] = f.fallback;
  }
  /** A message without fields: repeated ones are empty lists, stated defaults shine through. */
  create(): Message {
    const m: Message = Object.create(this.#defaults);
    for (const name of this.#repeated) m[name] = [];
    return m;
  }
}

/** 2^64-1 as a double: 2^64. */
export const UINT64_MAX = 2 ** 64;

/** Fields in one message, nested and unknown ones included: 64 MiB of two-byte elements must not become gigabytes. */
const FIELDS_MAX = 1 << 18;
/** Groups within unknown fields; our own messages nest three deep. */
const DEPTH_MAX = 16;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Wire types, protobuf.dev/programming-guides/encoding. */
const [VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32] = [0, 1, 2, 3, 4, 5];

const wireType = (t: Field["type"]): number =>
  t instanceof Schema || t === "string" || t === "bytes" ? LENGTH : t === "fixed32" ? FIXED32 : VARINT;

// --- reading -------------------------------------------------------------------

class Reader {
  at = 0;
  fields = 0;
  constructor(readonly bytes: Uint8Array) {}

  /** Low and high 32 bits of the number at `at`. */
  varint(end: number): [low: number, high: number] {
    let low = 0;
    let high = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.at >= end) throw new RangeError("ends within a number");
      const byte = this.bytes[this.at++]!;
      if (shift < 28) low |= (byte & 0x7f) << shift;
      else if (shift === 28) {
        low |= (byte & 0x7f) << 28;
        high |= (byte & 0x7f) >> 4;
      } else if (shift < 63) high |= (byte & 0x7f) << (shift - 32);
      else high |= (byte & 1) << 31;
      if (byte < 0x80) return [low >>> 0, high >>> 0];
    }
    throw new RangeError("a number of more than ten bytes");
  }

  /** End of the bytes whose length stands at `at`. */
  length(end: number): number {
    const [low, high] = this.varint(end);
    if (high !== 0 || low > end - this.at) throw new RangeError("longer than the message");
    return this.at + low;
  }

  skip(wire: number, end: number, depth: number, id: number): void {
    if (++this.fields > FIELDS_MAX) throw new RangeError(`more than ${FIELDS_MAX} fields`);
    if (wire === VARINT) this.varint(end);
    else if (wire === LENGTH) this.at = this.length(end);
    else if (wire === FIXED64 || wire === FIXED32) {
      this.at += wire === FIXED64 ? 8 : 4;
      if (this.at > end) throw new RangeError("ends within a number");
    } else if (wire === GROUP) {
      if (depth >= DEPTH_MAX) throw new RangeError(`groups nest deeper than ${DEPTH_MAX}`);
      for (;;) {
        const [inner, type] = this.tag(end);
        if (type === GROUP_END && inner === id) return;
        this.skip(type, end, depth + 1, inner);
      }
    } else throw new RangeError(`wire type ${wire}`);
  }

  tag(end: number): [id: number, wire: number] {
    const [low, high] = this.varint(end);
    const id = low >>> 3;
    if (high !== 0 || id === 0) throw new RangeError(`field number ${high * 2 ** 29 + id}`);
    return [id, low & 7];
  }

  value(type: Kind | EnumType, end: number): unknown {
    if (type === "string" || type === "bytes") {
      const stop = this.length(end);
      const raw = this.bytes.subarray(this.at, stop);
      this.at = stop;
      return type === "bytes" ? raw : text(raw);
    }
    if (type === "fixed32") {
      if (end - this.at < 4) throw new RangeError("ends within a number");
      this.at += 4;
      return new DataView(this.bytes.buffer, this.bytes.byteOffset).getUint32(this.at - 4, true);
    }
    const [low, high] = this.varint(end);
    if (type === "bool") return low !== 0 || high !== 0;
    if (type === "uint32") return low;
    if (type === "uint64") return high * 2 ** 32 + low;
    if (type === "int64") return (high | 0) * 2 ** 32 + low;
    return low | 0; // int32 and enums, which are open: a number without a name stays a number
  }

  message(schema: Schema, end: number): Message {
    const m = schema.create();
    while (this.at < end) {
      const [id, wire] = this.tag(end);
      const field = schema.byId.get(id);
      if (!field) {
        within(schema, `field ${id}`, () => this.skip(wire, end, 0, id));
        continue;
      }
      if (++this.fields > FIELDS_MAX) throw new RangeError(`more than ${FIELDS_MAX} fields`);
      within(schema, field.name, () => {
        if (wire !== wireType(field.type))
          throw new RangeError(`wire type ${wire}, not ${wireType(field.type)}`);
        let value: unknown;
        if (field.type instanceof Schema) value = this.message(field.type, this.length(end));
        else value = this.value(field.type, end);
        if (field.label === "repeated") (m[field.name] as unknown[]).push(value);
        else m[field.name] = value;
      });
    }
    for (const f of schema.fields)
      if (f.label === "required" && !Object.hasOwn(m, f.name)) {
        if (f.fallback === undefined) throw new RangeError(`${schema.name}.${f.name}: required, but missing`);
      }
    return m;
  }
}

/** Bytes of a string field. A NUL would end the string for the original, and for the kernel. */
export function text(raw: Uint8Array): string {
  if (raw.includes(0)) throw new RangeError("contains a NUL");
  try {
    return utf8.decode(raw);
  } catch (cause) {
    throw new RangeError("not UTF-8", { cause });
  }
}

/** Errors name the innermost field, once. */
function within(schema: Schema, field: string, work: () => void): void {
  try {
    work();
  } catch (e) {
    if (!(e instanceof RangeError) || e instanceof BadMessage) throw e;
    throw new BadMessage(/^[A-Z]\w*\./.test(e.message) ? e.message : `${schema.name}.${field}: ${e.message}`);
  }
}

/** The bytes are not a message of this type; the text says why in one line. */
export class BadMessage extends RangeError {}

/** Byte fields of the result lie in `bytes` itself. */
export function decode(schema: Schema, bytes: Uint8Array): Message {
  try {
    return new Reader(bytes).message(schema, bytes.length);
  } catch (e) {
    if (e instanceof RangeError && !(e instanceof BadMessage))
      throw new BadMessage(
        e.message.startsWith(`${schema.name}.`) ? e.message : `${schema.name}: ${e.message}`,
      );
    throw e;
  }
}

// --- writing -------------------------------------------------------------------

/** Zeros that do not move: a secret in them is there once. */
const fixed = (n: number): Uint8Array<ArrayBuffer> => new Uint8Array(new ArrayBuffer(n));

class Writer {
  #bytes: Uint8Array<ArrayBuffer>;
  #at = 0;
  constructor(size: number) {
    this.#bytes = fixed(size);
  }

  #room(n: number): void {
    if (this.#at + n <= this.#bytes.length) return;
    const larger = fixed(Math.max(2 * this.#bytes.length, this.#at + n));
    larger.set(this.#bytes.subarray(0, this.#at));
    this.#bytes.fill(0); // perhaps a secret
    this.#bytes = larger;
  }
  varint(low: number, high = 0): void {
    this.#room(10);
    while (high !== 0 || low > 0x7f) {
      this.#bytes[this.#at++] = (low & 0x7f) | 0x80;
      low = ((low >>> 7) | (high << 25)) >>> 0;
      high >>>= 7;
    }
    this.#bytes[this.#at++] = low;
  }
  fixed32(n: number): void {
    this.#room(4);
    new DataView(this.#bytes.buffer).setUint32(this.#at, n, true);
    this.#at += 4;
  }
  raw(bytes: Uint8Array): void {
    this.varint(bytes.length);
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#at);
    this.#at += bytes.length;
  }
  finish(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.#at);
  }

  #part(schema: Schema, m: Message): void {
    const inner = part(schema, m);
    this.raw(inner);
    if (!Object.isFrozen(m)) inner.fill(0); // perhaps a secret; what is frozen is kept
  }

  value(type: Kind | EnumType | Schema, value: unknown): void {
    if (type instanceof Schema) this.#part(type, object(value));
    else if (type === "string") this.raw(Buffer.from(string(value)));
    else if (type === "bytes") this.raw(bytes(value));
    else if (type === "bool") this.varint(bool(value) ? 1 : 0);
    else if (type === "fixed32") this.fixed32(integer(value, 0, 2 ** 32 - 1));
    else if (type === "uint32") this.varint(integer(value, 0, 2 ** 32 - 1));
    else if (type === "uint64") {
      const n = integer(value, 0, Number.POSITIVE_INFINITY);
      if (n >= UINT64_MAX) this.varint(0xffffffff, 0xffffffff);
      else this.varint(n >>> 0, Math.floor(n / 2 ** 32));
    } else {
      const [low, high] = type === "int64" ? [-(2 ** 63), 2 ** 63 - 1025] : [-(2 ** 31), 2 ** 31 - 1];
      const n = integer(value, low, high); // below 0: ten bytes, for int32 as well
      this.varint(n >>> 0, Math.floor(n / 2 ** 32) >>> 0);
    }
  }
}

const object = (v: unknown): Message => {
  if (typeof v !== "object" || v === null) throw new TypeError("not a message");
  return v as Message;
};
const string = (v: unknown): string => {
  if (typeof v !== "string") throw new TypeError("not a string");
  if (v.includes("\0")) throw new TypeError("contains a NUL");
  return v;
};
const bytes = (v: unknown): Uint8Array => {
  if (!(v instanceof Uint8Array)) throw new TypeError("not bytes");
  return v;
};
const bool = (v: unknown): boolean => {
  if (typeof v !== "boolean") throw new TypeError("neither true nor false");
  return v;
};
const integer = (v: unknown, min: number, max: number): number => {
  if (typeof v !== "number" || !(v >= min && v <= max) || !Number.isInteger(v))
    throw new TypeError(`not a whole number of ${min} to ${max}`);
  return v;
};

function write(schema: Schema, m: Message): Uint8Array<ArrayBuffer> {
  const w = new Writer(128);
  for (const f of schema.fields) {
    const value = Object.hasOwn(m, f.name) ? m[f.name] : undefined;
    const tag = f.id * 8 + wireType(f.type);
    try {
      if (f.label === "repeated") {
        if (value !== undefined && !Array.isArray(value)) throw new TypeError("not a list");
        for (const element of value ?? []) {
          w.varint(tag);
          w.value(f.type, element);
        }
      } else if (value !== undefined || f.label === "required") {
        const known = value ?? f.fallback;
        if (known === undefined) throw new TypeError("required, but missing");
        w.varint(tag);
        w.value(f.type, known);
      }
    } catch (e) {
      if (!(e instanceof TypeError) || /^[A-Z]\w*\./.test(e.message)) throw e;
      throw new TypeError(`${schema.name}.${f.name}: ${e.message}`);
    }
  }
  return w.finish();
}

const parts = new WeakMap<Message, Uint8Array<ArrayBuffer>>();

/** A message within another. One that is frozen stays as it is, so it is written once. */
function part(schema: Schema, m: Message): Uint8Array<ArrayBuffer> {
  if (!Object.isFrozen(m)) return write(schema, m);
  let bytes = parts.get(m);
  if (!bytes) {
    bytes = write(schema, m).slice();
    parts.set(m, bytes);
  }
  return bytes;
}

/** Fields in ascending order; of optional ones those that are the message's own. */
export function encode(schema: Schema, message: object): Uint8Array<ArrayBuffer> {
  return write(schema, message as Message);
}

/** As JSON.stringify wants it: enums by name, bytes in base64; absent fields are absent. */
export function plain(schema: Schema, message: object): Record<string, unknown> {
  const one = (type: Field["type"], v: unknown): unknown => {
    if (type instanceof Schema) return plain(type, v as object);
    if (type instanceof EnumType) return type.byNumber.get(v as number) ?? v;
    if (type === "bytes") return Buffer.from(v as Uint8Array).toString("base64");
    return v;
  };
  const out: Record<string, unknown> = {};
  for (const f of schema.fields) {
    if (!Object.hasOwn(message, f.name)) continue;
    const value = (message as Message)[f.name];
    if (value === undefined) continue;
    out[f.name] =
      f.label === "repeated" ? (value as unknown[]).map((v) => one(f.type, v)) : one(f.type, value);
  }
  return out;
}

// --- what the generated file calls ------------------------------------------------

/** One row of a generated table: number, name, label, type, stated default. */
export type Row = readonly [
  id: number,
  name: string,
  label: Label,
  type: Kind | EnumTable | MessageClass,
  fallback?: unknown,
];

/** The static side of a generated message class. */
export interface MessageClass {
  readonly schema: Schema;
  create(fields?: object): object;
  encode(message: object): Uint8Array<ArrayBuffer>;
  decode(bytes: Uint8Array): object;
  plain(message: object): Record<string, unknown>;
}

/** Made from a table when a message is first read or written in which it is: every program loads all tables and uses few. */
const enums = new WeakMap<EnumTable, () => EnumType>();

const once = <T>(make: () => T): (() => T) => {
  let made: T | undefined;
  return () => {
    made ??= make();
    return made;
  };
};

/** `table`: an object with both directions, as TypeScript's own enums have. */
export function enumeration(name: string, table: EnumTable): EnumTable {
  const values = () => Object.entries(table).filter((e): e is [string, number] => typeof e[1] === "number");
  enums.set(
    table,
    once(() => new EnumType(name, Object.fromEntries(values()))),
  );
  return table;
}

export function message(
  name: string,
  rows: readonly Row[],
  nested: Record<string, EnumTable | MessageClass> = {},
): MessageClass {
  const typeOf = (t: Row[3]): Field["type"] =>
    typeof t === "string" ? t : isClass(t) ? t.schema : enums.get(t)!();
  const field = ([id, name, label, type, fallback]: Row): Field => ({
    id,
    name,
    label,
    type: typeOf(type),
    fallback,
  });
  const schema = once(() => new Schema(name, rows.map(field)));
  return {
    ...nested,
    get schema() {
      return schema();
    },
    create: (fields = {}) => Object.assign(schema().create(), fields),
    encode: (m) => encode(schema(), m),
    decode: (b) => decode(schema(), b),
    plain: (m) => plain(schema(), m),
  };
}

const isClass = (t: EnumTable | MessageClass): t is MessageClass => !enums.has(t as EnumTable);
