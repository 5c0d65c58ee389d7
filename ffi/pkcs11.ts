// Binding of a PKCS #11 module (OASIS PKCS #11 2.40: pkcs11.h, pkcs11f.h, pkcs11t.h): the one symbol that each has is
// C_GetFunctionList; the addresses of the others stand in the list that it gives. CK_ULONG is a long. What the calls mean lies in
// src/pki/pkcs11.ts.
import { dlopen, linkSymbols, read, FFIType as T } from "bun:ffi";

const { ptr, u64 } = T;
const ulong = u64;
const call = (...args: T[]) => ({ args, returns: T.u64_fast });

/** [place in CK_FUNCTION_LIST, arguments], in the order of pkcs11f.h. */
const FUNCTIONS = {
  C_Initialize: [0, call(ptr)],
  C_Finalize: [1, call(ptr)],
  C_GetSlotList: [4, call(T.u8, ptr, ptr)],
  C_GetTokenInfo: [6, call(ulong, ptr)],
  C_SetPIN: [11, call(ulong, ptr, ulong, ptr, ulong)],
  C_OpenSession: [12, call(ulong, ulong, ptr, ptr, ptr)],
  C_CloseSession: [13, call(ulong)],
  C_Login: [18, call(ulong, ulong, ptr, ulong)],
  C_Logout: [19, call(ulong)],
  C_CreateObject: [20, call(ulong, ptr, ulong, ptr)],
  C_DestroyObject: [22, call(ulong, ulong)],
  C_GetAttributeValue: [24, call(ulong, ulong, ptr, ulong)],
  C_FindObjectsInit: [26, call(ulong, ptr, ulong)],
  C_FindObjects: [27, call(ulong, ptr, ulong, ptr)],
  C_FindObjectsFinal: [28, call(ulong)],
  C_SignInit: [42, call(ulong, ptr, ulong)],
  C_Sign: [43, call(ulong, ptr, ulong, ptr, ptr)],
  C_GenerateKey: [58, call(ulong, ptr, ptr, ulong, ptr)],
  C_WrapKey: [60, call(ulong, ptr, ulong, ulong, ptr, ptr)],
  C_UnwrapKey: [61, call(ulong, ptr, ulong, ptr, ulong, ptr, ulong, ptr)],
} as const;

type Functions = typeof FUNCTIONS;
export type Pkcs11 = {
  readonly [K in keyof Functions]: (...args: (Uint8Array | number | bigint | null)[]) => number | bigint;
};

/** CK_VERSION, padded to the size of a pointer. */
const FIRST = 8;

/** The functions of the module in this file. It stays loaded. */
export function pkcs11(path: string): Pkcs11 {
  const library = dlopen(path, { C_GetFunctionList: { args: [ptr], returns: u64 } });
  const at = new Uint8Array(new ArrayBuffer(8));
  if (Number(library.symbols.C_GetFunctionList(at)) !== 0)
    throw new Error(`${path}: it gives no list of functions`);
  const list = Number(new DataView(at.buffer).getBigUint64(0, true)) as never;
  const symbols = Object.entries(FUNCTIONS).map(([name, [place, types]]) => [
    name,
    { ...types, ptr: read.ptr(list, FIRST + 8 * place) },
  ]);
  return linkSymbols(Object.fromEntries(symbols)).symbols as unknown as Pkcs11;
}
