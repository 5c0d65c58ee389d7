// Images from elsewhere. Over http and https by `fetch`, a process in a room of its own within core0's network (hosted: the
// machine's); from file:///… by cmld; from file://… within the client's container by a child, because whoever serves its file
// systems may let us wait. What arrives is appended to a file beside its place and hashed on the way; an
// interrupted download goes on where it ended. The file gets its name when size and hash are right.
import type { Hash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { constants, type FileHandle, lstat, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { nodeCrypto } from "../../lib/ondemand.ts";
import { confined } from "../../run/confined.ts";
import { type Ended, launch, reap } from "../../run/launch.ts";
import { own } from "../../run/self.ts";
import {
  AT_EMPTY_PATH,
  closeAllBut,
  exit,
  O_NOCTTY,
  O_NONBLOCK,
  O_RDONLY,
  openat2,
  RESOLVE_IN_ROOT,
  RESOLVE_NO_MAGICLINKS,
  SOCK_STREAM,
  sendfile,
  signal,
  wait,
  write,
} from "../../sys/calls.ts";
import { type Fd, pair, pipe } from "../../sys/fd.ts";
import { regular } from "../../sys/file.ts";
import { mem } from "../../sys/mem.ts";
import { now } from "../../sys/now.ts";
import { Reg } from "../../sys/op.ts";
import { ended } from "../../sys/poll.ts";
import { kill, SIGKILL } from "../../sys/process.ts";

/** Where an image is fetched by whom. */
export interface Web {
  /** core0's network namespace, or the machine's own. Throws why there is none. */
  network(): Fd | "ours";
  /** Servers of names; none: those of this machine. */
  readonly dns: string;
}

export interface Wanted {
  readonly url: string;
  /** Where it belongs. */
  readonly path: string;
  /** Bytes; undefined: whatever comes, up to `most`. */
  readonly size: number | undefined;
  readonly most: number;
  /** Algorithm of node:crypto and hexadecimal digest; undefined: judged later by what it is the tree of. */
  readonly hash: readonly [algorithm: string, digest: string] | undefined;
  /** Bytes that are there so far. */
  progress(bytes: number): void;
  /** The root of the client's container, for file:// URLs that do not begin with a slash. Throws why there is none. */
  readonly clientRoot?: (() => Fd) | undefined;
}

/** spec/security.md 0.3 gives scd and tpm2d theirs; this one is next. */
const ID = 65539;
/** Bytes read and hashed at once. */
const PIECE = 256 * 1024;
const SAID_MAX = 4096;
const HEADER_MAX = 256;

/** `dir/.name.part` */
const partOf = (path: string): string => join(dirname(path), `.${basename(path)}.part`);

/** Bring it. Rejects with the reason; what has arrived so far stays for the next try, unless it is wrong. */
export async function download(web: Web, wanted: Wanted): Promise<void> {
  const part = partOf(wanted.path);
  try {
    await brought(web, wanted, part);
  } catch (e) {
    const there = await lstat(part).catch(() => undefined);
    if (there?.size === 0) await rm(part, { force: true }); // nothing to go on from
    throw e;
  }
}

async function brought(web: Web, wanted: Wanted, part: string): Promise<void> {
  await using file = await open(part, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o644);
  const hash = wanted.hash && nodeCrypto().createHash(wanted.hash[0]);
  let at = await resumed(file, wanted.size ?? wanted.most, hash);
  if (at === undefined) return await restart(web, wanted, part);
  wanted.progress(at);
  if (wanted.size === undefined || at < wanted.size) {
    const source = await sourceOf(web, wanted, at);
    if (source.from !== at) {
      await source.stop(); // it has begun to send
      return await restart(web, wanted, part);
    }
    try {
      if (wanted.size !== undefined && source.length !== undefined && at + source.length !== wanted.size)
        throw new Error(`${wanted.url} has ${at + source.length} bytes, not ${wanted.size}`);
      for await (const piece of source.body) {
        if (at + piece.length > (wanted.size ?? wanted.most)) {
          await rm(part, { force: true }); // nothing of it is what is wanted
          throw new Error(`${wanted.url} has more than ${wanted.size ?? wanted.most} bytes`);
        }
        hash?.update(piece);
        await file.write(piece, 0, piece.length, at);
        at += piece.length;
        wanted.progress(at);
      }
    } catch (e) {
      await source.stop();
      throw e;
    }
    await source.end();
  }
  if (wanted.size !== undefined && at !== wanted.size)
    throw new Error(`${wanted.url}: ${at} of ${wanted.size} bytes came; the next try goes on from there`);
  const found = hash?.digest("hex");
  if (wanted.hash && found !== wanted.hash[1].toLowerCase()) {
    await rm(part, { force: true });
    throw new Error(`${wanted.url} has ${wanted.hash[0]} ${found}, not ${wanted.hash[1]}`);
  }
  await file.sync();
  await rename(part, wanted.path);
}

/** From the beginning, with an empty file. */
async function restart(web: Web, wanted: Wanted, part: string): Promise<void> {
  await rm(part, { force: true });
  return await brought(web, wanted, part);
}

/** How many bytes of an earlier try are there, hashed; undefined if they are too many to be of this file. */
async function resumed(file: FileHandle, most: number, hash: Hash | undefined): Promise<number | undefined> {
  const { size } = await regular(file, "an earlier download");
  if (size > most) return undefined;
  const piece = new Uint8Array(PIECE);
  for (let at = 0; at < size; ) {
    const { bytesRead } = await file.read(piece, 0, PIECE, at);
    if (bytesRead === 0) return at;
    hash?.update(piece.subarray(0, bytesRead));
    at += bytesRead;
  }
  return size;
}

interface Source {
  /** The byte that it begins with. */
  readonly from: number;
  /** How many bytes follow, if that is known. */
  readonly length: number | undefined;
  readonly body: AsyncIterable<Uint8Array>;
  /** After the last byte: rejects if it was not the last. */
  end(): Promise<void>;
  /** Give up. */
  stop(): Promise<void>;
}

async function sourceOf(web: Web, { url, most, clientRoot }: Wanted, from: number): Promise<Source> {
  if (/^https?:\/\//.test(url)) return await overNetwork(web, url, String(from));
  const path = /^file:\/\/(.+)$/.exec(url)?.[1];
  if (path === undefined) throw new Error(`${url}: http://, https:// or file:// can be fetched`);
  if (!path.startsWith("/")) {
    if (!clientRoot) throw new Error(`${url}: a path within a container, and the client is in none`);
    using root = clientRoot();
    return await fromContainer(root, path, from, most);
  }
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const close = () => file.close();
  try {
    const { size } = await regular(file, path);
    return { from, length: Math.max(0, size - from), body: pieces(file, from), end: close, stop: close };
  } catch (e) {
    await close();
    throw e;
  }
}

/** struct statx of linux/stat.h, as far as we ask: its mode and size. */
const STATX = { bytes: 256, mode: 28, size: 40, basic: 0x7ff } as const;
const [S_IFMT, S_IFREG] = [0o170000, 0o100000];
/** Bytes that one sendfile(2) moves: it moves at most 2 GiB. */
const MOVED = 2 ** 30;
/** A file that gives nothing for so long is given up. */
const SILENT_MS = 60_000;

/** A file below `root`, which others have made and may still be changing. */
async function fromContainer(root: Fd, path: string, from: number, most: number): Promise<Source> {
  // Not a pipe: sendfile(2) fills it once and returns.
  const [ours, theirs] = pair(SOCK_STREAM);
  const [file, status] = [new Reg(0), mem(STATX.bytes)];
  const child = launch((report) => [
    ...closeAllBut([report, theirs.n, root.n]),
    openat2(root.n, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, 0, file),
    { call: "statx", args: [file, "", AT_EMPTY_PATH, STATX.basic, status] },
    write(theirs.n, status),
    wait(theirs.n),
    { call: "lseek", args: [file, from, 0] },
    ...Array.from({ length: Math.ceil(most / MOVED) + 1 }, () => sendfile(theirs.n, file, MOVED)),
    exit(0),
  ]);
  theirs.close();
  const started = child.started().then(
    () => undefined,
    (e: unknown) => e,
  );
  const stream = Bun.file(ours.n).stream()[Symbol.asyncIterator]();
  const finished = async () => {
    await ended(child.pidfd);
    reap(child.pidfd);
    child.pidfd.close();
    ours.close();
  };
  const stop = async () => {
    kill(child.pidfd, SIGKILL);
    await finished();
  };
  const next = async () => {
    const late = setTimeout(() => kill(child.pidfd, SIGKILL), SILENT_MS);
    try {
      return await stream.next();
    } finally {
      clearTimeout(late);
    }
  };
  const what = `${path} in the client's container`;
  try {
    const { value: head } = await next();
    if (head?.length !== STATX.bytes) throw new Error(what, { cause: await started });
    const seen = Buffer.from(head);
    if ((seen.readUInt16LE(STATX.mode) & S_IFMT) !== S_IFREG) throw new Error(`${what}: not a regular file`);
    const size = Number(seen.readBigUInt64LE(STATX.size));
    now(signal(ours.n));
    const end = async () => {
      await finished();
      const failed = await started;
      if (failed) throw new Error(what, { cause: failed });
    };
    const body = { [Symbol.asyncIterator]: () => ({ next }) };
    return { from, length: Math.max(0, size - from), body, end, stop };
  } catch (e) {
    await stop();
    throw e;
  }
}

/** Bytes of a number. */
const NUMBER_MAX = 64;

/** Seconds by which a server of the time (RFC 5905) is ahead of this machine's clock. */
export async function timeOffset(web: Web, server: string): Promise<number> {
  const { body, end, stop } = await overNetwork(web, `ntp:${server}`);
  let said = "";
  for await (const piece of body) {
    said += Buffer.from(piece).toString("latin1");
    if (said.length > NUMBER_MAX) {
      await stop();
      throw new Error(`${server}: more than a number came`);
    }
  }
  await end();
  const offset = Number.parseFloat(said);
  if (!Number.isFinite(offset)) throw new Error(`${server}: no number came`);
  return offset;
}

async function* pieces(file: FileHandle, from: number): AsyncIterable<Uint8Array> {
  const piece = new Uint8Array(PIECE);
  for (let at = from; ; ) {
    const { bytesRead } = await file.read(piece, 0, PIECE, at);
    if (bytesRead === 0) return;
    yield piece.subarray(0, bytesRead);
    at += bytesRead;
  }
}

/** What a program on the network must know of this machine. */
function settings(dns: string): [path: string, text: string][] {
  const there = (path: string) => (existsSync(path) ? readFileSync(path, "utf8") : "");
  return [
    ["/etc/resolv.conf", dns === "" ? there("/etc/resolv.conf") : `nameserver ${dns}\n`],
    ["/etc/hosts", there("/etc/hosts") || "127.0.0.1 localhost\n"],
    ["/etc/nsswitch.conf", "hosts: files dns\n"],
  ];
}

async function overNetwork(web: Web, url: string, ...more: string[]): Promise<Source> {
  const [out, errors] = [pipe(), pipe()];
  const network = web.network();
  const child = await confined({
    id: ID,
    argv: own("fetch", url, ...more),
    env: ["PATH=/usr/bin", "HOME=/tmp", "LC_ALL=C.UTF-8", "TZ=UTC", "BUN_JSC_forceRAMSize=67108864"],
    writable: [],
    readable: [],
    output: out.write.n,
    errors: errors.write.n,
    network,
    files: settings(web.dns),
    mortal: true,
  });
  out.write.close();
  errors.write.close();
  if (network !== "ours") network.close();
  const over = ended(child.pidfd);
  const said = last(errors.read);
  const stream = Bun.file(out.read.n).stream()[Symbol.asyncIterator]();
  const finished = async (): Promise<Ended> => {
    await over;
    const how = reap(child.pidfd) ?? {};
    child.pidfd.close();
    out.read.close();
    return how;
  };
  const end = async () => {
    const how = await finished();
    if (how.status !== 0) throw new Error((await said) || `fetch ${url}: ${JSON.stringify(how)}`);
  };
  const stop = async () => {
    kill(child.pidfd, SIGKILL);
    await finished();
  };
  try {
    await child.started();
    const { head, rest } = await firstLine(stream);
    if (head === undefined) {
      await end();
      throw new Error(`fetch ${url}: nothing came`);
    }
    const { from: begins, length } = JSON.parse(head) as { from: number; length?: number };
    return { from: begins, length, body: after(rest, stream), end, stop };
  } catch (e) {
    if (child.pidfd.open) await stop();
    throw e;
  }
}

async function firstLine(
  stream: AsyncIterator<Uint8Array>,
): Promise<{ head: string | undefined; rest: Uint8Array }> {
  let bytes = Buffer.alloc(0);
  for (;;) {
    const at = bytes.indexOf(10);
    if (at >= 0) return { head: bytes.subarray(0, at).toString(), rest: bytes.subarray(at + 1) };
    const { value, done } = await stream.next();
    if (done || bytes.length > HEADER_MAX) return { head: undefined, rest: bytes };
    bytes = Buffer.concat([bytes, value]);
  }
}

async function* after(rest: Uint8Array, stream: AsyncIterator<Uint8Array>): AsyncIterable<Uint8Array> {
  if (rest.length > 0) yield rest;
  for (;;) {
    const { value, done } = await stream.next();
    if (done) return;
    yield value;
  }
}

/** The last line that somebody says, without the program's name. */
async function last(from: Fd): Promise<string> {
  let said = "";
  for await (const chunk of Bun.file(from.n).stream())
    said = (said + Buffer.from(chunk).toString()).slice(-SAID_MAX);
  from.close();
  return (
    said
      .trim()
      .split("\n")
      .at(-1)
      ?.replace(/^fetch: /, "") ?? ""
  );
}
