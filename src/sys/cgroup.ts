// cgroup2 groups as directories (Documentation/admin-guide/cgroup-v2.rst): make, limit, freeze, kill, remove.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { AT_FDCWD, AT_REMOVEDIR, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, openat, unlinkat } from "./calls.ts";
import { EBUSY, ENODEV, ENOENT, isErrno, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { attempt, now } from "./now.ts";
import { watch } from "./poll.ts";

const EPOLLPRI = 2; // a change of cgroup.events

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

/** Wait until `cgroup.events` shows `key value`; false when `timeoutMs` is over first or the group is gone. */
export async function settled(group: string, key: "populated" | "frozen", value: 0 | 1, timeoutMs: number) {
  const holds = (): boolean => readFileSync(join(group, "cgroup.events"), "utf8").includes(`${key} ${value}`);
  const gone = (e: unknown): boolean => {
    if (isErrno(e, ENOENT) || isErrno(e, ENODEV)) return true;
    throw e;
  };
  try {
    using fd = new Fd(now(openat(-100, join(group, "cgroup.events"), O_RDONLY)));
    if (holds()) return true;
    return await new Promise<boolean>((resolve) => {
      const done = (result: boolean) => {
        w[Symbol.dispose]();
        clearTimeout(timer);
        resolve(result);
      };
      const w = watch(fd, EPOLLPRI, () => {
        try {
          if (holds()) done(true);
        } catch (e) {
          if (gone(e)) done(false);
        }
      });
      const timer = setTimeout(() => done(false), timeoutMs);
      if (holds()) done(true);
    });
  } catch (e) {
    return !gone(e);
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
