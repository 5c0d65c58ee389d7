// A development PKI: the hierarchy, names, profiles and file names of the original's tool (spec/security.md 8.2, 8.3), so
// that whoever has scripts around them keeps them. Differences: keys have no passphrase (mode 0600 instead), and no
// certificate names a server that is not there.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { isFor } from "./certificates.ts";
import { certify, type Extensions, type Name } from "./issue.ts";
import { type KeySpec, PrivateKey } from "./key.ts";

const IDENTITY: Extensions = [
  ["subjectKeyIdentifier", "hash"],
  ["authorityKeyIdentifier", "keyid"],
];
const CA: Extensions = [
  ["basicConstraints", "critical,CA:TRUE"],
  ["keyUsage", "critical,keyCertSign,cRLSign"],
];
const LEAF: Extensions = [
  ["basicConstraints", "critical,CA:FALSE"],
  ["keyUsage", "critical,digitalSignature,nonRepudiation,keyEncipherment"],
];
const SERVER: Extensions = [...LEAF, ["extendedKeyUsage", "serverAuth"]];
const ISSUER_OF_DEVICES: Extensions = [
  ["basicConstraints", "critical,CA:TRUE"],
  ["keyUsage", "digitalSignature,keyCertSign,cRLSign"],
];

interface Entry {
  readonly file: string;
  readonly cn: string;
  readonly by?: string;
  /** An RSA key that its certificate restricts to RSASSA-PSS. */
  readonly pss?: true;
  readonly days: number;
  readonly extensions: Extensions;
  /** Files whose certificates follow in the `.cert` file. */
  readonly with?: readonly string[];
}

const [ROOT, SUB, END] = [3650, 2190, 1095]; // days

/** In the order in which they are made: an issuer before what it issues. */
export const HIERARCHY: readonly Entry[] = [
  { file: "ssig_rootca", cn: "GyroidOS Software Signing Root CA", days: ROOT, extensions: CA },
  {
    file: "ssig_subca",
    cn: "GyroidOS Software Signing Sub CA",
    by: "ssig_rootca",
    days: SUB,
    extensions: CA,
    with: ["ssig_rootca"],
  },
  {
    file: "ssig_subca_cml",
    cn: "GyroidOS CML Signing Sub CA",
    by: "ssig_rootca",
    pss: true,
    days: SUB,
    extensions: CA,
  },
  {
    file: "ssig",
    cn: "GyroidOS Software Signing Certificate",
    by: "ssig_subca",
    days: END,
    extensions: LEAF,
    with: ["ssig_subca", "ssig_rootca"],
  },
  {
    file: "ssig_cml",
    cn: "GyroidOS CML Signing Certificate",
    by: "ssig_subca_cml",
    pss: true,
    days: END,
    extensions: LEAF,
    with: ["ssig_subca_cml"],
  },
  { file: "gen_rootca", cn: "GyroidOS General Root CA", days: ROOT, extensions: CA },
  ...(["device", "user", "backend"] as const).map(
    (what): Entry => ({
      file: `${what}_subca`,
      cn: `GyroidOS ${what[0]!.toUpperCase()}${what.slice(1)} Sub CA`,
      by: "gen_rootca",
      pss: true,
      days: SUB,
      extensions: ISSUER_OF_DEVICES,
      ...(what === "backend" && { with: ["gen_rootca"] }),
    }),
  ),
  ...(
    [
      ["backend", "GyroidOS Backend Certificate"],
      ["ocsp_server", "GyroidOS OCSP Server Certificate"],
    ] as const
  ).map(
    ([file, cn]): Entry => ({
      file,
      cn,
      by: "backend_subca",
      pss: true,
      days: END,
      extensions: SERVER,
      with: ["backend_subca", "gen_rootca"],
    }),
  ),
];

const nameOf = (cn: string): Name => [
  ["C", "DE"],
  ["O", "OSS Release"],
  ["OU", "Development"],
  ["CN", cn],
];

const keyOf = (spec: string, pss: boolean): KeySpec =>
  (pss && spec.startsWith("rsa:") ? spec.replace("rsa:", "rsa-pss:") : spec) as KeySpec;

/** Whether a PKI is there; throws what it lacks, because keys that are lost cannot be made again. */
function isThere(dir: string, target: string): boolean {
  const status = lstatSync(target, { throwIfNoEntry: false });
  if (!status) return false;
  if (status.isSymbolicLink()) throw new Error(`${dir}: a symbolic link; keys are made in real folders only`);
  if (!status.isDirectory()) throw new Error(`${dir}: not a folder`);
  if (!existsSync(join(target, "ssig_rootca.cert")))
    throw new Error(`${dir}: a folder without a PKI is there; name one that is not`);
  const wrong = [...HIERARCHY.flatMap(({ file }) => [`${file}.key`, `${file}.cert`]), ...SIGNING_KEY].flatMap(
    (file) => {
      const reason = wrongFile(target, file);
      return reason === undefined ? [] : [`${file} ${reason}`];
    },
  );
  if (wrong.length > 0)
    throw new Error(
      `${dir}: a PKI that is not whole: ${wrong.join(", ")}; bring it back, or name another folder`,
    );
  return true;
}

/** For the kernel's modules: key and certificate of ssig_subca. */
const SIGNING_KEY = ["certs/signing_key.pem", "certs/signing_key.x509"];

/** Why a file of a PKI is no use, if it is none. */
function wrongFile(target: string, file: string): string | undefined {
  const path = join(target, file);
  const status = statSync(path, { throwIfNoEntry: false });
  if (!status?.isFile()) return "is missing";
  if (status.size === 0) return "is empty";
  if (!file.endsWith(".key")) return undefined;
  const pem = readFileSync(path);
  try {
    if (pem.includes("ENCRYPTED")) return undefined; // one of the original's
    using key = PrivateKey.read(file, pem);
    const certificate = path.replace(/key$/, "cert");
    if (!existsSync(certificate) || isFor(readFileSync(certificate), key)) return undefined;
    return "is not the key of its certificate";
  } catch {
    return "or its certificate cannot be read";
  } finally {
    pem.fill(0);
  }
}

/**
 * Make the folder, whole or not at all. Returns false if a PKI is there: keys are never overwritten.
 *
 * @param spec as in KeySpec
 * @throws if something else is there, or the key is of no known kind
 */
export function initialise(dir: string, spec: string, say: (line: string) => void): boolean {
  const all = steps(dir, spec, say);
  let one = all.next();
  while (!one.done) one = all.next();
  return one.value;
}

/** The same with a pause before each key; given up with return(), it leaves nothing. */
export function* steps(
  dir: string,
  spec: string,
  say: (line: string) => void,
): Generator<void, boolean, void> {
  const target = resolve(dir);
  if (isThere(dir, target)) return false;
  mkdirSync(dirname(target), { recursive: true });
  const staging = mkdtempSync(join(dirname(target), `.${basename(target)}-`)); // mode 0700
  const made = new Map<string, { certificate: Uint8Array; key: PrivateKey }>();
  try {
    for (const [i, e] of HIERARCHY.entries()) {
      yield;
      say(`${i + 1} of ${HIERARCHY.length}: ${e.cn}`);
      const key = PrivateKey.generate(keyOf(spec, e.pss === true));
      const issuer = e.by === undefined ? undefined : made.get(e.by)!;
      const extensions = [...e.extensions, ...(issuer ? IDENTITY : IDENTITY.slice(0, 1))];
      const certificate = certify({
        subject: nameOf(e.cn),
        key,
        ...(issuer && { issuer }),
        days: e.days,
        extensions,
      });
      made.set(e.file, { certificate, key });
      const pem = key.pem();
      writeFileSync(join(staging, `${e.file}.key`), pem, { mode: 0o600 });
      pem.fill(0);
      const chain = [e.file, ...(e.with ?? [])].map((f) => made.get(f)!.certificate);
      writeFileSync(join(staging, `${e.file}.cert`), Buffer.concat(chain));
    }
    const { key, certificate } = made.get("ssig_subca")!;
    mkdirSync(join(staging, "certs"));
    const pem = key.pem();
    writeFileSync(join(staging, SIGNING_KEY[0]!), Buffer.concat([pem, certificate]), { mode: 0o600 });
    pem.fill(0);
    const der = Buffer.from(
      Buffer.from(certificate)
        .toString()
        .replace(/-----[^-]*-----|\s/g, ""),
      "base64",
    );
    writeFileSync(join(staging, SIGNING_KEY[1]!), der);
    renameSync(staging, target);
  } catch (cause) {
    if (isThere(dir, target)) return false; // somebody else was quicker
    throw cause;
  } finally {
    rmSync(staging, { recursive: true, force: true });
    for (const { key } of made.values()) key[Symbol.dispose]();
  }
  return true;
}
