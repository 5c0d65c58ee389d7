// A detached signature beside what it signs: NAME.conf, NAME.sig (raw), NAME.cert (PEM: the signer, then its
// intermediates), as the original's sign_config writes them (spec/security.md 2.1, 2.2).
import { open, stat } from "node:fs/promises";
import { readBundle, subject } from "../pki/certificates.ts";
import { Scope } from "../pki/crypto.ts";
import { isUri, tokenCertificate, tokenKey } from "../pki/engine.ts";
import { PrivateKey } from "../pki/key.ts";
import { matches, type Revocation, type Signed, verify } from "../pki/verify.ts";
import { writeAtomic } from "../sys/file.ts";
import type { Values } from "../tool/commands.ts";

/** The passphrase of an encrypted key, or the PIN of a token, as the original's tools take it; never on a command line. */
const passphrase = (): Uint8Array => Buffer.from(process.env.GYROIDOS_TEST_PASSWD_PKI ?? "");

/** `…/NAME.conf` → `…/NAME.sig`. */
export function beside(conf: string, extension: "sig" | "cert"): string {
  if (!conf.endsWith(".conf")) throw new Error(`${conf}: the name of a configuration ends in .conf`);
  return `${conf.slice(0, -"conf".length)}${extension}`;
}

/** Bytes of any file that is read here: the largest CRLs fit. */
const FILE_MAX = 64 * 2 ** 20;
const PIECE = 256 * 1024;

/** The bytes of a file, or of a pipe: `--key <(decrypt key)`. */
export async function bytesOf(path: string): Promise<Uint8Array> {
  if (path === "") throw new Error("a file without a name");
  if ((await stat(path)).isDirectory()) throw new Error(`${path}: a folder, not a file`);
  await using file = await open(path);
  const pieces: Uint8Array[] = [];
  for (let length = 0; ; ) {
    const piece = new Uint8Array(PIECE);
    const { bytesRead } = await file.read(piece, 0, PIECE);
    if (bytesRead === 0) break;
    length += bytesRead;
    if (length > FILE_MAX) throw new Error(`${path}: more than ${FILE_MAX} bytes`);
    pieces.push(piece.subarray(0, bytesRead));
  }
  const all = Buffer.concat(pieces);
  for (const piece of pieces) piece.fill(0); // it may be a key
  return all;
}

export interface Signer {
  /** Path of a PEM file, or a PKCS #11 URI. */
  readonly key: string;
  /** Paths of PEM files, or PKCS #11 URIs: the signer's certificate first, then intermediates. */
  readonly certs: readonly string[];
}

/** What a command line says of it. */
export const signer = (args: Values, many: (option: string) => string[]): Signer => ({
  key: String(args.key),
  certs: many("cert"),
});

/** Sign the bytes of a configuration, which may have been read already, and write what belongs beside it. Returns the paths written. */
export async function sign(
  conf: string,
  { key: keyFile, certs }: Signer,
  source?: Uint8Array,
): Promise<string[]> {
  const [sig, cert] = [beside(conf, "sig"), beside(conf, "cert")];
  const data = source ?? (await bytesOf(conf));
  const bundle = Buffer.concat((await Promise.all(certs.map(certificateOf))).map(ended));
  using scope = new Scope();
  const [signer] = readBundle(scope, certs.join(", "), bundle);
  using key = await keyOf(keyFile);
  const signature = key.sign(data);
  if (!matches(signer!, data, signature))
    throw new Error(`${keyFile}: it is not the key of the first certificate in ${certs[0]}`);
  await writeAtomic(sig, signature, 0o644);
  await writeAtomic(cert, bundle, 0o644);
  return [sig, cert];
}

/** Of a PEM file whose last line has no end, another would become a part. */
const ended = (pem: Uint8Array): Uint8Array =>
  pem.at(-1) === 10 || pem.length === 0 ? pem : Buffer.concat([pem, Buffer.from("\n")]);

/** From a PEM file or a token. */
const certificateOf = async (cert: string): Promise<Uint8Array> =>
  isUri(cert) ? tokenCertificate(cert, passphrase()) : await bytesOf(cert);

/** From a PEM file or a token. */
async function keyOf(key: string): Promise<PrivateKey> {
  if (isUri(key)) return tokenKey(key, passphrase());
  const pem = await bytesOf(key);
  try {
    return PrivateKey.read(key, pem, passphrase());
  } finally {
    pem.fill(0);
  }
}

/** The subject of the certificate beside a configuration, whose signature is there too; nothing is judged. */
export async function signerOf(conf: string): Promise<string | undefined> {
  const [sig, cert] = [Bun.file(beside(conf, "sig")), Bun.file(beside(conf, "cert"))];
  if (!(await sig.exists()) || !(await cert.exists())) return undefined;
  using scope = new Scope();
  return subject(readBundle(scope, beside(conf, "cert"), await cert.bytes())[0]!);
}

export interface Roots {
  readonly ca: readonly string[];
  readonly localCa: readonly string[];
  /** CRLs (PEM or DER) and OCSP responses (DER, the name ends in .ocsp). */
  readonly revocation: readonly string[];
  readonly ignoreTime: boolean;
}

/** Judge the bytes of a configuration by the files beside it, or by others. Throws Refused with the reason. */
export async function judge(data: Uint8Array, sig: string, cert: string, roots: Roots): Promise<Signed> {
  const anchors = (paths: readonly string[]) =>
    Promise.all(paths.map(async (name) => ({ name, pem: await bytesOf(name) })));
  const revocation = await Promise.all(
    roots.revocation.map(
      async (name): Promise<Revocation> => ({
        name,
        kind: name.endsWith(".ocsp") ? "ocsp" : "crl",
        bytes: await bytesOf(name),
      }),
    ),
  );
  const trust = { software: await anchors(roots.ca), local: await anchors(roots.localCa), revocation };
  return verify(data, await bytesOf(sig), await bytesOf(cert), trust, roots);
}
