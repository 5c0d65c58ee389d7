// A certification authority for tests, by the openssl command line: certificates with any dates, extensions and
// digests, CRLs and OCSP responses, also those that nobody should accept.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Issue {
  /** Who issues; absent: itself. */
  readonly by?: string;
  /** Arguments of `openssl genpkey`, or the name of another certificate whose key it has. */
  readonly key?: readonly string[] | string;
  /** Days from now. */
  readonly from?: number;
  readonly to?: number;
  /** Lines of x509v3_config(5). */
  readonly extensions?: readonly string[];
  readonly digest?: string;
  /** Common name; absent: the name of the files. */
  readonly cn?: string;
}

export const CA = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
export const LEAF = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"];
export const EC = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

/** 20261121120000Z */
const stamp = (days: number): string =>
  `${new Date(Date.now() + days * 86_400_000).toISOString().replace(/[-T:]|\.\d+Z/g, "")}Z`;

export class Authority implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "ca-"));
  #serial = 1000;

  at = (name: string): string => join(this.folder, name);
  read = (name: string): Buffer => readFileSync(this.at(name));

  openssl(...args: string[]): Buffer {
    const ran = Bun.spawnSync(["openssl", ...args], { cwd: this.folder, stderr: "pipe" });
    if (ran.exitCode !== 0) throw new Error(`openssl ${args.join(" ")}: ${ran.stderr}`);
    return ran.stdout;
  }

  /** NAME.key and NAME.pem. Returns the certificate. */
  issue(name: string, how: Issue = {}): Buffer {
    const { by = name, key = EC, from = -1, to = 30, extensions = LEAF, digest = "sha256", cn = name } = how;
    if (typeof key === "string") writeFileSync(this.at(`${name}.key`), this.read(`${key}.key`));
    else this.openssl("genpkey", ...key, "-out", `${name}.key`);
    this.openssl("req", "-new", "-key", `${name}.key`, "-subj", `/CN=${cn}`, "-out", `${name}.csr`);
    this.#database(by);
    writeFileSync(this.at("extensions"), extensions.join("\n"));
    this.openssl(
      ...["ca", "-batch", "-notext", "-config", `${by}.cnf`, "-name", "ca", "-md", digest],
      ...["-keyfile", `${by}.key`, ...(by === name ? ["-selfsign"] : ["-cert", `${by}.pem`])],
      ...["-startdate", stamp(from), "-enddate", stamp(to), "-extfile", "extensions"],
      ...["-in", `${name}.csr`, "-out", `${name}.pem`],
    );
    return this.read(`${name}.pem`);
  }

  #database(by: string): void {
    mkdirSync(this.at(`${by}.new`), { recursive: true });
    writeFileSync(this.at(`${by}.serial`), String(this.#serial++));
    writeFileSync(this.at(`${by}.number`), "01");
    if (!Bun.file(this.at(`${by}.index`)).size) writeFileSync(this.at(`${by}.index`), "");
    writeFileSync(
      this.at(`${by}.cnf`),
      `[ca]\ndatabase=${by}.index\nserial=${by}.serial\ncrlnumber=${by}.number\nnew_certs_dir=${by}.new\npolicy=any\nunique_subject=no\n[any]\ncommonName=supplied\n`,
    );
  }

  /** A CRL of `by` that names these; PEM. */
  crl(by: string, revoked: readonly string[], from = -1, to = 30): Buffer {
    this.#database(by);
    const common = [
      "ca",
      "-config",
      `${by}.cnf`,
      "-name",
      "ca",
      "-md",
      "sha256",
      "-keyfile",
      `${by}.key`,
      "-cert",
      `${by}.pem`,
    ];
    for (const name of revoked) this.openssl(...common, "-revoke", `${name}.pem`);
    this.openssl(
      ...common,
      "-gencrl",
      "-crl_lastupdate",
      stamp(from),
      "-crl_nextupdate",
      stamp(to),
      "-out",
      "crl.pem",
    );
    return this.read("crl.pem");
  }

  /** An OCSP response (DER) about `name`, issued by `by`, signed by `signer`; the index of `by` says what it is. */
  ocsp(by: string, name: string, signer = by, days = 3): Buffer {
    this.openssl(
      ...[
        "ocsp",
        "-index",
        `${by}.index`,
        "-CA",
        `${by}.pem`,
        "-rsigner",
        `${signer}.pem`,
        "-rkey",
        `${signer}.key`,
      ],
      ...["-issuer", `${by}.pem`, "-cert", `${name}.pem`, "-ndays", String(days), "-respout", "response"],
      ...["-noverify"],
    );
    return this.read("response");
  }

  /** A signature by the key of `name`. */
  sign(name: string, data: Uint8Array, ...options: string[]): Buffer {
    writeFileSync(this.at("data"), data);
    return this.openssl("dgst", "-sha512", ...options, "-sign", `${name}.key`, "data");
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }
}
