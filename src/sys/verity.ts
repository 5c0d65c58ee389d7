// dm-verity: a hash tree over an image, which libcryptsetup makes, and the table of a device that answers a read only with what
// the tree, and so its root hash, says. Format 1 of the kernel (Documentation/admin-guide/device-mapper/verity.rst) with SHA-256
// and blocks of 4096 bytes, which is what veritysetup(8) makes.
//
// Of a tree's superblock nothing is believed: it is not signed. What could weaken the proof (the algorithm, the sizes) must
// be what it always is; the salt may be anything, since the root hash stands for it.
import { type Cryptsetup, type Context as Handle, logger, open } from "../../ffi/cryptsetup.ts";
import { numbered } from "./devnum.ts";
import { type Target, UUID_LENGTH } from "./dm.ts";
import { address } from "./encode.ts";
import { errnoName, SysError } from "./error.ts";
import { mem, Struct } from "./mem.ts";

export const BLOCK = 4096;
/** Of the device-mapper's tables. */
const SECTOR = 512;
export const SUPERBLOCK = 512;
const MAGIC = "verity\0\0";
const VERSION = 1;
const HASH_TYPE = 1;
const ALGORITHM = "sha256";
const DIGEST = 32;
const SALT_MAX = 256;
/** Sizes stay exact numbers. */
const BLOCKS_MAX = 2n ** 53n / BigInt(BLOCK) - 1n;

// libcryptsetup.h
const CRYPT_LOG_ERROR = 1;
const CRYPT_ANY_SLOT = -1;
const [CHECK_HASH, CREATE_HASH] = [2, 4];
const CRYPT_ACTIVATE_READONLY = 1;

/** What a tree says of itself. */
export interface Superblock {
  /** 32 hexadecimal digits in five groups. */
  readonly uuid: string;
  /** Blocks of the image. */
  readonly blocks: number;
  readonly salt: Uint8Array<ArrayBuffer>;
}

/** The first bytes of a tree, or the reason why it is not taken. */
export function readSuperblock(bytes: Uint8Array): Superblock {
  if (bytes.length < SUPERBLOCK) throw new Error(`${bytes.length} bytes, a superblock has ${SUPERBLOCK}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = (at: number, length: number) =>
    Buffer.from(bytes.subarray(at, at + length)).toString("latin1");
  const must = (what: string, is: string | number, expected: string | number): void => {
    if (is !== expected)
      throw new Error(`${what} ${JSON.stringify(is)}: only ${JSON.stringify(expected)} is taken`);
  };
  must("signature", text(0, MAGIC.length), MAGIC);
  must("version", view.getUint32(8, true), VERSION);
  must("hash type", view.getUint32(12, true), HASH_TYPE);
  must("algorithm", text(32, 32).replace(/\0+$/, ""), ALGORITHM);
  must("data block size", view.getUint32(64, true), BLOCK);
  must("hash block size", view.getUint32(68, true), BLOCK);
  const salt = view.getUint16(80, true);
  if (salt > SALT_MAX) throw new Error(`a salt of ${salt} bytes, at most ${SALT_MAX}`);
  const blocks = view.getBigUint64(72, true);
  if (blocks > BLOCKS_MAX) throw new Error(`${blocks} blocks, at most ${BLOCKS_MAX}`);
  return {
    uuid: Buffer.from(bytes.subarray(16, 32))
      .toString("hex")
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5"),
    blocks: Number(blocks),
    salt: new Uint8Array(bytes.subarray(88, 88 + salt)),
  };
}

let loaded: { library: Cryptsetup; said: string[] } | undefined;

function cryptsetup(): { library: Cryptsetup; said: string[] } {
  if (loaded) return loaded;
  let library: Cryptsetup;
  try {
    library = open();
  } catch (cause) {
    throw new Error("libcryptsetup cannot be loaded (install libcryptsetup12)", { cause });
  }
  const said: string[] = [];
  const log = logger((level, message) => {
    if (level === CRYPT_LOG_ERROR) said.push(message.trim());
  });
  library.crypt_set_log_callback(null, log, null);
  loaded = { library, said };
  return loaded;
}

const zeroTerminated = (s: string): Uint8Array<ArrayBuffer> => {
  const bytes = Buffer.from(`${s}\0`);
  return new Struct(bytes.length).raw(bytes).bytes;
};

/** A struct crypt_device, freed at the end of its block. */
class Context implements Disposable {
  readonly #library: Cryptsetup;
  readonly #said: string[];
  readonly #cd: Handle;
  /** What the library may still read. */
  readonly #kept: unknown[] = [];

  /** `path`: of the tree. */
  constructor(path: string) {
    const { library, said } = cryptsetup();
    this.#library = library;
    this.#said = said;
    said.length = 0;
    const cd = mem(8);
    this.#judge(library.crypt_init(cd, zeroTerminated(path)), `crypt_init(${path})`);
    this.#cd = Number(new DataView(cd.buffer).getBigUint64(0, true)) as Handle;
  }

  /** A result below 0 is an errno; the library has said more about it. */
  #judge(result: number, what: string): void {
    const words = this.#said.splice(0).join(" ");
    if (result >= 0) return;
    const cause = new SysError(-result, what);
    throw words === "" ? cause : new Error(`${words} (${what}: ${errnoName(-result)})`);
  }

  /** struct crypt_params_verity */
  #parameters(
    flags: number,
    image: string,
    { blocks, salt }: Pick<Superblock, "blocks" | "salt">,
  ): Uint8Array {
    const [algorithm, data] = [zeroTerminated(ALGORITHM), zeroTerminated(image)];
    const bytes = salt.length === 0 ? mem(1) : new Struct(salt.length).raw(salt).bytes;
    const params = new Struct(88)
      .u64(address(algorithm))
      .u64(address(data))
      .skip(16) // hash_device, fec_device
      .u64(address(bytes))
      .u32(salt.length)
      .u32(HASH_TYPE)
      .u32(BLOCK)
      .u32(BLOCK)
      .u64(blocks)
      .u64(0) // hash_area_offset: the superblock
      .skip(12) // fec_area_offset, fec_roots
      .u32(flags).bytes;
    this.#kept.push(algorithm, data, bytes, params);
    return params;
  }

  format(flags: number, image: string, head: Superblock): void {
    const params = this.#parameters(flags, image, head);
    const [type, uuid] = [zeroTerminated("VERITY"), zeroTerminated(head.uuid)];
    this.#judge(
      this.#library.crypt_format(this.#cd, type, null, null, uuid, null, 0, params),
      `crypt_format(${image})`,
    );
  }

  load(flags: number, image: string, head: Superblock): void {
    const params = this.#parameters(flags, image, head);
    this.#judge(this.#library.crypt_load(this.#cd, zeroTerminated("VERITY"), params), `crypt_load(${image})`);
  }

  rootHash(): string {
    const [digest, size] = [mem(DIGEST), new Struct(8).u64(DIGEST).bytes];
    this.#judge(
      this.#library.crypt_volume_key_get(this.#cd, CRYPT_ANY_SLOT, digest, size, null, 0),
      "crypt_volume_key_get()",
    );
    return Buffer.from(digest).toString("hex");
  }

  /** What the flags of load() ask for; no device is made. */
  check(root: string): void {
    const digest = new Struct(DIGEST).raw(Buffer.from(root, "hex")).bytes;
    this.#judge(
      this.#library.crypt_activate_by_volume_key(this.#cd, null, digest, DIGEST, CRYPT_ACTIVATE_READONLY),
      "crypt_activate_by_volume_key()",
    );
  }

  [Symbol.dispose](): void {
    this.#library.crypt_free(this.#cd);
    this.#kept.length = 0;
  }
}

/** Write the tree over `image` into the file `tree`, which must be there. Needs neither root nor device-mapper, and
 * blocks for as long as it takes to hash the image. The root hash, in hexadecimal digits. */
export function makeTree(image: string, tree: string, head: Superblock): string {
  using context = new Context(tree);
  context.format(CREATE_HASH, image, head);
  return context.rootHash();
}

/** Whether image and tree are those of this root hash: all of both is read. Blocks as makeTree() does. */
export function checkTree(image: string, tree: string, head: Superblock, root: string): void {
  using context = new Context(tree);
  context.load(CHECK_HASH, image, head);
  context.check(root);
}

/** How libcryptsetup begins the uuid of a verity device, by which the original's tools know it. */
export const UUID_PREFIX = "CRYPT-VERITY-";

/** As libcryptsetup makes it, and cuts it. */
export const deviceUuid = (name: string, { uuid }: Pick<Superblock, "uuid">): string =>
  `${UUID_PREFIX}${uuid.replaceAll("-", "")}-${name}`.slice(0, UUID_LENGTH - 1);

const salted = (salt: Uint8Array): string => (salt.length === 0 ? "-" : Buffer.from(salt).toString("hex"));

/** The whole table of a device over two others, whose numbers are given as st_rdev is. */
export function target({ blocks, salt }: Superblock, root: string, image: number, tree: number): Target {
  const devices = [image, tree].map(numbered);
  const words = [HASH_TYPE, ...devices, BLOCK, BLOCK, blocks, 1, ALGORITHM, root, salted(salt)];
  return { sectors: (blocks * BLOCK) / SECTOR, type: "verity", parameters: words.join(" ") };
}

/** Whether a device's table (dm-ioctl's "table" status) says that it proves the same. */
export function isTable(text: string, { blocks, salt }: Superblock, root: string): boolean {
  const [version, _image, _tree, dataBlock, hashBlock, count, first, algorithm, digest, salting, ...options] =
    text.trim().split(" ");
  return (
    options.length === 0 && // "ignore_corruption" is one
    [version, dataBlock, hashBlock, count, first].join(" ") ===
      [HASH_TYPE, BLOCK, BLOCK, blocks, 1].join(" ") &&
    algorithm === ALGORITHM &&
    digest === root &&
    salting === salted(salt)
  );
}
