// The text format of protocol buffers, which every configuration file is written in.
//
// parse() takes what the original prints and reads, and what people write after the format's public description
// (protobuf.dev/reference/protobuf/textformat-spec): comments, hexadecimal numbers, `m: {`, lists, commas, single quotes,
// adjacent strings, CRLF. As the original it does without required numbers, enums and bools; strings and messages that
// are required must be there. Any error names line, column and field.
//
// print() writes what the original can read again: ascending fields, plain decimals, and in strings UTF-8 as it is,
// because the original's reader refuses the escapes its own printer makes of it.
//
// Both go by the tables of src/lib/protobuf.ts, which protobufjs' text-format extension could not: its errors name no
// line within a list, and it refuses files of the original's that lack a required number.

import { EnumType, type Field, type Kind, type Message, Schema, text, UINT64_MAX } from "./protobuf.ts";

/** Nothing that is configured by hand comes near. */
export const TEXT_MAX = 2 ** 20;

/** Entries in one file, nested ones included. */
const ENTRIES_MAX = 1 << 16;

export class BadText extends Error {
  constructor(
    readonly line: number,
    readonly column: number,
    /** "ContainerConfig.color", or the message alone. */
    readonly field: string,
    reason: string,
  ) {
    super(`line ${line}, column ${column}: ${field}: ${reason}`);
  }
}

// --- reading -------------------------------------------------------------------

const BLANK = /(?:[ \t\r\n\f\v]+|#[^\n]*)*/y;
const WORD = /[A-Za-z_][A-Za-z0-9_]*/y;
const NUMBER = /-?[ \t]*[0-9][A-Za-z0-9_.+]*/y;
const STRING_PART: Record<string, RegExp> = { '"': /[^"\\]+/y, "'": /[^'\\]+/y };
const ESCAPE = /\\(?:[0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[abfnrtv?\\'"])/y;
const TRUE = new Set(["true", "True", "t", "1"]);
const FALSE = new Set(["false", "False", "f", "0"]);
const SIMPLE: Record<string, number> = {
  a: 7,
  b: 8,
  f: 12,
  n: 10,
  r: 13,
  t: 9,
  v: 11,
  "?": 63,
  "\\": 92,
  "'": 39,
  '"': 34,
};

const RANGES: Partial<Record<Kind, readonly [min: bigint, max: bigint]>> = {
  int32: [-(2n ** 31n), 2n ** 31n - 1n],
  uint32: [0n, 2n ** 32n - 1n],
  fixed32: [0n, 2n ** 32n - 1n],
  int64: [-(2n ** 63n), 2n ** 63n - 1n],
  uint64: [0n, 2n ** 64n - 1n],
};

/** What stands in an error: never the whole of a long word, never something that acts on a terminal. */
const quote = (word: string): string => JSON.stringify(word.length > 40 ? `${word.slice(0, 40)}…` : word);

class Parser {
  #at = 0;
  #entries = 0;
  constructor(readonly source: string) {}

  /** Line and column, from 1, of a place in the source. */
  fail(at: number, field: string, reason: string): never {
    const before = this.source.slice(0, at);
    const line = before.split("\n").length;
    throw new BadText(line, at - before.lastIndexOf("\n"), field, reason);
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.source)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  /** The character at the next thing that is neither blank nor comment; "" at the end. */
  #peek(): string {
    this.#match(BLANK);
    return this.source.charAt(this.#at);
  }

  #accept(character: string): boolean {
    if (this.#peek() !== character) return false;
    this.#at++;
    return true;
  }

  /** Something wrong here, said as what stands here. */
  #unexpected(field: string, wanted: string): never {
    const here = this.#peek();
    const at = this.#at;
    const found = here === "" ? "the end" : quote(this.#match(WORD) ?? this.#match(NUMBER) ?? here);
    return this.fail(at, field, `${found} where ${wanted} should be`);
  }

  message(schema: Schema, opened: number, close: string): Message {
    const m = schema.create();
    const seen = new Set<Field>();
    for (;;) {
      const here = this.#peek();
      if (here === close) {
        this.#at += close.length;
        this.#complete(schema, m, opened);
        return m;
      }
      if (here === "") this.fail(opened, schema.name, `"${close}" is missing`);
      const at = this.#at;
      if (here === "[") this.fail(at, schema.name, "extensions are not known");
      const name = this.#match(WORD) ?? this.#unexpected(schema.name, "the name of a field");
      const field = schema.byName.get(name) ?? this.fail(at, schema.name, `no field ${quote(name)}`);
      const where = `${schema.name}.${name}`;
      // As the original: a required number, enum or bool may come again, and the last one counts.
      if (
        seen.has(field) &&
        field.label !== "repeated" &&
        !(field.label === "required" && isScalar(field.type))
      )
        this.fail(at, where, "given twice");
      seen.add(field);

      const colon = this.#accept(":");
      if (!colon && !(field.type instanceof Schema)) this.#unexpected(where, 'a ":"');
      if (field.label !== "repeated") m[name] = this.#value(field.type, where);
      else {
        const list = m[name] as unknown[];
        if (!this.#accept("[")) list.push(this.#value(field.type, where));
        else if (!this.#accept("]")) {
          do list.push(this.#value(field.type, where));
          while (this.#accept(","));
          if (!this.#accept("]")) this.#unexpected(where, '"," or "]"');
        }
      }
      if (!this.#accept(",")) this.#accept(";");
    }
  }

  #complete(schema: Schema, m: Message, opened: number): void {
    for (const f of schema.fields) {
      if (f.label !== "required" || Object.hasOwn(m, f.name)) continue;
      if (!isScalar(f.type)) this.fail(opened, `${schema.name}.${f.name}`, "required, but missing");
      m[f.name] = f.fallback ?? (f.type === "bool" ? false : 0);
    }
  }

  #value(type: Field["type"], where: string): unknown {
    if (++this.#entries > ENTRIES_MAX) this.fail(this.#at, where, `more than ${ENTRIES_MAX} entries`);
    const here = this.#peek();
    const at = this.#at;
    if (type instanceof Schema) {
      if (!this.#accept("{") && !this.#accept("<")) this.#unexpected(where, '"{"');
      return this.message(type, at, here === "{" ? "}" : ">");
    }
    if (type === "string" || type === "bytes") {
      const raw = this.#strings(where);
      if (type === "bytes") return raw;
      try {
        return text(raw);
      } catch (e) {
        this.fail(at, where, (e as Error).message);
      }
    }
    const word = this.#match(WORD);
    if (type === "bool") {
      const given = word ?? this.#match(NUMBER) ?? this.#unexpected(where, "true or false");
      if (TRUE.has(given)) return true;
      return FALSE.has(given) ? false : this.fail(at, where, `${quote(given)} is neither true nor false`);
    }
    if (type instanceof EnumType) {
      if (word !== undefined)
        return (
          type.byName.get(word) ??
          this.fail(at, where, `${quote(word)} is none of ${[...type.byName.keys()].join(" ")}`)
        );
      const n = this.#number("int32", at, where);
      return type.byNumber.has(n)
        ? n
        : this.fail(at, where, `${n} is none of ${[...type.byNumber.keys()].join(" ")}`);
    }
    if (word !== undefined) this.fail(at, where, `${quote(word)} is no number`);
    return this.#number(type, at, where);
  }

  #number(type: Kind, at: number, where: string): number {
    const given = this.#match(NUMBER) ?? this.#unexpected(where, "a number");
    const digits = given.replace(/^-[ \t]*/, "");
    if (/^0[0-9]/.test(digits))
      this.fail(at, where, `${quote(given)} begins with 0: write it decimal, or as 0x…`);
    if (!/^(?:[0-9]+|0[xX][0-9a-fA-F]+)$/.test(digits) || digits.length > 40)
      this.fail(at, where, `${quote(given)} is no whole number`);
    const n = given.startsWith("-") ? -BigInt(digits) : BigInt(digits);
    const [min, max] = RANGES[type]!;
    if (n < min || n > max) this.fail(at, where, `${n} is not within ${min} to ${max}`);
    return Number(n);
  }

  /** One string or several beside each other. */
  #strings(where: string): Uint8Array {
    const parts: Buffer[] = [];
    let quoted = this.#peek();
    if (quoted !== '"' && quoted !== "'") this.#unexpected(where, "a string in quotes");
    while (quoted === '"' || quoted === "'") {
      const opened = this.#at++;
      for (;;) {
        const here = this.source.charAt(this.#at);
        if (here === "") this.fail(opened, where, "the string does not end");
        if (here === quoted) break;
        if (here === "\\") {
          const escaped =
            this.#match(ESCAPE) ??
            this.fail(this.#at, where, `${quote(this.source.slice(this.#at, this.#at + 2))} is no escape`);
          parts.push(this.#unescape(escaped, where));
        } else parts.push(Buffer.from(this.#match(STRING_PART[quoted]!)!));
      }
      this.#at++;
      quoted = this.#peek();
    }
    return Buffer.concat(parts);
  }

  #unescape(escaped: string, where: string): Buffer {
    const kind = escaped[1]!;
    const simple = SIMPLE[kind];
    if (simple !== undefined && escaped.length === 2) return Buffer.of(simple);
    const n =
      kind >= "0" && kind <= "7"
        ? Number.parseInt(escaped.slice(1), 8)
        : Number.parseInt(escaped.slice(2), 16);
    const isCharacter = kind === "u" || kind === "U";
    if (isCharacter ? n > 0x10ffff || (n >= 0xd800 && n <= 0xdfff) : n > 255)
      this.fail(
        this.#at - escaped.length,
        where,
        `${quote(escaped)} is no ${isCharacter ? "character" : "byte"}`,
      );
    return isCharacter ? Buffer.from(String.fromCodePoint(n)) : Buffer.of(n);
  }
}

/** What may be missing although it is required. */
const isScalar = (t: Field["type"]): boolean => !(t instanceof Schema) && t !== "string" && t !== "bytes";

/** The only class of tables that is needed here; generated message classes have it. */
interface Typed<T> {
  readonly schema: Schema;
  decode(bytes: Uint8Array): T;
}

/** A file's bytes → a message, or a BadText. */
export function parse<T>(type: Typed<T>, source: Uint8Array | string): T {
  const { schema } = type;
  if (source.length > TEXT_MAX)
    throw new BadText(1, 1, schema.name, `${source.length} bytes, at most ${TEXT_MAX}`);
  const characters = typeof source === "string" ? source : characters8(source, schema);
  const parser = new Parser(characters.replace(/^\uFEFF/, ""));
  const nul = parser.source.indexOf("\0");
  if (nul >= 0) parser.fail(nul, schema.name, "a NUL");
  return parser.message(schema, 0, "") as T;
}

function characters8(source: Uint8Array, schema: Schema): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(source);
  } catch {
    let line = 1;
    for (let at = 0; ; line++) {
      const end = source.indexOf(10, at);
      const piece = source.subarray(at, end < 0 ? source.length : end);
      const good = Buffer.from(piece).toString("utf8");
      const wrong = Buffer.from(good).equals(piece) ? -1 : good.indexOf("\uFFFD");
      if (wrong >= 0 || end < 0) throw new BadText(line, wrong + 1, schema.name, "not UTF-8");
      at = end + 1;
    }
  }
}

// --- writing -------------------------------------------------------------------

const ESCAPES: Record<string, string> = {
  "'": "\\'",
  '"': '\\"',
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
};
const octal = (byte: number): string => `\\${byte.toString(8).padStart(3, "0")}`;

const escapeText = (s: string): string =>
  s.replace(/['"\\]|[\x00-\x1f\x7f-\x9f]/g, (c) => ESCAPES[c] ?? [...Buffer.from(c)].map(octal).join(""));

function escapeBytes(bytes: Uint8Array): string {
  let out = "";
  for (const byte of bytes) {
    const c = String.fromCharCode(byte);
    out += ESCAPES[c] ?? (byte >= 0x20 && byte < 0x7f ? c : octal(byte));
  }
  return out;
}

function scalar(type: Kind | EnumType, value: unknown): string {
  if (type instanceof EnumType) return type.byNumber.get(value as number) ?? "unknown";
  if (type === "string") return `"${escapeText(value as string)}"`;
  if (type === "bytes") return `"${escapeBytes(value as Uint8Array)}"`;
  if (type === "bool") return String(value);
  const n = value as number;
  return n >= UINT64_MAX ? String(2n ** 64n - 1n) : String(BigInt(n));
}

function lines(schema: Schema, m: Message, indent: string, out: string[]): void {
  for (const f of schema.fields) {
    const own = Object.hasOwn(m, f.name) ? m[f.name] : undefined;
    const value = own ?? (f.label === "required" ? f.fallback : undefined);
    if (value === undefined) continue;
    for (const one of f.label === "repeated" ? (value as unknown[]) : [value]) {
      if (f.type instanceof Schema) {
        out.push(`${indent}${f.name} {\n`);
        lines(f.type, one as Message, `${indent}  `, out);
        out.push(`${indent}}\n`);
      } else out.push(`${indent}${f.name}: ${scalar(f.type, one)}\n`);
    }
  }
}

/** As the original prints, but for letters beyond ASCII in strings, which stay as they are. */
export function print(type: { readonly schema: Schema }, message: object): string {
  const out: string[] = [];
  lines(type.schema, message as Message, "", out);
  return out.join("");
}
