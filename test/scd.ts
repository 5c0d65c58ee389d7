// scd without its process, for tests of what asks it: the same policy, and the root of test/data/signing.
import { readFileSync } from "node:fs";
import type { Scd } from "../src/cmld/scd.ts";
import { type Trust, verify } from "../src/pki/verify.ts";

const pem = readFileSync(new URL("data/signing/ssig_rootca.cert", import.meta.url));

export function judge(trust: Trust = { software: [{ name: "root", pem }], local: [], revocation: [] }): Scd {
  const absent = async () => {
    throw new Error("this scd judges signatures alone");
  };
  return {
    verify: async (data, signature, certificates, ignoreTime) =>
      verify(data, signature, certificates, trust, { ignoreTime }).level,
    hash: absent,
    csr: absent,
    accept: absent,
  };
}
