// A container as a stream of bytes that only its recovery key opens: its configuration and its volumes, to be kept anywhere
// and restored on any device that has the GuestOS.
//
//   "CMLBACK1"  u32 length  keys/<uuid>.recovery  salt[32]        in clear; the rest:
//   u32 length  AES-256-GCM of one piece  tag[16]                 … again and again
//
// The key of the pieces is HKDF-SHA256 of the volumes' key and the salt; the nonce counts the pieces and marks the last, and
// everything in clear is authenticated with the first. So nobody can change, drop, swap or add a piece, or cut the end off,
// and who restores knows that it comes from somebody who has had the key. A piece is a line of JSON or bytes of a file;
// what is only zeros is not sent. Numbers are big-endian.
import { constants, type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { nodeCrypto } from "../../lib/ondemand.ts";
import { regular, synced } from "../../sys/file.ts";
import { derived } from "../../sys/hkdf.ts";
import { Secret } from "../../sys/secret.ts";
import { RECOVERY_MAX, unwrap } from "./recovery.ts";

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

const MAGIC = "CMLBACK1";
const SALT = 32;
const TAG = 16;
/** Bytes of a file in one piece. */
const PIECE = 256 * 1024;
/** The longest piece: its kind, the place in the file, the bytes. */
const PIECE_MAX = 9 + PIECE;
const TEXT_MAX = 1 << 20;
const [ABOUT, FILE, DATA, END] = [1, 2, 3, 4];
const FILES_MAX = 64;
const FILE_MAX = 2 ** 44;

/** What the first piece says. */
export interface About {
  readonly version: 1;
  readonly uuid: string;
  /** The configuration, as it was stored. */
  readonly config: string;
  /** Its signature and certificate, base64, where configurations are signed. */
  readonly signature?: string;
  readonly certificate?: string;
}

/** A file of the container's folder. */
interface Part {
  readonly name: string;
  readonly size: number;
}

/** Which files of a container's folder are its volumes, in a backup. */
export const isPart = (name: string): boolean =>
  /^[A-Za-z0-9_.-]+\.(img|made)$/.test(name) ? !name.endsWith(".plain.img") : name === "not-stacked";

function pieceKey(volumes: Secret, salt: Uint8Array): Secret {
  return volumes.lend((bytes) => Secret.take(derived(bytes, salt, "cml backup")));
}

function nonce(count: number, last: boolean): Uint8Array {
  const bytes = Buffer.alloc(12);
  bytes.writeBigUInt64BE(BigInt(count), 0);
  bytes[8] = last ? 1 : 0;
  return bytes;
}

const u32 = (n: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(n);
  return bytes;
};

const isZero = (bytes: Uint8Array): boolean => {
  for (const b of bytes) if (b !== 0) return false;
  return true;
};

/** The stream. `key`: of the volumes; `wrapped`: the file of recovery.ts. The container does not run meanwhile. */
export async function* backup(
  about: About,
  key: Secret,
  wrapped: Uint8Array,
  folder: string,
  names: readonly string[],
): AsyncGenerator<Uint8Array> {
  const salt = nodeCrypto().randomBytes(SALT);
  const head = Buffer.concat([Buffer.from(MAGIC, "latin1"), u32(wrapped.length), wrapped, salt]);
  using under = pieceKey(key, salt);
  let count = 0;
  const sealed = (kind: number, bytes: Uint8Array): Uint8Array => {
    const last = kind === END;
    const cipher = under.lend((k) => nodeCrypto().createCipheriv("aes-256-gcm", k, nonce(count, last)));
    if (count++ === 0) cipher.setAAD(head);
    const body = Buffer.concat([cipher.update(Buffer.of(kind)), cipher.update(bytes), cipher.final()]);
    return Buffer.concat([u32(body.length), body, cipher.getAuthTag()]);
  };
  yield head;
  yield sealed(ABOUT, Buffer.from(JSON.stringify(about)));
  for (const name of names) {
    // A folder on a disk that was elsewhere meanwhile: no link is followed, no fifo waited for.
    await using file = await open(join(folder, name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    const { size } = await regular(file, name);
    yield sealed(FILE, Buffer.from(JSON.stringify({ name, size } satisfies Part)));
    const piece = Buffer.alloc(PIECE + 8);
    for (let at = 0; at < size; ) {
      const { bytesRead } = await file.read(piece, 8, Math.min(PIECE, size - at), at);
      if (bytesRead === 0) throw new Error(`${name} has become shorter`);
      const bytes = piece.subarray(0, 8 + bytesRead);
      bytes.writeBigUInt64BE(BigInt(at));
      at += bytesRead;
      if (!isZero(bytes.subarray(8))) yield sealed(DATA, bytes);
    }
  }
  yield sealed(END, Buffer.alloc(0));
}

/** The reverse. Push what comes; done() says what it was. Nothing has its name before that, and abort() leaves nothing. */
export class Restoration implements AsyncDisposable {
  readonly #folder: string;
  readonly #recovery: Secret;
  #rest: Buffer = Buffer.alloc(0);
  #key: Secret | undefined;
  #under: Secret | undefined;
  #head: Buffer | undefined;
  #count = 0;
  #about: About | undefined;
  #file: FileHandle | undefined;
  #part: Part | undefined;
  readonly #parts: string[] = [];
  #ended = false;

  /** `folder` is made, and must not be there. The recovery key is taken over. */
  constructor(folder: string, recovery: Secret) {
    this.#folder = folder;
    this.#recovery = recovery;
  }

  async push(chunk: Uint8Array): Promise<void> {
    this.#rest = this.#rest.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#rest, chunk]);
    if (!this.#under && !(await this.#begin())) return;
    for (;;) {
      if (this.#rest.length < 4) return;
      const length = this.#rest.readUInt32BE(0);
      const most = this.#count === 0 ? TEXT_MAX : PIECE_MAX;
      if (length === 0 || length > most) throw new Error(`the backup is damaged: a piece of ${length} bytes`);
      if (this.#rest.length < 4 + length + TAG) return;
      if (this.#ended) throw new Error("the backup is damaged: it goes on after its end");
      await this.#piece(this.#open(length));
    }
  }

  async #begin(): Promise<boolean> {
    const fixed = MAGIC.length + 4;
    if (this.#rest.length < fixed) return false;
    if (this.#rest.subarray(0, MAGIC.length).toString("latin1") !== MAGIC)
      throw new Error("this is no backup");
    const length = this.#rest.readUInt32BE(MAGIC.length);
    if (length > RECOVERY_MAX) throw new Error("the backup is damaged: its key is too long");
    const end = fixed + length + SALT;
    if (this.#rest.length < end) return false;
    this.#key = unwrap(this.#rest.subarray(fixed, fixed + length), this.#recovery);
    this.#under = pieceKey(this.#key, this.#rest.subarray(fixed + length, end));
    this.#head = Buffer.from(this.#rest.subarray(0, end));
    this.#rest = this.#rest.subarray(end);
    await mkdir(this.#folder, { mode: 0o755 });
    return true;
  }

  /** The next piece, if it is the next: the last one has a nonce of its own. */
  #open(length: number): Buffer {
    const body = this.#rest.subarray(4, 4 + length);
    const tag = this.#rest.subarray(4 + length, 4 + length + TAG);
    this.#rest = this.#rest.subarray(4 + length + TAG);
    const last = length === 1;
    const opened = this.#under!.lend((k) =>
      nodeCrypto().createDecipheriv("aes-256-gcm", k, nonce(this.#count, last)),
    );
    if (this.#count === 0) opened.setAAD(this.#head!);
    opened.setAuthTag(tag);
    try {
      const piece = Buffer.concat([opened.update(body), opened.final()]);
      this.#count++;
      return piece;
    } catch (cause) {
      throw new Error(`the backup is damaged: piece ${this.#count}`, { cause });
    }
  }

  async #piece(piece: Buffer): Promise<void> {
    const body = piece.subarray(1);
    const first = this.#about === undefined;
    if (first !== (piece[0] === ABOUT)) throw new Error("the backup is damaged: its pieces are out of order");
    switch (piece[0]) {
      case ABOUT: {
        const about = JSON.parse(body.toString()) as About;
        if (about.version !== 1) throw new Error(`a backup of version ${about.version}, 1 is known here`);
        this.#about = about;
        return;
      }
      case FILE: {
        const { name, size } = JSON.parse(body.toString()) as Part;
        const right = isPart(name) && !this.#parts.includes(name) && this.#parts.length < FILES_MAX;
        if (!right || !Number.isSafeInteger(size) || size < 0 || size > FILE_MAX)
          throw new Error(`the backup is damaged: a file ${JSON.stringify(name)} of ${size} bytes`);
        await this.#close();
        this.#file = await open(join(this.#folder, `${name}.new`), "wx", 0o600);
        await this.#file.truncate(size);
        this.#part = { name, size };
        this.#parts.push(name);
        return;
      }
      case DATA: {
        const at = Number(body.readBigUInt64BE(0));
        const bytes = body.subarray(8);
        if (!this.#file || !this.#part || at + bytes.length > this.#part.size)
          throw new Error("the backup is damaged: bytes of no file");
        await this.#file.write(bytes, 0, bytes.length, at);
        return;
      }
      case END:
        await this.#close();
        this.#ended = true;
        return;
    }
    throw new Error(`the backup is damaged: a piece of kind ${piece[0]}`);
  }

  async #close(): Promise<void> {
    await this.#file?.sync();
    await this.#file?.close();
    this.#file = undefined;
  }

  /** All of it has come: the files get their names. The keys are the caller's to end. */
  async done(): Promise<{ about: About; key: Secret; recovery: Secret }> {
    if (!this.#ended || !this.#about || this.#rest.length > 0) throw new Error("the backup is cut short");
    for (const name of this.#parts) await rename(join(this.#folder, `${name}.new`), join(this.#folder, name));
    await synced(this.#folder);
    return { about: this.#about, key: this.#key!.copy(), recovery: this.#recovery.copy() };
  }

  /** Remove what was begun. */
  async abort(): Promise<void> {
    await this.#file?.close();
    this.#file = undefined;
    if (this.#under) await rm(this.#folder, { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file?.close();
    for (const secret of [this.#key, this.#under, this.#recovery]) secret?.[Symbol.dispose]();
  }
}
