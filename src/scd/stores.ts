// Whom this device believes, as files in scd's token folder (spec/security.md 1.3). They are read for each question: a
// root that was registered a moment ago counts, one that was removed does not.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { BUNDLE_MAX } from "../pki/certificates.ts";
import { REVOCATION_MAX } from "../pki/revocation.ts";
import type { Anchor, Revocation, Trust } from "../pki/verify.ts";
import { ENOENT, isErrno } from "../sys/error.ts";
import { readBounded } from "../sys/file.ts";

/** Files that a folder of roots or revocations may have: each is read at each verification. */
const FILES_MAX = 64;

async function names(folder: string): Promise<string[]> {
  let found: string[];
  try {
    found = await readdir(folder);
  } catch (e) {
    if (isErrno(e, ENOENT)) return [];
    throw e;
  }
  const visible = found.filter((n) => !n.startsWith(".")).sort();
  if (visible.length > FILES_MAX) throw new Error(`${folder}: ${visible.length} files, at most ${FILES_MAX}`);
  return visible;
}

async function anchor(folder: string, name: string): Promise<Anchor[]> {
  const pem = await readBounded(join(folder, name), BUNDLE_MAX);
  return pem ? [{ name, pem }] : [];
}

/** `ssig_rootca.cert`, `ca/*`, `localca_rootca.cert`, and ours: `revocation/*` (CRLs; OCSP responses end in .ocsp). */
export async function trustOf(tokens: string): Promise<Trust> {
  const registered = await names(join(tokens, "ca"));
  const revocation: Revocation[] = [];
  for (const name of await names(join(tokens, "revocation"))) {
    const bytes = await readBounded(join(tokens, "revocation", name), REVOCATION_MAX);
    if (bytes) revocation.push({ name, kind: name.endsWith(".ocsp") ? "ocsp" : "crl", bytes });
  }
  return {
    software: [
      ...(await anchor(tokens, "ssig_rootca.cert")),
      ...(await Promise.all(registered.map((n) => anchor(join(tokens, "ca"), n)))).flat(),
    ],
    local: await anchor(tokens, "localca_rootca.cert"),
    revocation,
  };
}
