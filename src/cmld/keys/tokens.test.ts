// cmld's side of a dialogue with a token, with scd's side beside it and no process between: hardware (SoftHSM), what is written
// when, and answers that scd of another version, or another scd, might give.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ContainerTokenType,
  ContainerUsbType,
  DaemonToToken,
  type ITokenToDaemon,
  TokenToDaemon,
} from "../../../proto/gen/proto.js";
import { judge } from "../../../test/scd.ts";
import { SOFTHSM, softhsm, useSofthsm } from "../../../test/softhsm.ts";
import { Pkcs11Module } from "../../pki/pkcs11.ts";
import { Device } from "../../scd/device.ts";
import { answer } from "../../scd/requests.ts";
import { Tokens as Kept } from "../../scd/tokens.ts";
import { seal } from "../../sys/sealed.ts";
import { Secret } from "../../sys/secret.ts";
import type { Scd } from "../scd.ts";
import { type Protected, type Reason, TokenRefused, Tokens } from "./tokens.ts";

const UUID = "6f6b7def-2abe-407c-8cb9-fe4e92394f2a";
const base = mkdtempSync(join(tmpdir(), "tokens-"));
const tokens = join(base, "tokens");
const images = join(base, "containers", UUID);
let hsm: ReturnType<typeof softhsm>;
let web: Protected;
let theirs: Kept;
const { Code: Say } = TokenToDaemon;

beforeAll(() => {
  for (const folder of [tokens, images]) mkdirSync(folder, { recursive: true });
  hsm = softhsm("web", "648219");
  useSofthsm(hsm.config);
  theirs = new Kept(tokens, SOFTHSM);
  web = {
    uuid: UUID,
    imageDir: images,
    config: {
      token_type: ContainerTokenType.USB,
      usb_configs: [{ id: "1:2", serial: hsm.serial, assign: false, type: ContainerUsbType.TOKEN, port: "" }],
    },
  };
});
afterAll(() => {
  Pkcs11Module.open(SOFTHSM)[Symbol.dispose](); // the next test has another
  hsm[Symbol.dispose]();
  rmSync(base, { recursive: true });
});

/** Requests and answers go through their bytes, as between processes. */
function scd(instead: (code: DaemonToToken.Code) => ITokenToDaemon | undefined = () => undefined): Scd {
  const around = { tokens, readable: [], device: new Device(tokens), keys: theirs, gone: () => {} };
  return {
    ...judge(),
    async token(request) {
      const asked = DaemonToToken.decode(DaemonToToken.encode(request));
      const said = instead(asked.code) ?? (await answer(around, asked, undefined));
      return TokenToDaemon.decode(TokenToDaemon.encode(said));
    },
  };
}

const pin = (text: string) => Secret.take(Buffer.from(text));
const file = (name: string) => join(base, "keys", name);

async function refused(work: Promise<unknown>): Promise<Reason | undefined> {
  try {
    await work;
  } catch (e) {
    if (e instanceof TokenRefused) return e.reason;
    throw e;
  }
  return undefined;
}

test("a token that is hardware: paired, its key made once and wrapped in 104 bytes, the same from then on", async () => {
  const ours = new Tokens(scd(), base);
  expect(await refused(ours.open(web, pin("1234")))).toBe("unpaired");
  expect(await refused(ours.changePin(web, pin("wrong"), pin("1234")))).toBe("internal");
  await ours.changePin(web, pin("648219"), pin("1234"));
  expect(existsSync(join(images, "token_is_paired"))).toBe(true);
  expect(statSync(file("device_pairing_secret")).size).toBe(8);
  using first = await ours.open(web, pin("1234"));
  expect(first.length).toBe(96);
  expect(statSync(file(`${UUID}.key`)).size).toBe(104);
  expect(existsSync(file(`${UUID}.mac`))).toBe(false); // RFC 3394 needs none
  using again = await ours.open(web, pin("1234"));
  expect(again.equals(first)).toBe(true);
  await ours.changePin(web, pin("1234"), pin("5678"));
  expect(await refused(ours.check(web, pin("1234")))).toBe("wrong PIN");
  using later = await ours.open(web, pin("5678"));
  expect(later.equals(first)).toBe(true);
});

test("one that is not plugged in is not initialised; a key that was changed is corrupt, and costs no try", async () => {
  const ours = new Tokens(scd(), base);
  const [config] = web.config.usb_configs;
  const other = { ...web, config: { ...web.config, usb_configs: [{ ...config!, serial: "another" }] } };
  expect(await refused(ours.open(other, pin("5678")))).toBe("uninitialised");
  const wrapped = readFileSync(file(`${UUID}.key`));
  const changed = Buffer.from(wrapped);
  changed[50]! ^= 1;
  writeFileSync(file(`${UUID}.key`), changed);
  expect(await refused(ours.open(web, pin("5678")))).toBe("corrupt");
  writeFileSync(file(`${UUID}.key`), wrapped.subarray(0, 80));
  expect(await refused(ours.open(web, pin("5678")))).toBe("internal");
  writeFileSync(file(`${UUID}.key`), wrapped);
  expect(existsSync(join(tokens, `${UUID}.tries`))).toBe(false);
});

test("the pairing secret is one, whoever needs it first; where it is gone no PIN of hardware is tried", async () => {
  const before = readFileSync(file("device_pairing_secret"));
  rmSync(file("device_pairing_secret"));
  const asked: DaemonToToken.Code[] = [];
  const noted = new Tokens(
    scd((code) => {
      asked.push(code);
      return undefined;
    }),
    base,
  );
  expect(await refused(noted.open(web, pin("5678")))).toBe("internal");
  expect(await refused(noted.changePin(web, pin("5678"), pin("1")))).toBe("internal");
  expect(asked).not.toContain(DaemonToToken.Code.UNLOCK);
  expect(asked).not.toContain(DaemonToToken.Code.CHANGE_PIN);
  expect(existsSync(file("device_pairing_secret"))).toBe(false);

  const secrets: string[] = [];
  const any: Scd = {
    ...judge(),
    async token({ code, pairing_secret }) {
      if (pairing_secret) secrets.push(Buffer.from(pairing_secret).toString("hex"));
      const first = code === DaemonToToken.Code.PROVISION_PIN;
      return TokenToDaemon.decode(
        TokenToDaemon.encode({ code: first ? Say.PROVISION_PIN_SUCCESSFUL : Say.TOKEN_ADD_SUCCESSFUL }),
      );
    },
  };
  const ours = new Tokens(any, base);
  const others = ["a", "b", "c"].map((x) => ({
    ...web,
    uuid: UUID.replace(/a$/, x),
    imageDir: join(base, "containers", x),
  }));
  await Promise.all(others.map((c) => ours.changePin(c, pin("648219"), pin("1234"))));
  expect(new Set(secrets).size).toBe(1);
  expect(readFileSync(file("device_pairing_secret")).toString("hex")).toBe(secrets[0]!);
  writeFileSync(file("device_pairing_secret"), before);
});

test("answers that make no sense are refusals, and the token is locked all the same", async () => {
  for (const [code, said, reason] of [
    [DaemonToToken.Code.UNLOCK, { code: Say.CMD_UNKNOWN }, "internal"],
    [DaemonToToken.Code.UNLOCK, { code: Say.LOCKED_TILL_REBOOT }, "locked till reboot"],
    [DaemonToToken.Code.UNWRAP_KEY, { code: Say.UNWRAPPED_KEY }, "internal"],
    [DaemonToToken.Code.UNWRAP_KEY, { code: Say.UNWRAPPED_KEY, unwrapped_key: Buffer.alloc(95) }, "corrupt"],
    [DaemonToToken.Code.LOCK, { code: Say.LOCK_FAILED }, "lock failed"],
    [DaemonToToken.Code.TOKEN_ADD, { code: Say.TOKEN_ADD_FAILED }, "uninitialised"],
  ] as const) {
    const asked: DaemonToToken.Code[] = [];
    const ours = new Tokens(
      scd((c) => {
        asked.push(c);
        return c === code ? said : undefined;
      }),
      base,
    );
    expect(await refused(ours.open(web, pin("5678")))).toBe(reason);
    if (code === DaemonToToken.Code.UNWRAP_KEY) expect(asked.at(-1)).toBe(DaemonToToken.Code.LOCK);
  }
});

test("two at a time are served one after the other; what is destroyed is gone", async () => {
  const ours = new Tokens(scd(), base);
  const [a, b] = await Promise.all([ours.open(web, pin("5678")), ours.open(web, pin("5678"))]);
  expect(a.equals(b)).toBe(true);
  for (const key of [a, b]) key[Symbol.dispose]();
  writeFileSync(join(images, "data.img"), "");
  rmSync(file(`${UUID}.key`));
  expect(await refused(ours.open(web, pin("5678")))).toBe("internal");
  rmSync(join(images, "data.img"));
  using _ = await ours.open(web, pin("5678"));
  await ours.destroy(web);
  expect(existsSync(file(`${UUID}.key`))).toBe(false);
  expect(existsSync(join(images, "token_is_paired"))).toBe(false);
  expect(await refused(ours.open(web, pin("5678")))).toBe("unpaired");
  // What was wiped here has not changed the token: it is still paired, and its PIN is the last one.
  expect(await refused(ours.changePin(web, pin("wrong"), pin("1")))).toBe("internal");
  await ours.changePin(web, pin("5678"), pin("9999"));
  using other = await ours.open(web, pin("9999"));
  expect(other.equals(_)).toBe(false);
});

test("a wrapped key without its proof is taken once, from the original, and never from a token that is ours", async () => {
  const uuid = "f815386c-25b6-4a09-9ee4-4b65b977f167";
  const ours = new Tokens(scd(), base);
  const imageDir = join(base, "containers", uuid);
  const paired = join(imageDir, "token_is_paired");
  const soft = { uuid, imageDir, config: { token_type: ContainerTokenType.SOFT, usb_configs: [] } };
  mkdirSync(imageDir);
  const golden = (extension: string) => `test/data/tokens/${uuid}.${extension}`;
  copyFileSync(golden("p12"), join(tokens, `${uuid}.p12`));
  copyFileSync(golden("key"), file(`${uuid}.key`));
  writeFileSync(paired, "");
  using first = await ours.open(soft, pin("newpin1"));
  const mac = readFileSync(file(`${uuid}.mac`));
  expect(readFileSync(paired, "utf8")).toBe("mac\n");
  rmSync(file(`${uuid}.mac`));
  expect(await refused(ours.open(soft, pin("newpin1")))).toBe("corrupt");
  writeFileSync(paired, ""); // as the original left it
  using again = await ours.open(soft, pin("newpin1"));
  expect(again.equals(first)).toBe(true);
  expect(readFileSync(file(`${uuid}.mac`))).toEqual(mac);
  // A change of the PIN makes the token's file ours, and the proof comes first.
  rmSync(file(`${uuid}.mac`));
  writeFileSync(paired, "");
  await ours.changePin(soft, pin("newpin1"), pin("other"));
  expect(readFileSync(file(`${uuid}.mac`))).toEqual(mac);
  using later = await ours.open(soft, pin("other"));
  expect(later.equals(first)).toBe(true);
  rmSync(file(`${uuid}.mac`));
  writeFileSync(paired, "");
  expect(await refused(ours.open(soft, pin("other")))).toBe("corrupt");
}, 60_000);

test("the key of restored volumes is taken by a new token alone, at the first change of its PIN", async () => {
  const uuid = "bd8f2102-ab15-4e6c-8fce-8fa4451d3730";
  const imageDir = join(base, "containers", uuid);
  const paired = join(imageDir, "token_is_paired");
  const soft = { uuid, imageDir, config: { token_type: ContainerTokenType.SOFT, usb_configs: [] } };
  const waiting = file(`${uuid}.sealed`);
  const there = () =>
    ["sealed", "key", "mac"].filter((extension) => existsSync(file(`${uuid}.${extension}`)));
  using restored = Secret.random(96);
  using planted = Secret.random(96);
  const put = (key: Secret) => writeFileSync(waiting, seal(key, uuid));
  const ours = new Tokens(scd(), base);
  copyFileSync(`test/data/tokens/${uuid}.p12`, join(tokens, `${uuid}.p12`));
  put(restored);
  expect(await refused(ours.open(soft, pin("trustme")))).toBe("unpaired");
  expect(await refused(ours.changePin(soft, pin("wrong"), pin("mine")))).toBe("internal");
  expect(there()).toEqual(["sealed"]);

  // Interrupted: before the key is written, before it is destroyed where it waited, before the PIN is another.
  for (const code of [
    DaemonToToken.Code.WRAP_KEY,
    DaemonToToken.Code.LOCK,
    DaemonToToken.Code.PROVISION_PIN,
  ]) {
    const failing = new Tokens(
      scd((asked) => (asked === code ? { code: Say.CMD_UNKNOWN } : undefined)),
      base,
    );
    expect(await refused(failing.changePin(soft, pin("trustme"), pin("mine")))).toBe("internal");
    expect(existsSync(paired)).toBe(false);
  }
  expect(there()).toEqual(["key", "mac"]);
  put(planted);
  expect(await refused(ours.changePin(soft, pin("trustme"), pin("mine")))).toBe("internal");
  put(restored);
  await ours.changePin(soft, pin("trustme"), pin("mine"));
  expect(there()).toEqual(["key", "mac"]);
  expect(readFileSync(paired, "utf8")).toBe("mac\n");
  using opened = await ours.open(soft, pin("mine"));
  expect(opened.equals(restored)).toBe(true);

  // From then on nobody's: neither at a start, nor at a change where it is made to look like the first.
  for (const extension of ["key", "mac"]) rmSync(file(`${uuid}.${extension}`));
  put(planted);
  expect(await refused(ours.open(soft, pin("mine")))).toBe("internal");
  await ours.changePin(soft, pin("mine"), pin("other"));
  rmSync(paired);
  expect(await refused(ours.changePin(soft, pin("other"), pin("mine")))).toBe("internal");
  expect(await refused(ours.changePin(soft, pin("trustme"), pin("mine")))).toBe("wrong PIN");
  expect(there()).toEqual(["sealed"]);
}, 60_000);

test("a token that is hardware takes it when its PIN is paired with this device", async () => {
  const uuid = UUID.replace(/a$/, "d");
  const card = { ...web, uuid, imageDir: join(base, "containers", uuid) };
  const ours = new Tokens(scd(), base);
  using restored = Secret.random(96);
  writeFileSync(file(`${uuid}.sealed`), seal(restored, uuid));
  expect(await refused(ours.changePin(card, pin("wrong"), pin("1")))).toBe("internal");
  await ours.changePin(card, pin("9999"), pin("8888"));
  expect(existsSync(file(`${uuid}.sealed`))).toBe(false);
  using opened = await ours.open(card, pin("8888"));
  expect(opened.equals(restored)).toBe(true);
  rmSync(file(`${uuid}.key`));
  writeFileSync(file(`${uuid}.sealed`), seal(restored, uuid));
  expect(await refused(ours.open(card, pin("8888")))).toBe("internal");
});
