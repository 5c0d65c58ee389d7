// scd as its client sees it: the real daemon on a real socket, the original's bytes, and what must be refused.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { createHash, X509Certificate } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  DaemonToToken,
  HashAlgo,
  type IDaemonToToken,
  TokenToDaemon,
  TokenType,
} from "../../proto/gen/proto.js";
import { addToken, SOFTHSM, serialOf, softhsm } from "../../test/softhsm.ts";
import { certify } from "../pki/issue.ts";
import { PrivateKey } from "../pki/key.ts";
import { AF_UNIX, connectUnix, SOCK_NONBLOCK, SOCK_SEQPACKET, socket } from "../sys/calls.ts";
import { Fd } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { receiving, sendPacket } from "../sys/packets.ts";
import { sendMessage } from "../sys/scm.ts";
import { Secret } from "../sys/secret.ts";
import { Device } from "./device.ts";

const Ask = DaemonToToken.Code;
const Say = TokenToDaemon.Code;
const base = mkdtempSync(join(tmpdir(), "scd-"));
const at = (...parts: string[]) => join(base, ...parts);
const path = at("socket");
/** Tokens of SoftHSM beside the first. */
const CARDS = [0, 1, 2, 3];
let daemon: ReturnType<typeof Bun.spawn>;
let hsm: ReturnType<typeof softhsm>;

beforeAll(async () => {
  for (const folder of ["tokens", "operatingsystems", "containers"]) mkdirSync(at(folder));
  copyFileSync("test/data/signing/ssig_rootca.cert", at("tokens/ssig_rootca.cert"));
  for (const extension of ["conf", "sig", "cert"])
    copyFileSync(`test/data/signing/dmos-1.${extension}`, at(`operatingsystems/dmos-1.${extension}`));
  const made = Bun.spawn([process.execPath, "src/main.ts", "scd", "--first-key", base], { stdin: "ignore" });
  expect(await made.exited).toBe(0);
  hsm = softhsm("web", "648219");
  for (const i of CARDS) addToken(hsm.config, `card ${i}`, `PIN of ${i}`);
  daemon = Bun.spawn([process.execPath, "src/main.ts", "scd", base, "--socket", path, "--pkcs11", SOFTHSM], {
    stdout: "pipe",
    env: { ...process.env, SOFTHSM2_CONF: hsm.config },
  });
  const reader = (daemon.stdout as ReadableStream<Uint8Array>).getReader();
  for (let said = ""; !said.includes("listening on"); ) {
    const { value, done } = await reader.read();
    if (done) throw new Error(`scd ended: ${said}`);
    said += Buffer.from(value).toString();
  }
  reader.releaseLock();
}, 60_000);

afterAll(async () => {
  daemon.kill();
  expect(await daemon.exited).toBe(0);
  rmSync(base, { recursive: true });
  hsm[Symbol.dispose]();
});

function connect(): Fd {
  const fd = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
  now(connectUnix(fd.n, path));
  return fd;
}

/** The next answer; "closed" if the daemon ends the connection. */
function next(connection: Fd): Promise<TokenToDaemon | "closed"> {
  return new Promise((resolve) => {
    const r = receiving(
      connection,
      ({ bytes }) => {
        resolve(TokenToDaemon.decode(bytes));
        r[Symbol.dispose]();
      },
      () => resolve("closed"),
    );
  });
}

async function ask(request: IDaemonToToken, fd?: Fd): Promise<TokenToDaemon> {
  using connection = connect();
  sendPacket(connection, DaemonToToken.encode(request), fd);
  const answer = await next(connection);
  if (answer === "closed") throw new Error("closed");
  return answer;
}

const file = (name: string) => readFileSync(`test/data/signing/${name}`);
const buffers = (): IDaemonToToken => ({
  code: Ask.CRYPTO_VERIFY_BUF,
  hash_algo: HashAlgo.SHA512,
  verify_data_buf: file("dmos-1.conf"),
  verify_sig_buf: file("dmos-1.sig"),
  verify_cert_buf: file("dmos-1.cert"),
});

test("signatures: by buffer and by path", async () => {
  expect((await ask(buffers())).code).toBe(Say.CRYPTO_VERIFY_GOOD);
  const paths = (folder: string) => ({
    code: Ask.CRYPTO_VERIFY_FILE,
    hash_algo: HashAlgo.SHA512,
    verify_data_file: at(folder, "dmos-1.conf"),
    verify_sig_file: at(folder, "dmos-1.sig"),
    verify_cert_file: at(folder, "dmos-1.cert"),
  });
  expect((await ask(paths("operatingsystems"))).code).toBe(Say.CRYPTO_VERIFY_GOOD);
  for (const [folder, why] of [
    ["containers", "ENOENT"],
    ["tokens", "only files below"],
    ["operatingsystems/../tokens", "only files below"],
  ] as const) {
    const refused = await ask(paths(folder));
    expect(refused.code).toBe(Say.CRYPTO_VERIFY_ERROR);
    expect(refused.error_text).toContain(why);
  }
});

test("what does not verify says which part and why", async () => {
  const tampered = await ask({ ...buffers(), verify_data_buf: Buffer.from("x") });
  expect(tampered).toMatchObject({ code: Say.CRYPTO_VERIFY_BAD_SIGNATURE });
  expect(tampered.error_text).toEndWith("it does not match the data");
  const bare = await ask({ ...buffers(), verify_cert_buf: file("dmos-1.cert").subarray(0, 2500) });
  expect(bare.code).toBe(Say.CRYPTO_VERIFY_BAD_CERTIFICATE);
  expect((await ask({ ...buffers(), hash_algo: HashAlgo.SHA1 })).code).toBe(Say.CRYPTO_VERIFY_ERROR);
  expect((await ask({ code: Ask.CRYPTO_VERIFY_BUF })).error_text).toBe(
    "data, signature and certificates are needed",
  );
});

test("roots that are registered later count at once", async () => {
  using key = PrivateKey.generate("ec:P-256");
  const root = certify({
    subject: [["CN", "mine"]],
    key,
    days: 1,
    extensions: [
      ["basicConstraints", "critical,CA:TRUE"],
      ["keyUsage", "critical,keyCertSign,digitalSignature"],
    ],
  });
  const data = Buffer.from("data");
  const mine = { ...buffers(), verify_data_buf: data, verify_sig_buf: key.sign(data), verify_cert_buf: root };
  expect((await ask(mine)).code).toBe(Say.CRYPTO_VERIFY_BAD_CERTIFICATE);
  writeFileSync(at("tokens/localca_rootca.cert"), root);
  expect((await ask(mine)).code).toBe(Say.CRYPTO_VERIFY_LOCALLY_SIGNED);
  mkdirSync(at("tokens/ca"));
  writeFileSync(at("tokens/ca/mine"), root);
  expect((await ask(mine)).code).toBe(Say.CRYPTO_VERIFY_GOOD);
});

test("hashes: of a descriptor, of a path, of a buffer; SHA-1 where nothing is said", async () => {
  const bytes = Buffer.alloc(3_000_001, "abc");
  writeFileSync(at("outside"), bytes);
  const digest = (algorithm: string) => createHash(algorithm).update(bytes).digest("hex");
  const hex = (answer: TokenToDaemon) => Buffer.from(answer.hash_value ?? []).toString("hex");
  using fd = new Fd(openSync(at("outside"), "r"));
  const asked = { code: Ask.CRYPTO_HASH_FILE, hash_algo: HashAlgo.SHA256, hash_file: at("outside") };
  expect(hex(await ask(asked, fd))).toBe(digest("sha256"));
  expect((await ask(asked)).error_text).toContain("only files below");
  symlinkSync(at("outside"), at("containers/link"));
  expect((await ask({ ...asked, hash_file: at("containers/link") })).error_text).toContain("ELOOP");
  writeFileSync(at("containers/inside"), bytes);
  expect(hex(await ask({ code: Ask.CRYPTO_HASH_FILE, hash_file: at("containers/inside") }))).toBe(
    digest("sha1"),
  );
  expect(
    hex(
      await ask({
        code: Ask.CRYPTO_HASH_BUF,
        hash_algo: HashAlgo.SHA512,
        hash_buf: bytes.subarray(0, 100_000),
      }),
    ),
  ).toBe(createHash("sha512").update(bytes.subarray(0, 100_000)).digest("hex"));
  using folder = new Fd(openSync(base, "r"));
  expect(await ask(asked, folder)).toMatchObject({ code: Say.CRYPTO_HASH_ERROR });
});

test("the device's identity: made once, its request pulled, only a certificate for its key taken", async () => {
  for (const secret of ["device.key", "device.cert", "device.csr"])
    expect(statSync(at("tokens", secret)).mode & 0o077).toBe(0);
  const own = new X509Certificate(readFileSync(at("tokens/device.cert")));
  const uuid = /^URI:UUID:(.*)$/.exec(own.subjectAltName ?? "")?.[1];
  expect(readFileSync(at("tokens/device_id.conf"), "utf8")).toBe(`uuid: "${uuid}"\n`);
  const pulled = await ask({ code: Ask.PULL_DEVICE_CSR });
  expect(pulled).toMatchObject({ code: Say.DEVICE_CSR });
  expect(Buffer.from(pulled.device_csr!)).toEqual(readFileSync(at("tokens/device.csr")));
  using other = PrivateKey.generate("ec:P-256");
  const foreign = certify({ subject: [["CN", "x"]], key: other, days: 1, extensions: [] });
  const refused = await ask({ code: Ask.PUSH_DEVICE_CERT, device_cert: foreign });
  expect(refused).toMatchObject({ code: Say.DEVICE_CERT_ERROR });
  expect(refused.error_text).toBe("the certificate is for another key than this device's");
  expect((await ask({ code: Ask.PUSH_DEVICE_CERT, device_cert: Buffer.from("x") })).code).toBe(
    Say.DEVICE_CERT_ERROR,
  );
  using issuer = PrivateKey.generate("ec:P-256");
  const issued = readFileSync(at("tokens/device.key"));
  using key = PrivateKey.read("device.key", issued);
  const root = certify({ subject: [["CN", "ca"]], key: issuer, days: 1, extensions: [] });
  const good = certify({
    subject: [["CN", "x"]],
    key,
    issuer: { certificate: root, key: issuer },
    days: 1,
    extensions: [],
  });
  expect((await ask({ code: Ask.PUSH_DEVICE_CERT, device_cert: good })).code).toBe(Say.DEVICE_CERT_OK);
  expect(readFileSync(at("tokens/device.cert"))).toEqual(Buffer.from(good));
  writeFileSync(at("tokens/provisioning"), "another boot");
  expect((await ask({ code: Ask.PULL_DEVICE_CSR })).code).toBe(Say.DEVICE_PROV_ERROR);
  expect((await ask({ code: Ask.PUSH_DEVICE_CERT, device_cert: good })).code).toBe(Say.DEVICE_PROV_ERROR);
});

test("many requests on one connection are answered in order; hostile ones end their connection alone", async () => {
  using connection = connect();
  for (let i = 0; i < 20; i++)
    sendPacket(connection, DaemonToToken.encode({ code: Ask.CRYPTO_HASH_BUF, hash_buf: Buffer.from([i]) }));
  for (let i = 0; i < 20; i++) {
    const answer = await next(connection);
    expect(answer !== "closed" && Buffer.from(answer.hash_value!).toString("hex")).toBe(
      createHash("sha1")
        .update(Buffer.from([i]))
        .digest("hex"),
    );
  }
  const hostile: Uint8Array[][] = [
    [Buffer.from([0, 0, 0])],
    [Buffer.from([0xff, 0xff, 0xff, 0xff])],
    [Buffer.from([0, 0, 0, 2]), Buffer.from([1, 2, 3])],
    [Buffer.from([0, 0, 0, 9]), Buffer.from([1])],
  ];
  for (const packets of hostile) {
    using bad = connect();
    for (const packet of packets) sendMessage(bad, packet);
    expect(await next(bad)).toBe("closed");
  }
  using garbled = connect();
  sendPacket(garbled, Buffer.from("garbage"));
  expect(await next(garbled)).toMatchObject({ code: Say.CMD_UNKNOWN });
  expect(await next(garbled)).toBe("closed");
  expect((await ask({ code: Ask.DERIVE_KEY })).code).toBe(Say.CMD_UNKNOWN);
  expect((await ask({ code: Ask.CRYPTO_HASH_BUF })).code).toBe(Say.CRYPTO_HASH_OK);
});

test("a passphrase encrypts the device's key, and is needed from then on", async () => {
  const passphrase = "hPz0/kQmWb7rN4";
  const tokens = mkdtempSync(join(tmpdir(), "scd-device-"));
  mkdirSync(join(tokens, "tokens"));
  const argv = [process.execPath, "src/main.ts", "scd", "--first-key", tokens];
  const made = Bun.spawn(argv, { stdin: Buffer.from(passphrase) });
  expect(await made.exited).toBe(0);
  const pem = readFileSync(join(tokens, "tokens/device.key"));
  expect(pem.toString()).toStartWith("-----BEGIN ENCRYPTED PRIVATE KEY-----");
  const from = ["-in", join(tokens, "tokens/device.key"), "-passin", `pass:${passphrase}`];
  const checked = Bun.spawnSync(["openssl", "pkey", ...from, "-noout"]);
  expect(checked.exitCode).toBe(0);
  const device = new Device(join(tokens, "tokens"));
  const certificate = readFileSync(join(tokens, "tokens/device.cert"));
  expect(device.accept(certificate)).rejects.toThrow("device.key");
  device.protectWith(Secret.take(Buffer.from(passphrase)));
  await device.accept(certificate);
  rmSync(tokens, { recursive: true });
}, 60_000);

// --- tokens ---------------------------------------------------------------------------

const TOKEN = "f815386c-25b6-4a09-9ee4-4b65b977f167";
const utf8 = (text: string) => Buffer.from(text);
const pairing_secret = Buffer.alloc(8, 7);
const on = (code: DaemonToToken.Code, more: Partial<IDaemonToToken> = {}): IDaemonToToken => ({
  code,
  token_uuid: TOKEN,
  ...more,
});
const unlock = (pin: string) => ask(on(Ask.UNLOCK, { token_pin: utf8(pin), pairing_secret }));
const change = (code: DaemonToToken.Code, pin: string, fresh: string) =>
  ask(on(code, { token_pin: utf8(pin), token_newpin: utf8(fresh), pairing_secret }));
const golden = (extension: string) => readFileSync(`test/data/tokens/${TOKEN}.${extension}`);

test("a token of the original: unlocked, its wrapped key given out with a proof for the next time", async () => {
  writeFileSync(at(`tokens/${TOKEN}.p12`), golden("p12"));
  expect((await ask(on(Ask.TOKEN_ADD))).code).toBe(Say.TOKEN_ADD_SUCCESSFUL);
  const locked = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key") }));
  expect(locked).toMatchObject({ code: Say.UNWRAPPED_KEY, error_text: `${TOKEN}: the token is locked` });
  expect(locked.unwrapped_key).toBeUndefined();
  expect((await unlock("newpin1")).code).toBe(Say.UNLOCK_SUCCESSFUL);
  const first = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key") }));
  expect(first.unwrapped_key?.length).toBe(96);
  const wrapped_mac = first.wrapped_mac!;
  expect(wrapped_mac.length).toBe(32);
  const second = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key"), wrapped_mac }));
  expect(second.unwrapped_key).toEqual(first.unwrapped_key);
  expect(second.wrapped_mac).toBeUndefined();
  // Whoever knows the public key could have wrapped another.
  const unwrapped_key = Buffer.alloc(96, 1);
  const other = await ask(on(Ask.WRAP_KEY, { unwrapped_key }));
  expect(other.wrapped_key?.length).toBe(648);
  const forged = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: other.wrapped_key, wrapped_mac }));
  expect(forged).toMatchObject({ code: Say.UNWRAPPED_KEY, unwrapped_key: new Uint8Array() });
  const own = await ask(
    on(Ask.UNWRAP_KEY, { wrapped_key: other.wrapped_key, wrapped_mac: other.wrapped_mac }),
  );
  expect(Buffer.from(own.unwrapped_key!)).toEqual(unwrapped_key);
  expect((await ask(on(Ask.LOCK))).code).toBe(Say.LOCK_SUCCESSFUL);
  const after = await ask(on(Ask.WRAP_KEY, { unwrapped_key }));
  expect(after).toMatchObject({ code: Say.WRAPPED_KEY, error_text: `${TOKEN}: the token is locked` });
}, 60_000);

test("wrong PINs of three requests count together; an unlocked token asks as well", async () => {
  expect((await unlock("newpin1")).code).toBe(Say.UNLOCK_SUCCESSFUL);
  const wrong = await unlock("newpin2");
  expect(wrong).toMatchObject({
    code: Say.PASSWD_WRONG,
    error_text: "the PIN is wrong; 2 more in this boot",
  });
  expect((await change(Ask.CHANGE_PIN, "x", "y")).code).toBe(Say.CHANGE_PIN_FAILED);
  expect((await unlock("newpin1")).code).toBe(Say.UNLOCK_SUCCESSFUL); // forgotten
  expect((await unlock("")).code).toBe(Say.PASSWD_WRONG);
  expect((await change(Ask.PROVISION_PIN, "x", "y")).code).toBe(Say.PROVISION_PIN_FAILED);
  expect((await change(Ask.CHANGE_PIN, "x", "y")).error_text).toContain("locked until the next boot");
  for (const refused of [
    await unlock("newpin1"),
    await change(Ask.CHANGE_PIN, "newpin1", "y"),
    await change(Ask.PROVISION_PIN, "newpin1", "y"),
  ])
    expect(refused.code).toBe(Say.LOCKED_TILL_REBOOT);
  rmSync(at(`tokens/${TOKEN}.tries`)); // as another boot would
}, 60_000);

test("a change of the PIN makes the file dearer to guess, and keeps the key, which needs its proof from then on", async () => {
  expect((await unlock("newpin1")).code).toBe(Say.UNLOCK_SUCCESSFUL);
  const { wrapped_mac } = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key") }));
  expect((await change(Ask.CHANGE_PIN, "newpin1", "other")).code).toBe(Say.CHANGE_PIN_SUCCESSFUL);
  expect((await unlock("newpin1")).code).toBe(Say.PASSWD_WRONG);
  expect((await unlock("other")).code).toBe(Say.UNLOCK_SUCCESSFUL);
  const key = await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key"), wrapped_mac }));
  expect(key.unwrapped_key?.length).toBe(96);
  expect(await ask(on(Ask.UNWRAP_KEY, { wrapped_key: golden("key") }))).toMatchObject({
    unwrapped_key: new Uint8Array(),
    error_text: "the proof that this token wrapped the key is gone",
  });
  expect((await ask(on(Ask.LOCK))).code).toBe(Say.LOCK_SUCCESSFUL);
  const shown = Bun.spawnSync([
    ...["openssl", "pkcs12", "-in", at(`tokens/${TOKEN}.p12`), "-passin", "pass:other", "-info", "-noout"],
  ]);
  expect(shown.stderr.toString()).toContain("MAC: sha256, Iteration 600000");
  expect((await ask(on(Ask.CHANGE_PIN, { token_pin: utf8("other") }))).code).toBe(Say.CHANGE_PIN_FAILED);
  expect((await ask(on(Ask.PROVISION_PIN, { token_pin: utf8("other") }))).code).toBe(Say.CHANGE_PIN_FAILED);
}, 60_000);

/** A token that takes its time to open. */
function dear(path: string, pin: string, iterations = 2_000_000): void {
  using key = PrivateKey.generate("rsa:2048");
  const certificate = certify({ subject: [["CN", "x"]], key, days: 1, extensions: [] });
  const pem = at("dear.pem");
  writeFileSync(pem, Buffer.concat([key.pem(), certificate]));
  const made = Bun.spawnSync([
    ...[
      "openssl",
      "pkcs12",
      "-export",
      "-in",
      pem,
      "-iter",
      String(iterations),
      "-passout",
      `pass:${pin}`,
      "-out",
      path,
    ],
  ]);
  if (!made.success) throw new Error(made.stderr.toString());
}

test("while a token derives its key, others are answered, and its own requests wait their turn", async () => {
  const token_uuid = "6f6b7def-2abe-407c-8cb9-fe4e92394f2c";
  let over = 0;
  const open = (pin: string) =>
    ask({ code: Ask.UNLOCK, token_uuid, token_pin: utf8(pin), pairing_secret }).finally(() => over++);
  dear(at(`tokens/${token_uuid}.p12`), "slow");
  const answers = Promise.all([open("wrong"), open("slow")]);
  for (let i = 0; i < 50; i++)
    expect((await ask({ code: Ask.CRYPTO_HASH_BUF, hash_buf: utf8("x") })).code).toBe(Say.CRYPTO_HASH_OK);
  expect(over).toBe(0);
  expect((await answers).map(({ code }) => code)).toEqual([Say.PASSWD_WRONG, Say.UNLOCK_SUCCESSFUL]);
  expect(existsSync(at(`tokens/${token_uuid}.tries`))).toBe(false);
}, 60_000);

test("a new token: made once, with the PIN that everybody knows; removed with all that is there of it", async () => {
  const token_uuid = "6f6b7def-2abe-407c-8cb9-fe4e92394f2a";
  const [one, two] = await Promise.all([1, 2].map(() => ask({ code: Ask.TOKEN_ADD, token_uuid })));
  expect([one!.code, two!.code]).toEqual([Say.TOKEN_ADD_SUCCESSFUL, Say.TOKEN_ADD_SUCCESSFUL]);
  const made = readFileSync(at(`tokens/${token_uuid}.p12`));
  const opened = { code: Ask.UNLOCK, token_uuid, token_pin: utf8("trustme"), pairing_secret };
  expect((await ask(opened)).code).toBe(Say.UNLOCK_SUCCESSFUL);
  expect((await ask({ code: Ask.TOKEN_ADD, token_uuid })).code).toBe(Say.TOKEN_ADD_SUCCESSFUL);
  expect(readFileSync(at(`tokens/${token_uuid}.p12`))).toEqual(made);
  const shown = Bun.spawnSync([
    ...["openssl", "pkcs12", "-in", at(`tokens/${token_uuid}.p12`), "-passin", "pass:trustme", "-nokeys"],
  ]);
  expect(shown.stdout.toString()).toContain(
    `subject=C = DE, ST = Bayern, L = Muenchen, O = Fraunhofer, OU = AISEC, OU = gyroidos, CN = ${token_uuid}`,
  );
  expect((await ask({ ...opened, token_pin: utf8("wrong") })).code).toBe(Say.PASSWD_WRONG);
  expect((await ask({ code: Ask.TOKEN_REMOVE, token_uuid })).code).toBe(Say.TOKEN_REMOVE_SUCCESSFUL);
  for (const extension of ["p12", "tries"])
    expect(existsSync(at(`tokens/${token_uuid}.${extension}`))).toBe(false);
  expect((await ask(opened)).code).toBe(Say.UNLOCK_FAILED);
}, 120_000);

test("a token that is hardware: provisioned, paired with this device, its key wrapped in the original's 104 bytes", async () => {
  const token_uuid = "6f6b7def-2abe-407c-8cb9-fe4e92394f2b";
  const usb = (code: DaemonToToken.Code, more: Partial<IDaemonToToken> = {}) =>
    ask({
      code,
      token_uuid,
      token_type: TokenType.USB,
      usbtoken_serial: hsm.serial,
      pairing_secret,
      ...more,
    });
  const pins = (pin: string, fresh: string) => ({ token_pin: utf8(pin), token_newpin: utf8(fresh) });
  const absent = await usb(Ask.TOKEN_ADD, { usbtoken_serial: "none" });
  expect(absent).toMatchObject({
    code: Say.TOKEN_ADD_FAILED,
    error_text: "token none: there is no such token",
  });
  expect((await usb(Ask.TOKEN_ADD)).code).toBe(Say.TOKEN_ADD_SUCCESSFUL);
  expect((await usb(Ask.PROVISION_PIN, pins("000000", "1234"))).code).toBe(Say.PROVISION_PIN_FAILED);
  expect((await usb(Ask.PROVISION_PIN, pins("648219", "1234"))).code).toBe(Say.PROVISION_PIN_SUCCESSFUL);
  expect((await usb(Ask.UNLOCK, { token_pin: utf8("648219") })).code).toBe(Say.PASSWD_WRONG);
  // Another device has another pairing secret.
  const elsewhere = await usb(Ask.UNLOCK, { token_pin: utf8("1234"), pairing_secret: Buffer.alloc(8, 1) });
  expect(elsewhere.code).toBe(Say.PASSWD_WRONG);
  expect((await usb(Ask.UNLOCK, { token_pin: utf8("1234") })).code).toBe(Say.UNLOCK_SUCCESSFUL);
  const unwrapped_key = Buffer.alloc(96, 5);
  const { wrapped_key, wrapped_mac } = await usb(Ask.WRAP_KEY, { unwrapped_key });
  expect(wrapped_key?.length).toBe(104);
  expect(wrapped_mac).toBeUndefined();
  const back = await usb(Ask.UNWRAP_KEY, { wrapped_key });
  expect(Buffer.from(back.unwrapped_key!)).toEqual(unwrapped_key);
  const changed = Buffer.from(wrapped_key!);
  changed[20]! ^= 1;
  const corrupt = await usb(Ask.UNWRAP_KEY, { wrapped_key: changed });
  expect(corrupt).toMatchObject({ code: Say.UNWRAPPED_KEY, unwrapped_key: new Uint8Array() });
  expect((await usb(Ask.LOCK)).code).toBe(Say.LOCK_SUCCESSFUL);
  expect((await usb(Ask.UNWRAP_KEY, { wrapped_key })).error_text).toEndWith("the token is locked");
  expect((await usb(Ask.CHANGE_PIN, pins("1234", "5678"))).code).toBe(Say.CHANGE_PIN_SUCCESSFUL);
  expect((await usb(Ask.UNLOCK, { token_pin: utf8("5678") })).code).toBe(Say.UNLOCK_SUCCESSFUL);
  expect((await usb(Ask.UNWRAP_KEY, { wrapped_key })).unwrapped_key?.length).toBe(96);
  expect((await usb(Ask.LOCK)).code).toBe(Say.LOCK_SUCCESSFUL);
  for (let i = 0; i < 3; i++)
    expect((await usb(Ask.UNLOCK, { token_pin: utf8("no") })).code).toBe(Say.PASSWD_WRONG);
  expect((await usb(Ask.UNLOCK, { token_pin: utf8("5678") })).code).toBe(Say.LOCKED_TILL_REBOOT);
  expect((await usb(Ask.TOKEN_REMOVE)).code).toBe(Say.TOKEN_REMOVE_SUCCESSFUL);
}, 60_000);

test("four cards and four soft tokens at once, with right and wrong PINs: each has its own key, and its own count", async () => {
  const all = [...CARDS, ...CARDS].map((i, n) => {
    const card = n < CARDS.length;
    const token_uuid = `6f6b7def-2abe-407c-8cb9-fe4e92394${card ? "c" : "d"}0${i}`;
    const whose = card
      ? { token_type: TokenType.USB, usbtoken_serial: serialOf(hsm.config, `card ${i}`) }
      : { token_type: TokenType.SOFT };
    const speak = (code: DaemonToToken.Code, more: Partial<IDaemonToToken> = {}) =>
      ask({ code, token_uuid, pairing_secret, ...whose, ...more });
    if (!card) dear(at(`tokens/${token_uuid}.p12`), `PIN of ${i}`, 100_000);
    return {
      i,
      token_uuid,
      speak,
      first: utf8(`PIN of ${i}`),
      pin: utf8(`new ${n}`),
      key: Buffer.alloc(96, n + 1),
    };
  });
  const codes = (answers: TokenToDaemon[]) => new Set(answers.map(({ code }) => code));
  const pins = await Promise.all(
    all.map((t) => t.speak(Ask.PROVISION_PIN, { token_pin: t.first, token_newpin: t.pin })),
  );
  expect(codes(pins)).toEqual(new Set([Say.PROVISION_PIN_SUCCESSFUL]));
  // Each third comes with the PIN of the next one.
  const wrong = (n: number) => n % 3 === 1;
  const unlocked = await Promise.all(
    all.map((t, n) => t.speak(Ask.UNLOCK, { token_pin: wrong(n) ? all[(n + 1) % 8]!.pin : t.pin })),
  );
  for (const [n, t] of all.entries()) {
    expect(`${n} ${Say[unlocked[n]!.code]}`).toBe(`${n} ${wrong(n) ? "PASSWD_WRONG" : "UNLOCK_SUCCESSFUL"}`);
    expect(`${n} ${existsSync(at(`tokens/${t.token_uuid}.tries`))}`).toBe(`${n} ${wrong(n)}`);
  }
  const right = all.filter((_, n) => !wrong(n));
  const wrapped = await Promise.all(right.map((t) => t.speak(Ask.WRAP_KEY, { unwrapped_key: t.key })));
  const back = await Promise.all(
    right.map((t, n) => {
      const { wrapped_key, wrapped_mac } = wrapped[n]!;
      return t.speak(Ask.UNWRAP_KEY, {
        ...(wrapped_key && { wrapped_key }),
        ...(wrapped_mac && { wrapped_mac }),
      });
    }),
  );
  for (const [n, t] of right.entries()) expect(Buffer.from(back[n]!.unwrapped_key!)).toEqual(t.key);
  expect(codes(await Promise.all(all.map((t) => t.speak(Ask.LOCK))))).toEqual(new Set([Say.LOCK_SUCCESSFUL]));
}, 60_000);

test("requests about tokens that make no sense are refused, and scd lives", async () => {
  for (const [request, code] of [
    [{ code: Ask.TOKEN_ADD, token_uuid: "../../etc/passwd" }, Say.TOKEN_ADD_FAILED],
    [{ code: Ask.TOKEN_REMOVE, token_uuid: "*" }, Say.TOKEN_REMOVE_FAILED],
    [on(Ask.TOKEN_ADD, { token_type: TokenType.NONE }), Say.TOKEN_ADD_FAILED],
    [on(Ask.TOKEN_ADD, { token_type: TokenType.USB }), Say.TOKEN_ADD_FAILED],
    [on(Ask.UNLOCK), Say.UNLOCK_FAILED],
    [on(Ask.UNLOCK, { token_pin: Buffer.alloc(257, "x") }), Say.UNLOCK_FAILED],
    [on(Ask.WRAP_KEY), Say.WRAPPED_KEY],
    [on(Ask.UNWRAP_KEY), Say.UNWRAPPED_KEY],
    [on(Ask.UNWRAP_KEY, { wrapped_key: Buffer.alloc(5000) }), Say.UNWRAPPED_KEY],
    [{ code: Ask.TOKEN_QUERY_PAIR_STATE }, Say.CMD_UNKNOWN],
  ] as const) {
    const refused = await ask(request);
    expect(refused.code).toBe(code);
    expect(refused.error_text).not.toBe("");
  }
});
