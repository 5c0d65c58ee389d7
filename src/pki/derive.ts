// Calls of libcrypto that derive keys from passwords: here at once, or beside the event loop, by a thread (ffi/deriver.js)
// that does one after the other and is made when it is first needed.

import { crypto as C, type Pointer } from "../../ffi/crypto.ts";
import deriver from "../../ffi/deriver.js" with { type: "file" };
import { Turns } from "../lib/turns.ts";
import { address } from "../sys/encode.ts";
import { Secret } from "../sys/secret.ts";

export interface Derivation {
  readonly call: "PKCS12_parse" | "PKCS12_create";
  /** Memory of libcrypto's, of ours (made by mem()), or small numbers. */
  readonly args: readonly (Pointer | Uint8Array | Secret | number | null)[];
}

export interface Derived {
  /** A status or an address, as the call has it. */
  readonly result: number | null;
  /** The last of libcrypto's errors, 0 for none. */
  readonly error: bigint;
}

/** Work that asks for derivations, whoever does them. */
export type Deriving<T> = Generator<Derivation, T, Derived>;

/** Memory as its address. */
const addresses = ({ args }: Derivation): (number | null)[] =>
  args.map((arg) => {
    if (arg instanceof Secret) return arg.lend((bytes) => Number(address(bytes)));
    return arg instanceof Uint8Array ? Number(address(arg)) : (arg as number | null);
  });

/** What the thread works on, so that nobody collects it: it knows addresses only. */
const held = new Set<Derivation>();

function derived(derivation: Derivation): Derived {
  C.ERR_clear_error();
  const call = C[derivation.call] as (...all: (number | null)[]) => number | null;
  held.add(derivation);
  const result = call(...addresses(derivation));
  held.delete(derivation);
  const error = BigInt(C.ERR_peek_last_error());
  C.ERR_clear_error();
  return { result, error };
}

/** Everything here and now: nobody else is served meanwhile. */
export function atOnce<T>(work: Deriving<T>): T {
  let step = work.next();
  while (!step.done) step = work.next(derived(step.value));
  return step.value;
}

let thread: Worker | undefined;
const turns = new Turns();

function derivedThere(derivation: Derivation): Promise<Derived> {
  return turns.take("", async () => {
    thread ??= new Worker(deriver, { smol: true });
    const { promise, resolve, reject } = Promise.withResolvers<Derived>();
    thread.onmessage = ({ data }) => resolve(data as Derived);
    thread.onerror = ({ message }) => reject(new Error(`the thread that derives keys: ${message}`));
    held.add(derivation);
    try {
      thread.postMessage({ call: derivation.call, args: addresses(derivation) });
      return await promise;
    } finally {
      held.delete(derivation);
    }
  });
}

/** The event loop goes on meanwhile. */
export async function beside<T>(work: Deriving<T>): Promise<T> {
  let step = work.next();
  while (!step.done) {
    let answer: Derived;
    try {
      answer = await derivedThere(step.value);
    } catch (e) {
      step = work.throw(e);
      continue;
    }
    step = work.next(answer);
  }
  return step.value;
}
