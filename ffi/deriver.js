// The calls of libcrypto that derive keys from passwords, for a thread of their own: they take seconds on a small
// processor. What comes here are names and addresses, never a password or a key: whoever asks keeps the memory until the
// answer. libcrypto is the same one, so what it makes here is used and freed there. (JavaScript, because it is embedded
// as it is.)
import { dlopen, FFIType as T } from "bun:ffi";

const { ptr, i32 } = T;
const { symbols: C } = dlopen("libcrypto.so.3", {
  // openssl/pkcs12.h
  PKCS12_parse: { args: [ptr, ptr, ptr, ptr, ptr], returns: i32 },
  PKCS12_create: { args: [ptr, ptr, ptr, ptr, ptr, i32, i32, i32, i32, i32], returns: ptr },
  // openssl/err.h: each thread has errors of its own
  ERR_clear_error: { args: [], returns: T.void },
  ERR_peek_last_error: { args: [], returns: T.u64 },
});

self.onmessage = ({ data: { call, args } }) => {
  C.ERR_clear_error();
  const result = C[call](...args);
  postMessage({ result, error: BigInt(C.ERR_peek_last_error()) });
};
