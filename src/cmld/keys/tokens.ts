// What a container's token gives: the key of its volumes, for a PIN. The dialogue with scd is the original's (spec/core.md
// 2.3): unlock, unwrap the key or wrap a new one, lock; one after the other for each container.
//
// keys/<uuid>.key has the key as the token has wrapped it, keys/<uuid>.mac the token's proof that it did, and
// token_is_paired in the container's folder says that somebody has set a PIN, and once there was a .mac, that too: one that
// is missing then was taken away. None of them opens anything without the token.

import { existsSync, lstatSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import {
  ContainerTokenType,
  DaemonToToken,
  type IDaemonToToken,
  TokenToDaemon,
  TokenType,
} from "../../../proto/gen/proto.js";
import { Turns } from "../../lib/turns.ts";
import { chain } from "../../sys/error.ts";
import { destroy, readBounded, removeSynced, writeAtomic } from "../../sys/file.ts";
import { SEALED_MAX, unseal } from "../../sys/sealed.ts";
import { Secret } from "../../sys/secret.ts";
import type { ContainerConfig } from "../config.ts";
import { tokenSerial } from "../devices/usb.ts";
import type { Scd } from "../scd.ts";
import { KEY_BYTES, sealedImages } from "./crypt.ts";

const Ask = DaemonToToken.Code;
const Say = TokenToDaemon.Code;

const WRAPPED_MAX = 4096;
const PAIRING_BYTES = 8;
/** Of a new soft token (spec/security.md 1.6). */
const FIRST_PIN = "trustme";
const PAIRED = "token_is_paired";
/** In it, once keys/<uuid>.mac has been written; the original's is empty, and it looks at nothing but whether it is there. */
const PROVEN = "mac\n";

/** What kept a token from giving its key. */
export type Reason =
  | "uninitialised"
  | "unpaired"
  | "internal"
  | "unlock failed"
  | "wrong PIN"
  | "locked till reboot"
  | "lock failed"
  | "corrupt";

export class TokenRefused extends Error {
  override readonly name = "TokenRefused";
  constructor(
    readonly reason: Reason,
    text: string,
    options?: ErrorOptions,
  ) {
    super(text, options);
  }
}

/** Whose token it is. */
export interface Protected {
  readonly uuid: string;
  readonly imageDir: string;
  readonly config: Pick<ContainerConfig, "token_type" | "usb_configs">;
}

export const hasToken = (c: Pick<Protected, "config">): boolean =>
  c.config.token_type !== ContainerTokenType.NONE;

const isSoft = (c: Protected): boolean => c.config.token_type === ContainerTokenType.SOFT;
const dispose = (key: Secret): void => key[Symbol.dispose]();

/** It has ended, or cannot be started. */
const NO_ANSWER = "no answer from scd";

const REFUSALS: Partial<Record<TokenToDaemon.Code, Reason>> = {
  [Say.UNLOCK_FAILED]: "unlock failed",
  [Say.PASSWD_WRONG]: "wrong PIN",
  [Say.LOCKED_TILL_REBOOT]: "locked till reboot",
  [Say.LOCK_FAILED]: "lock failed",
  [Say.TOKEN_ADD_FAILED]: "uninitialised",
};

export class Tokens {
  readonly #scd: Scd;
  readonly #keys: string;
  readonly #tokens: string;
  /** One dialogue with a token after the other. */
  readonly #turns = new Turns();

  /** `base`: the data folder. */
  constructor(scd: Scd, base: string) {
    this.#scd = scd;
    this.#keys = join(base, "keys");
    this.#tokens = join(base, "tokens");
  }

  async #ask(
    c: Protected,
    want: TokenToDaemon.Code,
    request: Omit<IDaemonToToken, "token_uuid">,
  ): Promise<TokenToDaemon> {
    const usb = c.config.token_type === ContainerTokenType.USB;
    const serial = usb ? tokenSerial(c.config.usb_configs) : undefined;
    let answer: TokenToDaemon;
    try {
      answer = await this.#scd.token({
        token_type: usb ? TokenType.USB : TokenType.SOFT,
        token_uuid: c.uuid,
        container_uuid: c.uuid,
        ...(serial !== undefined && { usbtoken_serial: serial }),
        ...request,
      });
    } catch (cause) {
      throw new TokenRefused("internal", NO_ANSWER, { cause });
    }
    if (answer.code === want) return answer;
    const text = answer.error_text || `scd: ${Say[answer.code] ?? answer.code}`;
    throw new TokenRefused(REFUSALS[answer.code] ?? "internal", text);
  }

  /** Make it, if it is not there: seconds for a soft token. */
  add(c: Protected): Promise<void> {
    return this.#turns.take(c.uuid, () => this.#add(c));
  }

  async #add(c: Protected): Promise<void> {
    const file = join(this.#tokens, `${c.uuid}.p12`);
    if (isSoft(c) && this.hasKey(c) && !lstatSync(file, { throwIfNoEntry: false }))
      throw new TokenRefused(
        "uninitialised",
        `${file} is gone, and a new token opens nothing: wipe it to begin anew`,
      );
    await this.#ask(c, Say.TOKEN_ADD_SUCCESSFUL, { code: Ask.TOKEN_ADD });
  }

  /** The secret that pairs this device with its tokens, made when it is first needed, once. */
  #pairing(c: Protected): Promise<Secret> {
    return this.#turns.take("pairing", () => this.#paired(!isSoft(c) && this.isPaired(c)));
  }

  /** `needed`: there is hardware whose PIN begins with it; with another, each try is a wrong one. */
  async #paired(needed: boolean): Promise<Secret> {
    const path = join(this.#keys, "device_pairing_secret");
    const bytes = await readBounded(path, PAIRING_BYTES);
    if (bytes) {
      if (bytes.length === PAIRING_BYTES) return Secret.take(bytes);
      throw new TokenRefused("internal", `${path}: ${bytes.length} bytes, not ${PAIRING_BYTES}`);
    }
    if (needed)
      throw new TokenRefused("internal", `${path} is gone, and no PIN of its token is right without`);
    const fresh = Secret.random(PAIRING_BYTES);
    await this.#write("device_pairing_secret", fresh);
    return fresh;
  }

  async #write(name: string, content: Secret | Uint8Array): Promise<void> {
    await mkdir(this.#keys, { recursive: true, mode: 0o700 });
    const path = join(this.#keys, name);
    await (content instanceof Secret
      ? content.lend((bytes) => writeAtomic(path, bytes))
      : writeAtomic(path, content));
  }

  #at(c: Protected, extension: "key" | "mac" | "sealed"): string {
    return join(this.#keys, `${c.uuid}.${extension}`);
  }

  hasKey(c: Protected): boolean {
    return existsSync(this.#at(c, "key"));
  }

  isPaired(c: Protected): boolean {
    return existsSync(join(c.imageDir, PAIRED));
  }

  async #hadMac(c: Protected): Promise<boolean> {
    const said = await readBounded(join(c.imageDir, PAIRED), WRAPPED_MAX);
    return said !== undefined && Buffer.from(said).toString("latin1") === PROVEN;
  }

  /** From now on nobody exchanges the wrapped key unseen. */
  async #prove(c: Protected, mac: Uint8Array | undefined): Promise<void> {
    if (mac) await this.#write(`${c.uuid}.mac`, mac);
    if (!(await this.#hadMac(c))) await writeAtomic(join(c.imageDir, PAIRED), PROVEN);
  }

  async #unlocked<T>(c: Protected, pin: Secret, work: () => Promise<T>, undo: (made: T) => void): Promise<T> {
    try {
      await this.#add(c);
    } catch (cause) {
      if (!(cause instanceof TokenRefused) || cause.reason !== "uninitialised") throw cause;
      throw new TokenRefused("uninitialised", "its token cannot be used", { cause });
    }
    if (!this.isPaired(c))
      throw new TokenRefused("unpaired", "its PIN has never been changed: change_pin comes first");
    return await this.#while(c, pin, work, undo);
  }

  /** Unlocked while `work` is done; an error of the lock that follows counts only where the work succeeded. */
  async #while<T>(c: Protected, pin: Secret, work: () => Promise<T>, undo: (made: T) => void): Promise<T> {
    using pairing = await this.#pairing(c);
    await pin.lend((token_pin) =>
      pairing.lend((pairing_secret) =>
        this.#ask(c, Say.UNLOCK_SUCCESSFUL, { code: Ask.UNLOCK, token_pin, pairing_secret }),
      ),
    );
    let made: T;
    try {
      made = await work();
    } catch (e) {
      await this.#lock(c).catch(() => {}); // the work's reason is the one to be told
      throw e;
    }
    try {
      await this.#lock(c);
    } catch (e) {
      undo(made);
      throw e;
    }
    return made;
  }

  async #lock(c: Protected): Promise<void> {
    await this.#ask(c, Say.LOCK_SUCCESSFUL, { code: Ask.LOCK });
  }

  /** Is it the PIN? */
  check(c: Protected, pin: Secret): Promise<void> {
    return this.#turns.take(c.uuid, () =>
      this.#unlocked(
        c,
        pin,
        async () => {},
        () => {},
      ),
    );
  }

  /** The key of its volumes; the first time a new one, which is on the disk, wrapped, before it is given. */
  open(c: Protected, pin: Secret): Promise<Secret> {
    return this.#turns.take(c.uuid, () => this.#unlocked(c, pin, () => this.#key(c), dispose));
  }

  async #key(c: Protected): Promise<Secret> {
    if (!this.hasKey(c)) return await this.#fresh(c);
    if (!existsSync(this.#at(c, "mac")) && (await this.#hadMac(c)))
      throw new TokenRefused("corrupt", `${c.uuid}.mac is gone: nobody knows whose key ${c.uuid}.key is`);
    const { key, proven, mac } = await this.#unwrapped(c);
    try {
      if (proven) await this.#prove(c, mac);
      return key;
    } catch (e) {
      key[Symbol.dispose]();
      throw e;
    }
  }

  /** What keys/<uuid>.key says; with a mac where there was none. */
  async #unwrapped(c: Protected): Promise<{ key: Secret; proven: boolean; mac?: Uint8Array | undefined }> {
    const name = `${c.uuid}.key`;
    const wrapped = (await readBounded(this.#at(c, "key"), WRAPPED_MAX)) ?? new Uint8Array();
    const wrapped_mac = await readBounded(this.#at(c, "mac"), 32);
    if (wrapped.length < KEY_BYTES)
      throw new TokenRefused("internal", `${name}: ${wrapped.length} bytes are no wrapped key`);
    const answer = await this.#ask(c, Say.UNWRAPPED_KEY, {
      code: Ask.UNWRAP_KEY,
      wrapped_key: wrapped,
      ...(wrapped_mac && { wrapped_mac }),
    });
    if (!answer.unwrapped_key)
      throw new TokenRefused("internal", answer.error_text || "the token has not unwrapped the key");
    if (answer.unwrapped_key.length === 0)
      throw new TokenRefused("corrupt", answer.error_text || `${name} is damaged`);
    const key = Secret.take(answer.unwrapped_key);
    const mac = answer.wrapped_mac;
    if (key.length === KEY_BYTES) return { key, proven: (wrapped_mac ?? mac) !== undefined, mac };
    key[Symbol.dispose]();
    throw new TokenRefused("corrupt", `${name}: a key of ${key.length} bytes, not ${KEY_BYTES}`);
  }

  async #fresh(c: Protected): Promise<Secret> {
    const waiting = this.#at(c, "sealed");
    if (existsSync(waiting))
      throw new TokenRefused(
        "internal",
        `${waiting} is for a token whose PIN has never been changed: somebody who knows its key may have put it there`,
      );
    const sealed = sealedImages(c.imageDir);
    if (sealed.length > 0)
      throw new TokenRefused(
        "internal",
        `the key of ${sealed[0]} is gone: there is no ${this.#at(c, "key")}; wipe it to begin anew`,
      );
    const key = Secret.random(KEY_BYTES);
    try {
      if (await this.#wrap(c, key)) await this.#prove(c, undefined);
      return key;
    } catch (e) {
      key[Symbol.dispose]();
      throw e;
    }
  }

  /** The key as its token wraps it is on the disk then; whether the token gave a mac. */
  async #wrap(c: Protected, key: Secret): Promise<boolean> {
    const answer = await key.lend((unwrapped_key) =>
      this.#ask(c, Say.WRAPPED_KEY, { code: Ask.WRAP_KEY, unwrapped_key }),
    );
    if (!answer.wrapped_key)
      throw new TokenRefused("internal", answer.error_text || "the token has not wrapped the key");
    if (answer.wrapped_mac) await this.#write(`${c.uuid}.mac`, answer.wrapped_mac);
    await this.#write(`${c.uuid}.key`, answer.wrapped_key);
    return answer.wrapped_mac !== undefined;
  }

  /**
   * The key of volumes that were there before their token (of a restored container, or of one that had none) becomes the
   * token's, a new one's alone: beside one that is in use somebody may have put it there in the place of the right one.
   */
  async #adopt(c: Protected, pin: Secret): Promise<void> {
    const waiting = this.#at(c, "sealed");
    const given = await readBounded(waiting, SEALED_MAX);
    if (!given) return;
    using first = Secret.take(Buffer.from(FIRST_PIN));
    if (isSoft(c) && !pin.equals(first))
      throw new TokenRefused("internal", `${waiting} is for a new token, whose PIN is ${FIRST_PIN}`);
    using key = unseal(given, c.uuid);
    const work = async () => {
      if (!this.hasKey(c)) return void (await this.#wrap(c, key));
      using known = (await this.#unwrapped(c)).key; // interrupted after it was written
      if (!known.equals(key)) throw new TokenRefused("internal", `${waiting} is not the key of its volumes`);
    };
    await this.#while(c, pin, work, () => {});
    await destroy(waiting);
  }

  /** The first change is from the PIN that everybody knows, and pairs the token with this device. */
  changePin(c: Protected, pin: Secret, fresh: Secret): Promise<void> {
    return this.#turns.take(c.uuid, async () => {
      await this.#add(c);
      const paired = this.isPaired(c);
      // A token of the original becomes one of ours, which takes no key without a mac.
      if (paired && this.hasKey(c) && !existsSync(this.#at(c, "mac")) && isSoft(c))
        (await this.#unlocked(c, pin, () => this.#key(c), dispose))[Symbol.dispose]();
      // A soft token's before the change, so that the PIN says whether it is new, also if this is interrupted.
      if (!paired && isSoft(c)) await this.#adopt(c, pin);
      using pairing = await this.#pairing(c);
      const [code, want] = paired
        ? [Ask.CHANGE_PIN, Say.CHANGE_PIN_SUCCESSFUL]
        : [Ask.PROVISION_PIN, Say.PROVISION_PIN_SUCCESSFUL];
      try {
        await pin.lend((token_pin) =>
          fresh.lend((token_newpin) =>
            pairing.lend((pairing_secret) =>
              this.#ask(c, want, { code, token_pin, token_newpin, pairing_secret }),
            ),
          ),
        );
      } catch (cause) {
        if (!(cause instanceof TokenRefused) || cause.message !== NO_ANSWER) throw cause;
        throw new TokenRefused("internal", "nobody knows whether the old PIN is right now or the new one", {
          cause,
        });
      }
      if (paired) return;
      if (!isSoft(c)) await this.#adopt(c, fresh);
      await mkdir(c.imageDir, { recursive: true, mode: 0o755 });
      await writeAtomic(join(c.imageDir, PAIRED), existsSync(this.#at(c, "mac")) ? PROVEN : "");
    });
  }

  /** Nothing that the key protects can be read any more. Its token is destroyed as well; the next one is a new one. */
  destroy(c: Protected): Promise<void> {
    return this.#turns.take(c.uuid, async () => {
      for (const extension of ["key", "mac"] as const) await destroy(this.#at(c, extension));
      if (existsSync(c.imageDir)) await removeSynced(c.imageDir, [PAIRED]);
      if (!hasToken(c)) return;
      // Ours to do: scd could not where somebody has changed the owner of a file.
      for (const extension of ["p12", "tries"]) await destroy(join(this.#tokens, `${c.uuid}.${extension}`));
      await this.#ask(c, Say.TOKEN_REMOVE_SUCCESSFUL, { code: Ask.TOKEN_REMOVE });
    });
  }

  /** For a log: why a token could not be made in time; the next dialogue tries again. */
  addSoon(c: Protected, failed: (line: string) => void): void {
    this.add(c).catch((e) => failed(`its token: ${chain(e)}`));
  }
}
