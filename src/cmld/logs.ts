// Reading logs that src/sys/journal.ts writes (the daemon's, a container's console) for a client: what is there, the
// newest lines of it, and what comes.
import { type FileHandle, open, readdir, readlink, rm, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { O_CLOEXEC, O_NONBLOCK, read } from "../sys/calls.ts";
import { ENOENT, isErrno } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { logFiles } from "../sys/journal.ts";
import { mem } from "../sys/mem.ts";
import { attempt, now } from "../sys/now.ts";
import { EPOLLIN, watch } from "../sys/poll.ts";
import type { LogPiece } from "./control.ts";

/** Bytes of one piece; a client that reads slowly makes us hold this much. */
const PIECE = 64 * 1024;
const NEWLINE = 10;
const [IN_MODIFY, IN_CREATE] = [0x2, 0x100]; // linux/inotify.h

/** Every file in the folder that a client may have: no links, nobody's locks. */
export async function retrievable(directory: string): Promise<string[]> {
  const found: { name: string; at: number }[] = [];
  for (const entry of await readdir(directory, { withFileTypes: true })) {
    const { name } = entry;
    if (!entry.isFile() || name.includes(".current") || name.includes(".lock-delete-old")) continue;
    found.push({ name, at: (await stat(join(directory, name))).mtimeMs });
  }
  return found.sort((a, b) => a.at - b.at || (a.name < b.name ? -1 : 1)).map((f) => f.name);
}

/** Remove a log that nobody writes to any more; one that a `.current` names stays. */
export async function removeOld(directory: string, file: string): Promise<void> {
  for (const entry of await readdir(directory, { withFileTypes: true }))
    if (entry.isSymbolicLink() && basename(await readlink(join(directory, entry.name))) === file) return;
  await rm(join(directory, file), { force: true });
}

/** Remove a log whose writer is gone, with its link. */
export async function removeLog(directory: string, name: string): Promise<void> {
  for (const file of [...logFiles(directory, name), `${name}.current`])
    await rm(join(directory, file), { force: true });
}

/** From `at` to the end as it is now. The last piece may be empty: it says that the file is complete. */
export async function* readFrom(path: string, at = 0): AsyncGenerator<LogPiece & { readonly end: number }> {
  await using file = await open(path, "r");
  const { size } = await file.stat();
  const name = basename(path);
  for (let from = at; ; ) {
    const bytes = await readAt(file, from, Math.min(PIECE, size - from));
    from += bytes.length;
    const last = from >= size || bytes.length === 0;
    yield { file: name, bytes, last, end: from };
    if (last) return;
  }
}

async function readAt(file: FileHandle, at: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(Math.max(0, length));
  if (bytes.length === 0) return bytes;
  const { bytesRead } = await file.read(bytes, 0, bytes.length, at);
  return bytes.subarray(0, bytesRead);
}

/** Where the last `lines` lines of the file begin, and how many there are, if fewer. */
async function tail(path: string, lines: number): Promise<{ at: number; lines: number }> {
  await using file = await open(path, "r");
  let { size: at } = await file.stat();
  let found = 0;
  const end = at;
  while (at > 0) {
    const from = Math.max(0, at - PIECE);
    const bytes = await readAt(file, from, at - from);
    for (let i = bytes.length - 1; i >= 0; i--) {
      if (bytes[i] !== NEWLINE || from + i === end - 1) continue;
      if (++found === lines) return { at: from + i + 1, lines: found };
    }
    at = from;
  }
  return { at: 0, lines: end > 0 ? found + 1 : 0 };
}

/**
 * All files of one log, oldest first, or as much of them as holds the newest `lines` lines. With `follow`, what is
 * written afterwards too, until it is aborted.
 */
export async function* readLog(
  directory: string,
  name: string,
  options: { readonly lines?: number; readonly follow?: AbortSignal } = {},
): AsyncGenerator<LogPiece> {
  const { lines, follow } = options;
  const files = logFiles(directory, name);
  const parts = files.map((file) => ({ file, at: 0 }));
  if (lines !== undefined) {
    let wanted = lines;
    let first = parts.length;
    while (first > 0 && wanted > 0) {
      const part = parts[--first]!;
      const found = await tail(join(directory, part.file), wanted);
      part.at = found.at;
      wanted -= found.lines;
    }
    if (wanted === 0 && lines === 0) {
      const newest = parts.at(-1);
      if (newest) newest.at = (await stat(join(directory, newest.file))).size;
      first = parts.length - 1;
    }
    parts.splice(0, Math.max(0, first));
  }
  // Watched before the files are read, so that nothing is written in between unseen.
  using changes = follow && watching(directory, follow);
  let current: { file: string; at: number } | undefined;
  for (const part of parts)
    for await (const piece of readFrom(join(directory, part.file), part.at)) {
      current = { file: part.file, at: piece.end };
      yield piece;
    }
  if (!follow || !changes) return;
  while (!follow.aborted) {
    const all = logFiles(directory, name);
    const known = current ? all.indexOf(current.file) : -1;
    for (const file of all.slice(Math.max(0, known))) {
      const at = file === current?.file ? current.at : 0;
      try {
        for await (const piece of readFrom(join(directory, file), at)) {
          current = { file, at: piece.end };
          if (piece.bytes.length > 0) yield { ...piece, last: false };
        }
      } catch (e) {
        if (!isErrno(e, ENOENT)) throw e; // too old to be kept
      }
    }
    await changes.next();
  }
}

/** next() resolves when something in the folder has changed since the last time, or the signal is aborted. */
function watching(directory: string, until: AbortSignal): Disposable & { next(): Promise<void> } {
  // Not fs.watch: of two changes of one file shortly after each other it tells one.
  const fd = new Fd(now({ call: "inotify_init1", args: [O_NONBLOCK | O_CLOEXEC] }));
  now({ call: "inotify_add_watch", args: [fd.n, directory, IN_MODIFY | IN_CREATE] });
  let changed = until.aborted;
  let wake: (() => void) | undefined;
  const on = () => {
    changed = true;
    wake?.();
  };
  const events = mem(4096);
  const w = watch(fd, EPOLLIN, () => {
    while (attempt(read(fd.n, events)) > 0);
    on();
  });
  until.addEventListener("abort", on, { once: true });
  return {
    async next() {
      if (!changed) await new Promise<void>((resolve) => (wake = resolve));
      changed = until.aborted;
      wake = undefined;
    },
    [Symbol.dispose]() {
      w[Symbol.dispose]();
      fd.close();
    },
  };
}
