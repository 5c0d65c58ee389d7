// scd without its process, for tests of what asks it: the same policy, and the roots of test/data/signing and of the
// development PKI.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { pki } from "../initramfs/pki.ts";
import { DaemonToToken, TokenToDaemon } from "../proto/gen/proto.js";
import type { Scd } from "../src/cmld/scd.ts";
import { type Trust, verify } from "../src/pki/verify.ts";

const golden = new URL("data/signing/ssig_rootca.cert", import.meta.url);
const roots = () =>
  [golden, `${pki()}/ssig_rootca.cert`].map((path) => ({ name: String(path), pem: readFileSync(path) }));

const [Ask, Say] = [DaemonToToken.Code, TokenToDaemon.Code];
/** A token that takes any PIN, and has no key. */
const GRANTED: Readonly<Record<number, TokenToDaemon.Code>> = {
  [Ask.TOKEN_ADD]: Say.TOKEN_ADD_SUCCESSFUL,
  [Ask.TOKEN_REMOVE]: Say.TOKEN_REMOVE_SUCCESSFUL,
  [Ask.UNLOCK]: Say.UNLOCK_SUCCESSFUL,
  [Ask.LOCK]: Say.LOCK_SUCCESSFUL,
  [Ask.PROVISION_PIN]: Say.PROVISION_PIN_SUCCESSFUL,
  [Ask.CHANGE_PIN]: Say.CHANGE_PIN_SUCCESSFUL,
};

export function judge(trust: Trust = { software: roots(), local: [], revocation: [] }): Scd {
  const absent = async () => {
    throw new Error("this scd judges and hashes alone");
  };
  return {
    verify: async (data, signature, certificates, ignoreTime) =>
      verify(data, signature, certificates, trust, { ignoreTime }).level,
    hash: async (file, _, algorithm) =>
      createHash(algorithm)
        .update(readFileSync(`/proc/self/fd/${file.n}`))
        .digest("hex"),
    csr: absent,
    accept: absent,
    token: async ({ code }) =>
      TokenToDaemon.create({ code: GRANTED[code] ?? TokenToDaemon.Code.CMD_UNKNOWN }),
  };
}
