// Is a hash tree (dm-verity) the one of a root hash? From the root down each block of it must have the hash that stands in
// the block above, so the lowest one, which the kernel compares the image with, is the one that was signed. The image itself
// is not read: that is a hundredth of the work of building the tree again.
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { nodeCrypto } from "../../lib/ondemand.ts";
import { regular } from "../../sys/file.ts";
import { BLOCK, readSuperblock, SUPERBLOCK } from "../../sys/verity.ts";

const DIGEST = 32;
const PER_BLOCK = BLOCK / DIGEST;
/** Blocks that are read and hashed at once. */
const PIECE = 64;

/** The reason why the file at `path` is not the tree with this root over an image of `size` bytes; undefined: it is. */
export async function wrongTree(path: string, size: number, root: string): Promise<string | undefined> {
  await using file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  const { size: bytes } = await regular(file, path);
  try {
    const head = readSuperblock(await part(file, 0, SUPERBLOCK));
    if (head.blocks * BLOCK !== size)
      return `it is over ${head.blocks} blocks of ${BLOCK} bytes, the image has ${size} bytes`;
    // How many blocks each level has, the lowest first; on the disk the highest comes first.
    const levels: number[] = [];
    for (let below = head.blocks; below > 1; ) {
      below = Math.ceil(below / PER_BLOCK);
      levels.push(below);
    }
    if ((levels.reduce((a, b) => a + b, 0) + 1) * BLOCK > bytes) return `${bytes} bytes are too few for it`;
    let above = Buffer.from(root, "hex");
    let at = BLOCK; // after the superblock
    for (const count of levels.reverse()) {
      const level = Buffer.alloc(count * BLOCK);
      for (let from = 0; from < count; from += PIECE) {
        const many = Math.min(PIECE, count - from);
        level.set(await part(file, at + from * BLOCK, many * BLOCK), from * BLOCK);
        for (let i = from; i < from + many; i++) {
          const block = level.subarray(i * BLOCK, (i + 1) * BLOCK);
          const digest = nodeCrypto().createHash("sha256").update(head.salt).update(block).digest();
          if (!digest.equals(above.subarray(i * DIGEST, (i + 1) * DIGEST)))
            return `its block ${(at - BLOCK) / BLOCK + i} does not have the hash that it should`;
        }
      }
      above = level;
      at += count * BLOCK;
    }
    return undefined;
  } catch (e) {
    return (e as Error).message;
  }
}

async function part(file: FileHandle, from: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; ) {
    const { bytesRead } = await file.read(bytes, at, length - at, from + at);
    if (bytesRead === 0) throw new Error(`it ends after ${from + at} bytes`);
    at += bytesRead;
  }
  return bytes;
}
