// A token without hardware: SoftHSM's PKCS #11 module, with a token of its own in a folder of its own.
import { dlopen, FFIType as T } from "bun:ffi";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Pkcs11Module } from "../src/pki/pkcs11.ts";
import { address } from "../src/sys/encode.ts";
import { lasting, mem, Struct } from "../src/sys/mem.ts";
import { Secret } from "../src/sys/secret.ts";

export const SOFTHSM = [
  "/usr/lib/softhsm/libsofthsm2.so",
  "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
].find(existsSync)!;

/** The folder of the tokens, and what SOFTHSM2_CONF is to be; for a process that has not loaded the module yet. */
export function softhsm(
  label: string,
  pin: string,
): { folder: string; config: string; serial: string } & Disposable {
  const folder = mkdtempSync(join(tmpdir(), "softhsm-"));
  const config = join(folder, "softhsm2.conf");
  mkdirSync(join(folder, "tokens"));
  writeFileSync(
    config,
    `directories.tokendir = ${folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n`,
  );
  addToken(config, label, pin);
  const serial = serialOf(config, label);
  return { folder, config, serial, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

/** The serial number of the token that is called `label`. */
export function serialOf(config: string, label: string): string {
  const shown = Bun.spawnSync(["softhsm2-util", "--show-slots"], {
    env: { ...process.env, SOFTHSM2_CONF: config },
  });
  const slots = shown.stdout.toString().split(/^Slot /m);
  const slot = slots.find((s) => new RegExp(`Label: +${label} *$`, "m").test(s)) ?? "";
  return /Serial number:\s+([0-9a-f]{16})/.exec(slot)![1]!;
}

export function addToken(config: string, label: string, pin: string): void {
  const made = Bun.spawnSync(
    ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "87654321", "--pin", pin],
    { env: { ...process.env, SOFTHSM2_CONF: config } },
  );
  if (made.exitCode !== 0) throw new Error(`softhsm2-util: ${made.stderr}${made.stdout}`);
}

/** pkcs11t.h: CKA_CLASS, CKA_TOKEN, CKA_PRIVATE, CKA_LABEL, CKA_VALUE, CKA_CERTIFICATE_TYPE, CKA_SUBJECT, CKA_ID. */
const [CLASS, TOKEN, PRIVATE, LABEL, VALUE, CERTIFICATE_TYPE, SUBJECT, ID] = [
  0x0, 0x1, 0x2, 0x3, 0x11, 0x80, 0x101, 0x102,
];
const [CERTIFICATE, X509] = [1, 0];

/** A certificate (PEM) into the token that is called `token`: softhsm2-util knows keys alone. */
export function addCertificate(
  config: string,
  token: string,
  pin: string,
  label: string,
  id: number,
  pem: string,
): void {
  useSofthsm(config);
  using module = Pkcs11Module.open(SOFTHSM);
  using session = module.session(module.token((t) => t.label === token, token));
  using secret = Secret.take(Buffer.from(pin));
  session.login(secret);
  const [first = ""] = pem.split("-----END");
  const attributes: readonly (readonly [number, Uint8Array])[] = [
    [CLASS, new Struct(8).u64(CERTIFICATE).bytes],
    [CERTIFICATE_TYPE, new Struct(8).u64(X509).bytes],
    [TOKEN, lasting(Buffer.of(1))],
    [PRIVATE, lasting(Buffer.of(0))],
    [LABEL, lasting(Buffer.from(label))],
    [ID, lasting(Buffer.of(id))],
    [SUBJECT, lasting(Buffer.of(0x30, 0))],
    [VALUE, lasting(Buffer.from(first.replace(/-----[^-]*-----|\s/g, ""), "base64"))],
  ];
  const template = new Struct(24 * attributes.length);
  for (const [type, value] of attributes) template.u64(type).u64(address(value)).u64(value.length);
  const result = session.functions.C_CreateObject(session.handle, template.bytes, attributes.length, mem(8));
  if (Number(result) !== 0 || attributes.length === 0) throw new Error(`C_CreateObject: ${result}`);
}

/** For a module that is loaded into this process: it asks the C library, whose environment is not process.env. */
export function useSofthsm(config: string): void {
  const { symbols } = dlopen("libc.so.6", {
    setenv: { args: [T.cstring, T.cstring, T.i32], returns: T.i32 },
  });
  symbols.setenv(Buffer.from("SOFTHSM2_CONF\0"), Buffer.from(`${config}\0`), 1);
}
