// What every use of libcrypto here shares: a scope that frees what was made in it, bytes in, text out, and the
// library's own word for a failure.
import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import { lasting, mem } from "../sys/mem.ts";

/** Frees in reverse what was made within it; the bytes that libcrypto reads stay where they are until then. */
export class Scope implements Disposable {
  readonly #free: (() => void)[] = [];

  /** Take over what a constructor returned; null is its failure, with libcrypto's reason. */
  own(made: Pointer | null, free: (p: Pointer) => unknown, what: string): Pointer {
    if (made === null) throw new Error(`${what}: ${reason()}`);
    this.#free.push(() => free(made));
    return made;
  }

  /** A BIO that reads a copy of the bytes. */
  bytes(bytes: Uint8Array): Pointer {
    const copy = lasting(bytes.length === 0 ? mem(1) : bytes);
    const bio = this.own(C.BIO_new_mem_buf(copy, bytes.length), C.BIO_free, "BIO_new_mem_buf");
    this.#free.push(() => copy.at(0)); // keeps the copy alive as long as its reader
    return bio;
  }

  /** A STACK_OF(…) that borrows its members. */
  stack(members: readonly Pointer[]): Pointer {
    const stack = this.own(C.OPENSSL_sk_new_null(), C.OPENSSL_sk_free, "OPENSSL_sk_new_null");
    for (const m of members) C.OPENSSL_sk_push(stack, m);
    return stack;
  }

  [Symbol.dispose](): void {
    for (const free of this.#free.reverse()) free();
  }
}

/** Why the last call failed, in libcrypto's words; its queue of errors is empty afterwards. */
export function reason(): string {
  const text = reasonOf(BigInt(C.ERR_peek_last_error()));
  C.ERR_clear_error();
  return text;
}

/** libcrypto's words for one of its errors. */
export const reasonOf = (error: bigint): string =>
  C.ERR_reason_error_string(error)?.toString() || "no reason given";

/** A call of libcrypto that answers 1 for success. */
export function must(result: number, what: string): void {
  if (result !== 1) throw new Error(`${what}: ${reason()}`);
}

/** The bytes that a printing function of libcrypto writes. */
export function written(print: (bio: Pointer) => number): Uint8Array {
  using scope = new Scope();
  const bio = scope.own(C.BIO_new(C.BIO_s_mem()), C.BIO_free, "BIO_new");
  if (print(bio) <= 0) throw new Error(`print: ${reason()}`);
  const into = mem(Number(C.BIO_ctrl_pending(bio)));
  C.BIO_read(bio, into, into.length);
  return into;
}

export const printed = (print: (bio: Pointer) => number): string => new TextDecoder().decode(written(print));

/** The members of a STACK_OF(…). */
export const members = (stack: Pointer): Pointer[] =>
  Array.from({ length: C.OPENSSL_sk_num(stack) }, (_, i) => C.OPENSSL_sk_value(stack, i) as Pointer);

/** Bytes: some fifty keys fit; the smallest piece. */
const [SECURE_HEAP, SECURE_LEAST] = [1 << 17, 64];

/** From now on libcrypto keeps the secret numbers of private keys in memory that is locked, not dumped, and wiped. */
export function secureHeap(): void {
  if (C.CRYPTO_secure_malloc_init(SECURE_HEAP, SECURE_LEAST) === 0)
    throw new Error("libcrypto cannot make its secure heap");
}
