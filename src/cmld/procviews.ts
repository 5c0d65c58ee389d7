// Views of /proc that fit a container's limits: memory, processors, swap, disks as its control group has them, for
// programs that know of no control groups (`free`, `top`). lxcfs serves them, a file system of its own (FUSE) whose files lie
// over those of /proc in every container; docs/decisions/procviews.md says why lxcfs.
//
// On a device it is a child of ours with few rights and a group of its own. When it ends, readers in containers get
// ENOTCONN, nobody hangs; it is started again and its files are attached anew in every container that runs. The next
// cmld starts one of its own and does the same, then ends the one it has found. In hosted mode the host's is used.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { errand } from "../run/hand.ts";
import { launch, reap } from "../run/launch.ts";
import {
  AT_EMPTY_PATH,
  AT_FDCWD,
  CLONE_NEWNS,
  cloexecFrom,
  close,
  dup3,
  execve,
  MNT_DETACH,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  mountSetattr,
  moveMount,
  O_DIRECTORY,
  O_PATH,
  O_RDONLY,
  OPEN_TREE_CLONE,
  openat,
  openat2,
  openTree,
  prctl,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  setns,
  setsid,
  umount2,
} from "../sys/calls.ts";
import { make } from "../sys/cgroup.ts";
import { chain, EINVAL, ENOENT } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { attempt, now } from "../sys/now.ts";
import { type Op, Reg } from "../sys/op.ts";
import { ended } from "../sys/poll.ts";
import { kill, openProcess, SIGKILL, startTime } from "../sys/process.ts";
import type { Host, Process } from "./module.ts";
import { bounded } from "./modules/caps.ts";

const PROGRAM = "/usr/bin/lxcfs";
/** Where Debian's package mounts the host's. */
const HOSTS = "/var/lib/lxcfs";
/** Files of /proc and /sys that it knows. /proc/uptime is the time namespace's affair, which goes by the container's
 * own start, too; /proc/loadavg would need a thread that polls. */
export const VIEWS = [
  "proc/meminfo",
  "proc/cpuinfo",
  "proc/stat",
  "proc/swaps",
  "proc/diskstats",
  "sys/devices/system/cpu/online",
] as const;

/** For the mount, for entering mount and pid namespaces, for /proc of other users' processes. */
const KEPT = new Set(["SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE", "DAC_READ_SEARCH"]);
const LIMITS = {
  "memory.max": String(32 << 20),
  "memory.swap.max": "0",
  "pids.max": "64",
  "cpu.weight": "20",
};
const READY_MS = 10_000;
const PROBE_MS = 30_000;
const [AGAIN_MS, AGAIN_MAX_MS] = [100, 10_000];
/** What was never ready after so many starts will not be. */
const TRIES = 5;
const BIND_MS = 5_000;
const PR_SET_NO_NEW_PRIVS = 38; // linux/prctl.h
const UMOUNT_NOFOLLOW = 8; // linux/fs.h
const LOCKED = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

const [NULL, TOP] = [new Reg(0), new Reg(1)];

export interface View {
  readonly path: string;
  /** A mount of the one file, attached nowhere yet. */
  readonly fd: Fd;
}

/** Put the views where they belong: in a mount namespace whose root is the container's. `again`: over old ones. */
export const attach = (views: readonly View[], again: boolean): Op[] =>
  ["proc", "sys"].flatMap((top) => {
    const mine = views.filter((v) => v.path.startsWith(`${top}/`));
    if (mine.length === 0) return [];
    return [
      openat2(AT_FDCWD, `/${top}`, O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, 0, TOP),
      ...mine.flatMap(({ path, fd }): Op[] => [
        ...(again ? [{ ...umount2(`/${path}`, MNT_DETACH | UMOUNT_NOFOLLOW), allow: EINVAL }] : []),
        { ...moveMount(fd.n, TOP, path.slice(top.length + 1)), allow: ENOENT },
      ]),
      close(TOP),
    ];
  });

/** The life of lxcfs up to its execve. What it says goes where our log goes. */
const program = (folder: string, pidFile: string): Op[] => [
  setsid(),
  openat(AT_FDCWD, "/dev/null", O_RDONLY, 0, NULL),
  dup3(NULL, 0),
  ...bounded(KEPT),
  prctl(PR_SET_NO_NEW_PRIVS, 1),
  cloexecFrom(3),
  execve(
    PROGRAM,
    ["lxcfs", "--foreground", `--pidfile=${pidFile}`, "-o", "allow_other", folder],
    ["PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"],
  ),
];

export class Views {
  readonly #host: Host;
  readonly #log: (line: string) => void;
  readonly #folder: string;
  readonly #served = new Set<Process>();
  /** Our own lxcfs' files, opened when it was ready: to use them asks it nothing, it cannot hold us up. */
  #files: readonly View[] = [];
  #failures = 0;
  #wasReady = false;

  constructor(host: Host, log: (line: string) => void) {
    this.#host = host;
    this.#log = log;
    this.#folder = join(host.run, "views");
  }

  /** On a device: start lxcfs, and again whenever it ends. */
  begin(): void {
    if (!this.#host.hosted && existsSync(PROGRAM)) this.#launch();
  }

  /** The views for one container; empty while there are none. */
  open(): View[] {
    try {
      if (!this.#host.hosted)
        return this.#files.map(({ path, fd }) => ({ path, fd: locked(fd.n, "", AT_EMPTY_PATH) }));
      if (!existsSync(join(HOSTS, VIEWS[0]))) return [];
      return VIEWS.filter((path) => existsSync(join(HOSTS, path))).map((path) => ({
        path,
        fd: locked(AT_FDCWD, join(HOSTS, path), 0),
      }));
    } catch (e) {
      this.#host.warnOnce(`views of /proc: ${chain(e)}`);
      return [];
    }
  }

  /** A container runs, with what open() gave it, or without (`late`): it gets the views when they are there again. */
  serve(p: Process, late: boolean): Disposable {
    this.#served.add(p);
    if (late && this.#files.length > 0) void this.#bind(p);
    return { [Symbol.dispose]: () => void this.#served.delete(p) };
  }

  #launch(): void {
    void this.#run().catch((e) => {
      this.#log(`views of /proc: ${chain(e)}`);
      this.#again();
    });
  }

  #again(): void {
    if (!this.#wasReady && this.#failures >= TRIES) {
      this.#log("views of /proc: given up; containers see the machine's");
      return;
    }
    const ms = Math.min(AGAIN_MS * 2 ** this.#failures++, AGAIN_MAX_MS);
    setTimeout(() => this.#launch(), ms);
  }

  async #run(): Promise<void> {
    const { run, cgroup } = this.#host;
    const noted = join(run, "views.json");
    const before = earlier(noted);
    attempt(umount2(this.#folder, MNT_DETACH));
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    const group = join(dirname(cgroup), "views");
    make(group);
    for (const [file, value] of Object.entries(LIMITS))
      if (existsSync(join(group, file))) writeFileSync(join(group, file), value);
    using at = new Fd(now(openat(AT_FDCWD, group, O_RDONLY | O_DIRECTORY)));
    const child = launch(program(this.#folder, join(run, "views.pid")), 0n, at.n);
    using pidfd = child.pidfd;
    const over = ended(pidfd);
    writeFileSync(noted, JSON.stringify({ pid: child.pid, startTime: startTime(child.pid) ?? 0 }));
    try {
      await child.started();
      await this.#ready(over);
    } catch (e) {
      kill(pidfd, SIGKILL);
      await over;
      reap(pidfd);
      throw e;
    }
    this.#wasReady = true;
    this.#log(`views of /proc: lxcfs serves them, pid ${child.pid}`);
    await Promise.all([...this.#served].map((p) => this.#bind(p)));
    if (before) kill(before, SIGKILL);
    before?.close();
    const probe = setInterval(() => void this.#probe(pidfd), PROBE_MS);
    const since = performance.now();
    await over;
    clearInterval(probe);
    for (const { fd } of this.#files) fd.close();
    this.#files = [];
    if (performance.now() - since > PROBE_MS) this.#failures = 0;
    this.#log(`views of /proc: lxcfs has ended, ${JSON.stringify(reap(pidfd))}; starting it again`);
    this.#again();
  }

  /** Wait until it has mounted its files, which it tells nobody. Asked beside the event loop. */
  async #ready(over: Promise<void>): Promise<void> {
    let gone = false;
    void over.then(() => {
      gone = true;
    });
    const [first] = VIEWS;
    for (
      const until = performance.now() + READY_MS;
      performance.now() < until && !gone;
      await Bun.sleep(20)
    ) {
      if (!(await readFile(join(this.#folder, first)).catch(() => undefined))) continue;
      this.#files = VIEWS.flatMap((path) => {
        const n = attempt(openat(AT_FDCWD, join(this.#folder, path), O_PATH));
        return n < 0 ? [] : [{ path, fd: new Fd(n) }];
      });
      return;
    }
    throw new Error(
      gone ? "lxcfs ended before it was ready" : `lxcfs is not ready after ${READY_MS / 1000} s`,
    );
  }

  /** One that does not answer would hold up readers in all containers: its end lets them go. */
  async #probe(pidfd: Fd): Promise<void> {
    const late = setTimeout(() => {
      this.#log("views of /proc: lxcfs does not answer; killing it");
      kill(pidfd, SIGKILL);
    }, PROBE_MS / 2);
    await readFile(join(this.#folder, VIEWS[0])).catch(() => {});
    clearTimeout(late);
  }

  /** Attach the views in a container that runs. What is mounted on /proc there is its own affair by now and may keep
   * whoever looks at it waiting: so a child does, and not for long. */
  async #bind(p: Process): Promise<void> {
    const views = this.open();
    try {
      using ns = new Fd(now(openat(AT_FDCWD, `/proc/${p.pid}/ns/mnt`, O_RDONLY)));
      const given = [ns.n, ...views.map(({ fd }) => fd.n)];
      await errand(given, [setns(ns.n, CLONE_NEWNS), ...attach(views, true)], BIND_MS);
    } catch (e) {
      this.#log(`views of /proc: pid ${p.pid}: ${chain(e)}`);
    } finally {
      for (const { fd } of views) fd.close();
    }
  }
}

/** A mount of one file, attached nowhere, that nobody can write to. */
function locked(dir: number, path: string, flags: number): Fd {
  const fd = new Fd(now(openTree(dir, path, OPEN_TREE_CLONE | flags)));
  try {
    now(mountSetattr(fd.n, LOCKED));
    return fd;
  } catch (e) {
    fd.close();
    throw e;
  }
}

/** The lxcfs of an earlier cmld, if it runs. */
function earlier(path: string): Fd | undefined {
  if (!existsSync(path)) return undefined;
  try {
    const { pid, startTime: at } = JSON.parse(readFileSync(path, "utf8")) as {
      pid: number;
      startTime: number;
    };
    return openProcess(pid, at);
  } catch {
    return undefined; // half a line: a crash came between
  }
}
