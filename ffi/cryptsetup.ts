// Binding of libcryptsetup 2.6: names, order and types as in libcryptsetup.h. What the calls mean, and who frees what,
// lies in src/sys/. It is opened when it is first needed: most programs of ours never do.
import { CString, dlopen, JSCallback, type Pointer, FFIType as T } from "bun:ffi";

const { ptr, i32, u32, u64 } = T;
const usize = u64;

export const open = () =>
  dlopen("libcryptsetup.so.12", {
    crypt_init: { args: [ptr, ptr], returns: i32 },
    crypt_free: { args: [ptr], returns: T.void },
    crypt_set_log_callback: { args: [ptr, ptr, ptr], returns: T.void },
    /** cd, type, cipher, cipher_mode, uuid, volume_key, volume_key_size, params */
    crypt_format: { args: [ptr, ptr, ptr, ptr, ptr, ptr, usize, ptr], returns: i32 },
    /** cd, requested_type, params */
    crypt_load: { args: [ptr, ptr, ptr], returns: i32 },
    /** cd, name, volume_key, volume_key_size, flags */
    crypt_activate_by_volume_key: { args: [ptr, ptr, ptr, usize, u32], returns: i32 },
    /** cd, keyslot, volume_key, volume_key_size, passphrase, passphrase_size */
    crypt_volume_key_get: { args: [ptr, i32, ptr, ptr, ptr, usize], returns: i32 },
  }).symbols;

export type Cryptsetup = ReturnType<typeof open>;

/** `void log(int level, const char *msg, void *usrptr)`, for crypt_set_log_callback(); it stays as long as we do. */
export const logger = (on: (level: number, message: string) => void): Pointer =>
  new JSCallback((level: number, message: Pointer) => on(level, new CString(message).toString()), {
    args: [i32, ptr, ptr],
    returns: T.void,
  }).ptr!;

/** The address of a struct crypt_device. */
export type Context = Pointer;
