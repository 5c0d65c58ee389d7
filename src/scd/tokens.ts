// Tokens, whatever they are made of, and who may speak to which: one after the other for each token.

import { existsSync } from "node:fs";
import { Turns } from "../lib/turns.ts";
import { isUuid } from "../lib/uuid.ts";
import { Pkcs11Module } from "../pki/pkcs11.ts";
import { SoftToken } from "./softtoken.ts";
import { UsbToken } from "./usbtoken.ts";

/** More containers than a device has ids for. */
const TOKENS_MAX = 4096;

/** Where OpenSC's module is, on Debian, Fedora and Alpine, if device.conf names none. */
const MODULES = [
  `/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/opensc-pkcs11.so`,
  "/usr/lib64/opensc-pkcs11.so",
  "/usr/lib/opensc-pkcs11.so",
];
/** The original's have 11 digits, PKCS #11 allows 16 characters. */
const SERIAL = /^[\x21-\x7e]{1,16}$/;

export class Tokens {
  readonly #soft = new Map<string, SoftToken>();
  readonly #usb = new Map<string, UsbToken>();
  readonly #turns = new Turns();
  /** `module`: the PKCS #11 module for hardware, if it is not one of the usual. */
  constructor(
    readonly folder: string,
    readonly module?: string,
  ) {}

  #pkcs11(): Pkcs11Module {
    const path = this.module ?? MODULES.find(existsSync);
    if (path === undefined) throw new Error(`no PKCS #11 module: none of ${MODULES.join(", ")} is there`);
    return Pkcs11Module.open(path);
  }

  usb(uuid: string, serial: string): UsbToken {
    if (!isUuid(uuid)) throw new Error(`token_uuid ${JSON.stringify(uuid.slice(0, 64))}: not a uuid`);
    if (!SERIAL.test(serial))
      throw new Error(`usbtoken_serial ${JSON.stringify(serial.slice(0, 64))}: no serial number`);
    let token = this.#usb.get(uuid);
    if (token?.serial !== serial) {
      token?.lock();
      if (this.#usb.size >= TOKENS_MAX) throw new Error(`more than ${TOKENS_MAX} tokens`);
      token = new UsbToken(this.folder, uuid, serial, () => this.#pkcs11());
      this.#usb.set(uuid, token);
    }
    return token;
  }

  soft(uuid: string): SoftToken {
    if (!isUuid(uuid)) throw new Error(`token_uuid ${JSON.stringify(uuid.slice(0, 64))}: not a uuid`);
    let token = this.#soft.get(uuid);
    if (!token) {
      if (this.#soft.size >= TOKENS_MAX) throw new Error(`more than ${TOKENS_MAX} tokens`);
      token = new SoftToken(this.folder, uuid);
      this.#soft.set(uuid, token);
    }
    return token;
  }

  /** Nobody else speaks to this token meanwhile. */
  inTurn<T>(uuid: string, work: () => Promise<T>): Promise<T> {
    return this.#turns.take(uuid, work);
  }

  forget(uuid: string): void {
    this.#soft.delete(uuid);
    this.#usb.delete(uuid);
  }
}
