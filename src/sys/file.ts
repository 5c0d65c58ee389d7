// Files that must survive a power cut: the old content or the new one, never half of it. Waiting for the disk happens
// beside the event loop.
import { constants, type FileHandle, lstat, open, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { nodeCrypto } from "../lib/ondemand.ts";
import { ENOENT, isErrno } from "./error.ts";

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY, O_DIRECTORY } = constants;

/** `dir/.name.new`: what a power cut leaves of a write; removed by sweep(). */
const UNFINISHED = /^\..+\.new$/;

/** What was made, renamed or removed in a folder stays so after a power cut. */
export async function synced(path: string): Promise<void> {
  await using folder = await open(path, O_RDONLY | O_DIRECTORY);
  await folder.sync();
}

/** Replace the file as a whole: a temporary one beside it, written, synced, renamed, and the folder synced. */
export async function writeAtomic(path: string, content: Uint8Array | string, mode = 0o600): Promise<void> {
  const fresh = join(dirname(path), `.${basename(path)}.new`);
  try {
    {
      await rm(fresh, { force: true, recursive: true }); // of an interrupted write, or whatever somebody has put there
      await using file = await open(fresh, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, mode);
      await file.writeFile(content);
      await file.chmod(mode);
      await file.sync();
    }
    await rename(fresh, path);
    await synced(dirname(path));
  } catch (cause) {
    await rm(fresh, { force: true }).catch(() => {});
    throw new Error(`write ${path}`, { cause });
  }
}

/** Remove files, there or not, so that they are gone after a power cut as well. */
export async function removeSynced(folder: string, names: readonly string[]): Promise<void> {
  for (const name of names) await rm(join(folder, name), { force: true, recursive: true });
  await synced(folder);
}

/** Remove a file so that its bytes are gone as far as a file system can see to it: overwritten where they lie, first. A disk
 * that moves what it writes keeps them all the same. What is no file, or longer than any secret, is none of ours, and goes too. */
export async function destroy(path: string): Promise<void> {
  try {
    const status = await lstat(path);
    if (status.isFile()) {
      await using file = await open(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK);
      await file.write(nodeCrypto().randomBytes(Math.min(status.size, OVERWRITTEN)), 0, null, 0);
      await file.sync();
    }
    await removeSynced(dirname(path), [basename(path)]);
  } catch (cause) {
    if (isErrno(cause, ENOENT)) return;
    throw new Error(`destroy ${path}`, { cause });
  }
}

const OVERWRITTEN = 1 << 20;

/** Remove what interrupted writes left in a folder. */
export async function sweep(folder: string): Promise<void> {
  for (const name of await readdir(folder))
    if (UNFINISHED.test(name)) await rm(join(folder, name), { force: true, recursive: true });
}

/** A regular file's bytes, if they are not more than `max`; undefined if there is no such file. */
export async function readBounded(path: string, max: number): Promise<Uint8Array | undefined> {
  let file: FileHandle;
  try {
    file = await open(path, O_RDONLY | O_NONBLOCK);
  } catch (cause) {
    if (isErrno(cause, ENOENT)) return undefined;
    throw new Error(`read ${path}`, { cause });
  }
  await using _ = file;
  const { size } = await regular(file, path);
  if (size > max) throw new Error(`read ${path}: ${size} bytes, at most ${max}`);
  const bytes = new Uint8Array(size);
  let at = 0;
  while (at < size) {
    const { bytesRead } = await file.read(bytes, at, size - at, at);
    if (bytesRead === 0) break; // it has become shorter
    at += bytesRead;
  }
  return bytes.subarray(0, at);
}

/** Its status, if it is a file like any other: no device, fifo or folder. */
export async function regular(file: FileHandle, path: string): Promise<{ size: number }> {
  const status = await file.stat();
  if (!status.isFile()) throw new Error(`${path}: not a regular file`);
  return status;
}
