// Memory that the kernel may read or write while we hold it.

/** n zeroed bytes whose address never changes: a small typed array made otherwise may move (docs/decisions). */
export const mem = (n: number): Uint8Array<ArrayBuffer> => new Uint8Array(new ArrayBuffer(n));

/** A copy of `bytes` whose address never changes. */
export function lasting(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = mem(bytes.length);
  copy.set(bytes);
  return copy;
}

/** A struct under construction: values appended at their natural little-endian size, then `done()`. */
export class Struct {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  #at = 0;
  constructor(size: number) {
    this.bytes = mem(size);
    this.#view = new DataView(this.bytes.buffer);
  }
  u8(v: number): this {
    this.#view.setUint8(this.#at, v);
    this.#at += 1;
    return this;
  }
  u16(v: number): this {
    this.#view.setUint16(this.#at, v, true);
    this.#at += 2;
    return this;
  }
  u32(v: number): this {
    this.#view.setUint32(this.#at, v >>> 0, true);
    this.#at += 4;
    return this;
  }
  i32(v: number): this {
    this.#view.setInt32(this.#at, v, true);
    this.#at += 4;
    return this;
  }
  u64(v: number | bigint): this {
    this.#view.setBigUint64(this.#at, BigInt.asUintN(64, BigInt(v)), true);
    this.#at += 8;
    return this;
  }
  raw(bytes: Uint8Array): this {
    this.bytes.set(bytes, this.#at);
    this.#at += bytes.length;
    return this;
  }
  skip(n: number): this {
    this.#at += n;
    return this;
  }
}
