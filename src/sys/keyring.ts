// Keys in the kernel (keyrings(7), add_key(2), keyctl(2)). A "logon" key can be used by the kernel and read by nobody,
// root included. Put into the process keyring of a short-lived child it is gone with that child: dm-crypt takes its copy
// when the table is loaded.
import type { Op, Reg } from "./op.ts";

// linux/keyctl.h
export const PROCESS_KEYRING = -2;
export const SESSION_KEYRING = -3;
const [UNLINK, INVALIDATE] = [9, 21];

/** `payload` is memory made by mem(), the caller's to wipe. A logon key's name has a prefix: "cml:web-data". */
export const addLogon = (name: string, payload: Uint8Array, keyring = PROCESS_KEYRING, save?: Reg): Op => ({
  call: "add_key",
  args: ["logon", name, payload, payload.length, keyring],
  ...(save && { save }),
});
export const unlink = (key: number | Reg, keyring = PROCESS_KEYRING): Op => ({
  call: "keyctl",
  args: [UNLINK, key, keyring],
});
/** Gone at once, whoever links to it. */
export const invalidate = (key: number | Reg): Op => ({ call: "keyctl", args: [INVALIDATE, key] });
