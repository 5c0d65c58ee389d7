// The data partition, found by its label. The kernel says when a block device appears; then its superblock is read
// (ext4: Documentation/filesystems/ext4/super.rst of Linux). Nobody guesses how long that takes.
import { open, readdir } from "node:fs/promises";
import type { Uevent } from "../sys/uevent.ts";

export const LABEL = "cml-data";
const SUPERBLOCK = 1024; // its place and its size
const [MAGIC_AT, MAGIC] = [0x38, 0xef53];
const [LABEL_AT, LABEL_MAX] = [0x78, 16];
const [STATE_AT, STATE_VALID, STATE_ERROR] = [0x3a, 1, 2];
const [INCOMPAT_AT, INCOMPAT_RECOVER] = [0x60, 4];

export interface Superblock {
  readonly label: string;
  /** Unmounted in order, no journal to replay, no error known. */
  readonly clean: boolean;
}

/** An ext2/3/4 superblock; undefined if it is none. */
export function superblock(bytes: Uint8Array): Superblock | undefined {
  if (bytes.length < SUPERBLOCK) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint16(MAGIC_AT, true) !== MAGIC) return undefined;
  const text = Buffer.from(bytes.subarray(LABEL_AT, LABEL_AT + LABEL_MAX));
  const end = text.indexOf(0);
  const state = view.getUint16(STATE_AT, true);
  const recover = (view.getUint32(INCOMPAT_AT, true) & INCOMPAT_RECOVER) !== 0;
  return {
    label: text.subarray(0, end < 0 ? LABEL_MAX : end).toString("latin1"),
    clean: (state & STATE_VALID) !== 0 && (state & STATE_ERROR) === 0 && !recover,
  };
}

async function look(device: string): Promise<Superblock | undefined> {
  try {
    await using file = await open(device, "r");
    const bytes = Buffer.alloc(SUPERBLOCK);
    const { bytesRead } = await file.read(bytes, 0, SUPERBLOCK, SUPERBLOCK);
    return superblock(bytes.subarray(0, bytesRead));
  } catch {
    return undefined; // no medium in the drive, or gone again
  }
}

export interface Found {
  /** "/dev/vda1" */
  readonly device: string;
  readonly clean: boolean;
}

export class Disks {
  readonly #label: string;
  readonly #tried = new Set<string>();
  readonly #resolve: (found: Found) => void;
  /** It is there: no device that comes later, a container's sealed volume say, is looked into. */
  #over = false;
  /** Resolves when a file system with the label is there. */
  readonly found: Promise<Found>;

  constructor(label = LABEL) {
    this.#label = label;
    const { promise, resolve } = Promise.withResolvers<Found>();
    this.found = promise;
    this.#resolve = resolve;
  }

  /** Everything that is there already. */
  async scan(): Promise<void> {
    for (const name of await readdir("/sys/class/block")) await this.#try(name);
  }

  /** A device event: "add" of a disk or partition, "change" when a medium came. */
  event(e: Uevent): void {
    const name = e.values.get("DEVNAME");
    if (e.values.get("SUBSYSTEM") !== "block" || name === undefined) return;
    if (e.action === "remove") this.#tried.delete(name);
    if (e.action === "change") this.#tried.delete(name);
    if (e.action === "add" || e.action === "change") void this.#try(name);
  }

  async #try(name: string): Promise<void> {
    if (this.#over || /^(loop|ram|zram)\d/.test(name) || this.#tried.has(name)) return;
    this.#tried.add(name);
    const device = `/dev/${name.replaceAll("!", "/")}`; // sysfs writes "/" as "!"
    const found = await look(device);
    if (found?.label !== this.#label) return;
    this.#over = true;
    this.#resolve({ device, clean: found.clean });
  }
}
