// cgroup2 groups as directories (Documentation/admin-guide/cgroup-v2.rst): make, limit, freeze, kill, remove.
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { AT_FDCWD, AT_REMOVEDIR, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, openat, unlinkat } from "./calls.ts";
import { numbered, packed } from "./devnum.ts";
import { EBUSY, ENODEV, ENOENT, EOPNOTSUPP, isErrno, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";
import { EPOLLPRI, watch } from "./poll.ts";

/** More than any file has that is watched here: "key value" lines. */
const EVENTS_SIZE = 4096;

/** Where cgroup2 is mounted and which group of it we are in: ["/sys/fs/cgroup", "/system.slice/cmld.service"]. */
export function where(): { mount: string; own: string } {
  const line = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .find((l) => l.includes(" - cgroup2 "));
  if (!line) throw new Error("cgroup2 is not mounted");
  const own = readFileSync("/proc/self/cgroup", "utf8").match(/^0::(.*)$/m)?.[1] ?? "/";
  return { mount: line.split(" ")[4]!, own };
}

/** Controllers that groups below `group` may use. */
export const controllers = (group: string): string[] =>
  readFileSync(join(group, "cgroup.controllers"), "utf8").split(/\s+/).filter(Boolean);

/** Hand every available controller down to the groups below. */
export function delegate(group: string): void {
  for (const name of controllers(group)) writeFileSync(join(group, "cgroup.subtree_control"), `+${name}`);
}

export function make(group: string): void {
  mkdirSync(group, { recursive: true, mode: 0o755 });
}

/** A file of a group, or undefined where the controller, the kernel's option or the group is missing. */
export function read(group: string, name: string): string | undefined {
  try {
    return readFileSync(join(group, name), "utf8");
  } catch (e) {
    // EOPNOTSUPP: pressure stall information switched off on the kernel's command line
    if ([ENOENT, ENODEV, EOPNOTSUPP].some((errno) => isErrno(e, errno))) return undefined;
    throw e;
  }
}

/** The number of a "key number" line. */
export function keyed(text: string | undefined, key: string): number | undefined {
  const found = text && new RegExp(`^${key} (\\d+)$`, "m").exec(text);
  return found ? Number(found[1]) : undefined;
}

/** Tell what a file of "key number" lines says, now and whenever it changes; undefined once its group is gone. It is
 * read through the watched descriptor: only that tells the kernel that the change has been seen. `restMs`: changes sooner
 * after each other are told as one. */
export function watchFile(path: string, tell: (text: string | undefined) => void, restMs = 0): Disposable {
  const fd = new Fd(now(openat(AT_FDCWD, path, O_RDONLY)));
  const buffer = Buffer.alloc(EVENTS_SIZE);
  const text = (): string | undefined => {
    try {
      return buffer.toString("latin1", 0, readSync(fd.n, buffer, 0, EVENTS_SIZE, 0));
    } catch (e) {
      if (isErrno(e, ENODEV)) return undefined;
      throw e;
    }
  };
  let rest: Timer | undefined;
  const w = watch(fd, EPOLLPRI, () => {
    const found = text();
    if (found === undefined) w.pause();
    else if (restMs > 0) {
      w.pause();
      rest = setTimeout(() => w.resume(), restMs);
    }
    tell(found);
  });
  tell(text());
  return {
    [Symbol.dispose]() {
      clearTimeout(rest);
      w[Symbol.dispose]();
      fd.close();
    },
  };
}

/** Whole disks below a block device: of partitions, mapped devices and loop devices. */
function disks(dev: number): string[] {
  const link = `/sys/dev/block/${numbered(dev)}`;
  if (!existsSync(link)) return [];
  const folder = realpathSync(link);
  const numberOf = (path: string) => {
    const [major, minor] = readFileSync(join(path, "dev"), "utf8").split(":").map(Number) as [number, number];
    return packed(major, minor);
  };
  if (existsSync(join(folder, "partition"))) return disks(numberOf(dirname(folder)));
  const below = existsSync(join(folder, "slaves")) ? readdirSync(join(folder, "slaves")) : [];
  if (below.length > 0) return below.flatMap((name) => disks(numberOf(join(folder, "slaves", name))));
  const backing = join(folder, "loop/backing_file");
  return existsSync(backing) ? disks(statSync(readFileSync(backing, "utf8").trim()).dev) : [folder];
}

/** See that the disks which hold device `dev` go by io.weight (Documentation/admin-guide/cgroup-v2.rst, "IO Cost"):
 * by default none does, whatever the file says. `may`: switch it on; it then holds for everybody on the machine. */
export function shareByWeight(dev: number, may: boolean): void {
  const all = disks(dev);
  if (all.length === 0) throw new Error("the data folder is on no disk");
  const control = join(where().mount, "io.cost.qos");
  for (const folder of all) {
    const number = readFileSync(join(folder, "dev"), "utf8").trim();
    const scheduler = join(folder, "queue/scheduler");
    if (existsSync(scheduler) && readFileSync(scheduler, "utf8").includes("[bfq]")) continue;
    if (existsSync(control) && readFileSync(control, "utf8").includes(`${number} enable=1`)) continue;
    if (!may) throw new Error(`disk ${number} does not go by weights: neither io.cost.qos nor bfq is on`);
    writeFileSync(control, `${number} enable=1`);
  }
}

/** Wait until `cgroup.events` shows `key value`; false when `timeoutMs` is over first or the group is gone. */
export async function settled(group: string, key: "populated" | "frozen", value: 0 | 1, timeoutMs: number) {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  let watched: Disposable;
  try {
    watched = watchFile(join(group, "cgroup.events"), (text) => {
      if (!text) resolve(false);
      else if (text.includes(`${key} ${value}`)) resolve(true);
    });
  } catch (e) {
    if (isErrno(e, ENOENT)) return false;
    throw e;
  }
  const timer = setTimeout(() => resolve(false), timeoutMs);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    watched[Symbol.dispose]();
  }
}

/** Whether it was told to freeze; settled() says whether it has. */
export function isFrozen(group: string): boolean {
  try {
    return readFileSync(join(group, "cgroup.freeze"), "utf8").trim() === "1";
  } catch (e) {
    if (isErrno(e, ENOENT)) return false;
    throw e;
  }
}

/** Every process in the group and below ends (cgroup.kill, Linux 5.14). */
export function kill(group: string): void {
  try {
    writeFileSync(join(group, "cgroup.kill"), "1");
  } catch (e) {
    if (!isErrno(e, ENOENT)) throw e;
  }
}

/** By descriptors: the names of groups in groups, which are a container's to choose, may add up to more than a path
 * can hold. */
function removeTree(at: number, group: string): void {
  const n = attempt(openat(at, group, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (n === -ENOENT) return;
  if (n < 0) throw new SysError(-n, `openat ${group}`);
  {
    using fd = new Fd(n);
    for (const entry of readdirSync(`/proc/self/fd/${fd.n}`, { withFileTypes: true }))
      if (entry.isDirectory()) removeTree(fd.n, entry.name);
  }
  now({ ...unlinkat(at, group, AT_REMOVEDIR), allow: ENOENT });
}

/** Kill what is in it and remove it with all groups below. A group that is gone is no error. */
export async function remove(group: string): Promise<void> {
  const KILL_MS = 10_000; // a process in uninterruptible sleep may take its time
  try {
    removeTree(AT_FDCWD, group);
  } catch (e) {
    if (!isErrno(e, EBUSY)) throw e;
    kill(group);
    await settled(group, "populated", 0, KILL_MS);
    removeTree(AT_FDCWD, group);
  }
}
