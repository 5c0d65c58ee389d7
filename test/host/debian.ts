// A Debian machine with systemd as its process 1, up in a second: the guest `debian` on an overlay that is forgotten, in
// namespaces of its own except that of users, so that inside root is root, devices are devices and cgroup2 is whole.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { delegate, make, remove, where } from "../../src/sys/cgroup.ts";

const IMAGE = "out/guests/debian-1/root.img";

/** What happens in the new namespaces before systemd: $1 is the image, $2 a folder of the test's. */
const BOOT = `
set -eu
image=$1 work=$2 root=$2/upper/root
mkdir $work/lower $work/upper
mount -t erofs -o ro,loop "$image" $work/lower
mount -t tmpfs upper $work/upper
mkdir $work/upper/data $work/upper/work $root
mount -t overlay -o lowerdir=$work/lower,upperdir=$work/upper/data,workdir=$work/upper/work overlay $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 dev $root/dev
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
node() { mknod -m 666 "$root/dev/$1" "$2" "$3" "$4"; }
node null c 1 3; node zero c 1 5; node full c 1 7; node random c 1 8; node urandom c 1 9; node tty c 5 0
node loop-control c 10 237
for n in $(seq 0 127); do node loop$n b 7 $n; done
mkdir $root/host
mount --bind $work/share $root/host
cd $root
pivot_root . mnt
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c 'umount -l /mnt; exec /sbin/init' \\
  >/dev/null 2>&1 </dev/null
`;

/** How long systemd may take; it needs a second. */
const BOOT_MS = 60_000;

export interface Said {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export class Debian implements AsyncDisposable {
  /** A folder of ours that is /host inside. */
  readonly share: string;

  private constructor(
    readonly directory: string,
    readonly group: string,
    readonly unshared: ChildProcess,
    readonly init: number,
  ) {
    this.share = join(directory, "share");
  }

  static async boot(): Promise<Debian> {
    const directory = mkdtempSync(join(tmpdir(), "cml-debian-"));
    const { mount } = where();
    delegate(mount);
    const group = join(mount, directory.split("/").at(-1)!);
    make(group);
    make(join(directory, "share"));
    const said = join(directory, "said");
    const out = openSync(said, "w");
    const namespaces = [
      "--mount",
      "--pid",
      "--uts",
      "--ipc",
      "--net",
      "--cgroup",
      "--propagation",
      "private",
    ];
    // The shell enters the group, so that it is the root of the new cgroup namespace.
    const enter = 'echo $$ > "$1/cgroup.procs"; shift; exec unshare "$@"';
    const child = [
      "--fork",
      "--kill-child",
      "bash",
      "-c",
      BOOT,
      "boot",
      join(process.cwd(), IMAGE),
      directory,
    ];
    const unshared = spawn("bash", ["-c", enter, "enter", group, ...namespaces, ...child], {
      stdio: ["ignore", out, out],
    });
    closeSync(out);
    try {
      const deadline = Date.now() + BOOT_MS;
      for (;;) {
        if (unshared.exitCode !== null || Date.now() > deadline)
          throw new Error(`systemd is not up: ${readFileSync(said, "utf8")}`);
        const init = Number(childOf(unshared.pid!));
        const state = init > 0 ? enterAnd(init, ["systemctl", "is-system-running"]).stdout.trim() : "";
        if (state === "running" || state === "degraded") {
          // Nobody may stay in the group itself: it hands its controllers down, as on a real machine.
          writeFileSync(join(mount, "cgroup.procs"), String(unshared.pid));
          const debian = new Debian(directory, group, unshared, init);
          debian.shell(
            "for g in / /system.slice; do for c in $(cat /sys/fs/cgroup$g/cgroup.controllers); do echo +$c > /sys/fs/cgroup$g/cgroup.subtree_control; done; done",
          );
          return debian;
        }
        await Bun.sleep(50); // nothing tells when systemd's socket appears
      }
    } catch (e) {
      unshared.kill("SIGKILL");
      await remove(group);
      rmSync(directory, { recursive: true, force: true });
      throw e;
    }
  }

  /** Run a program inside, as root. */
  run(...argv: string[]): Said {
    return enterAnd(this.init, argv);
  }

  /** The output of a program or script that must succeed. */
  must(...argv: string[]): string {
    const { status, stdout, stderr } = this.run(...argv);
    if (status !== 0) throw new Error(`${argv.join(" ")}: exit status ${status}: ${stderr}${stdout}`);
    return stdout.trim();
  }
  shell(script: string): string {
    return this.must("sh", "-ec", script);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const over = new Promise((resolve) => this.unshared.once("exit", resolve));
    process.kill(this.init, "SIGKILL"); // process 1 of its pid namespace: all others end with it
    await over;
    await remove(this.group);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const childOf = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  } catch {
    return ""; // not yet, or not any more
  }
};

function enterAnd(init: number, argv: readonly string[]): Said {
  const { status, stdout, stderr } = spawnSync("nsenter", ["-t", String(init), "-a", ...argv], {
    encoding: "utf8",
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C.UTF-8" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  return { status: status ?? -1, stdout, stderr };
}
