// Requests, tokens and wrapped keys as nobody would send or store them: every request gets an answer in one line, nothing but a right PIN
// opens a token, and libcrypto keeps nothing of it. The seed is fixed (test/chance.ts).
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DaemonToToken, type IDaemonToToken, TokenToDaemon, TokenType } from "../../proto/gen/proto.js";
import { broken, Chance, SEED, spent } from "../../test/chance.ts";
import { counts } from "../../test/counts.ts";
import { BadMessage } from "../lib/protobuf.ts";
import { openPkcs12 } from "../pki/pkcs12.ts";
import { Corrupt, unwrap } from "../pki/wrap.ts";
import { chain } from "../sys/error.ts";
import { Secret } from "../sys/secret.ts";
import { Device } from "./device.ts";
import { answer } from "./requests.ts";
import { Tokens } from "./tokens.ts";

const UUID = "f815386c-25b6-4a09-9ee4-4b65b977f167";
const PIN = "newpin1";
const [P12, KEY] = ["p12", "key"].map((e) => readFileSync(`test/data/tokens/${UUID}.${e}`)) as [
  Buffer,
  Buffer,
];
const Ask = DaemonToToken.Code;

/** Each costs a derivation of keys, a decryption, or a write that is synced. */
const INPUTS = counts.fuzzInputs / 5;
const INPUT_MS = 5000;
const HELD_MAX = 16 * 2 ** 20;
const WARM = 1000;

const folder = mkdtempSync(join(tmpdir(), "scdfuzz-"));
beforeAll(() => copyFileSync(`test/data/tokens/${UUID}.p12`, join(folder, `${UUID}.p12`)));
afterAll(() => rmSync(folder, { recursive: true }));

function resident(): number {
  Bun.gc(true);
  return process.memoryUsage().rss;
}

const DER = [
  "3082ffff",
  "3080",
  "0284ffffffff",
  "0202ffff",
  "02047fffffff",
  "0500",
  "06092a864886f70d01050d",
].map((h) => Buffer.from(h, "hex"));

/** A made key has seconds; only a token that is there is spoken to. */
class Known extends Tokens {
  override soft(uuid: string) {
    if (uuid !== UUID) throw new Error("another token");
    return super.soft(uuid);
  }
}

/** How many were tried. */
async function all(
  name: string,
  input: (chance: Chance) => Buffer,
  target: (bytes: Buffer) => unknown,
): Promise<number> {
  const chance = new Chance(SEED);
  let held = 0;
  const until = performance.now() + counts.fuzzSeconds * 1000;
  let tried = 0;
  for (; tried < INPUTS || performance.now() < until; tried++) {
    if (tried === WARM) held = resident(); // what is loaded once is not counted
    const bytes = input(chance);
    const began = process.cpuUsage();
    try {
      await target(bytes);
    } catch (cause) {
      throw new Error(`${name}: input ${tried}: ${bytes.toString("hex").slice(0, 400)}`, { cause });
    }
    expect(spent(began)).toBeLessThan(INPUT_MS);
  }
  expect(resident() - held).toBeLessThan(HELD_MAX);
  return tried;
}

const TIME = 240_000 + counts.fuzzSeconds * 1000;

test(
  "fuzz: PKCS #12",
  async () => {
    using pin = Secret.take(Buffer.from(PIN));
    let opened = 0;
    const tried = await all(
      "p12",
      (chance) => broken(chance, [P12], DER),
      (bytes) => {
        try {
          using _ = openPkcs12("x", bytes, pin).key;
          opened++;
        } catch (e) {
          if (!(e instanceof Error) || /[\x00-\x1f\x7f]/.test(chain(e))) throw e;
        }
      },
    );
    expect(opened).toBeLessThan(tried / 4);
  },
  TIME,
);

test(
  "fuzz: wrapped keys",
  async () => {
    using pin = Secret.take(Buffer.from(PIN));
    using token = openPkcs12("x", P12, pin).key;
    using right = unwrap(token, KEY);
    await all(
      "key",
      (chance) =>
        broken(chance, [KEY], [Buffer.from([0, 2, 0, 0]), Buffer.from("ffffffff", "hex"), Buffer.alloc(4)]),
      (bytes) => {
        try {
          using made = unwrap(token, bytes);
          if (made.equals(right) && !bytes.equals(KEY)) throw new Error("another wrapped key gives the same");
        } catch (e) {
          if (!(e instanceof Corrupt)) throw e;
        }
      },
    );
  },
  TIME,
);

test(
  "fuzz: requests about tokens",
  async () => {
    const request = (code: DaemonToToken.Code, more: Partial<IDaemonToToken> = {}) =>
      Buffer.from(DaemonToToken.encode({ code, token_uuid: UUID, ...more }));
    const [pin, fresh] = [Buffer.from("not it"), Buffer.from("other")];
    const seeds = [
      request(Ask.LOCK),
      request(Ask.UNLOCK, { token_pin: pin, pairing_secret: Buffer.alloc(8) }),
      request(Ask.CHANGE_PIN, { token_pin: pin, token_newpin: fresh, pairing_secret: Buffer.alloc(8) }),
      request(Ask.PROVISION_PIN, { token_pin: pin, token_newpin: fresh, pairing_secret: Buffer.alloc(8) }),
      request(Ask.WRAP_KEY, { unwrapped_key: Buffer.alloc(96) }),
      request(Ask.UNWRAP_KEY, { wrapped_key: KEY, wrapped_mac: Buffer.alloc(32) }),
      request(Ask.TOKEN_ADD),
      request(Ask.TOKEN_ADD, { token_type: TokenType.USB, usbtoken_serial: "0123456789abcdef" }),
      request(Ask.TOKEN_QUERY_PAIR_STATE),
    ];
    const readable: string[] = [];
    const around = {
      tokens: folder,
      readable,
      device: new Device(folder),
      keys: new Known(folder),
      gone: () => {},
    };
    const codes = new Map<number, number>();
    await all(
      "request",
      (chance) =>
        broken(chance, seeds, [Buffer.from(UUID), Buffer.from([8, 2]), Buffer.from([0x12, 0xff, 0xff, 3])]),
      async (bytes) => {
        rmSync(join(folder, `${UUID}.tries`), { force: true }); // so that each PIN is really tried
        let decoded: DaemonToToken;
        try {
          decoded = DaemonToToken.decode(new Uint8Array(bytes));
        } catch (e) {
          if (e instanceof BadMessage) return;
          throw e;
        }
        if (decoded.code === Ask.TOKEN_REMOVE) return;
        const said = await answer(around, decoded, undefined);
        expect(TokenToDaemon.Code[said.code]).toBeDefined();
        expect(said.error_text ?? "").not.toMatch(/[\x00-\x1f\x7f]/);
        codes.set(said.code, (codes.get(said.code) ?? 0) + 1);
        TokenToDaemon.encode(said);
      },
    );
    expect(codes.get(TokenToDaemon.Code.UNLOCK_SUCCESSFUL)).toBeUndefined();
    expect(codes.get(TokenToDaemon.Code.PASSWD_WRONG)).toBeGreaterThan(0);
    expect(codes.get(TokenToDaemon.Code.LOCK_SUCCESSFUL)).toBeGreaterThan(0);
  },
  TIME,
);
