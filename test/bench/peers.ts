// The other runtimes, on the same root file system and namespaces as ours: an OCI bundle, their default seccomp
// profile, no memory, cpu or pids limit.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** containers/common's profile (package golang-github-containers-common), which podman gives to crun and runc. */
const PROFILE = "/usr/share/containers/seccomp.json";

interface Profile {
  readonly defaultAction: string;
  readonly archMap: readonly { architecture: string; subArchitectures: readonly string[] }[];
  readonly syscalls: readonly {
    readonly names: readonly string[];
    readonly action: string;
    readonly args?: readonly object[];
    readonly includes?: { readonly caps?: readonly string[]; readonly arches?: readonly string[] };
    readonly excludes?: { readonly caps?: readonly string[]; readonly arches?: readonly string[] };
    readonly errnoRet?: number;
  }[];
}

/** The engine's profile as the OCI runtime specification wants it, for a container without added capabilities. */
function ociProfile(arch: string): object {
  const profile = JSON.parse(readFileSync(PROFILE, "utf8")) as Profile;
  const matches = (list: readonly string[] | undefined, value: (s: string) => boolean) =>
    list?.some(value) ?? false;
  const syscalls = profile.syscalls
    .filter(
      (s) =>
        (s.includes?.caps?.length ?? 0) === 0 &&
        (!s.includes?.arches?.length || matches(s.includes.arches, (a) => a === arch)),
    )
    .filter((s) => !matches(s.excludes?.arches, (a) => a === arch))
    .map(({ names, action, args, errnoRet }) => ({
      names,
      action,
      ...(args?.length && { args }),
      ...(errnoRet !== undefined && action === "SCMP_ACT_ERRNO" && { errnoRet }),
    }));
  const native = profile.archMap.find((a) =>
    a.architecture.endsWith(arch === "amd64" ? "X86_64" : "AARCH64"),
  );
  return {
    defaultAction: profile.defaultAction,
    architectures: native ? [native.architecture, ...native.subArchitectures] : [],
    syscalls,
  };
}

const NAMESPACES = ["user", "network", "pid", "mount", "uts", "ipc", "cgroup"];
const IDS = { containerID: 0, hostID: 300_000, size: 65_536 };

/** Devices of a container: the engines' default list, as a program on the group. */
const DEVICES = [
  { allow: false, access: "rwm" },
  ...[
    [1, 3],
    [1, 5],
    [1, 7],
    [1, 8],
    [1, 9],
    [5, 0],
    [5, 2],
    [10, 200],
    [10, 229],
  ].map(([major, minor]) => ({ allow: true, type: "c", major, minor, access: "rw" })),
];

/** Where ip(8) keeps the names of network namespaces. */
const NETNS = "/run/netns";

/** linux.resources of the OCI runtime specification. */
export type Resources = Readonly<Record<string, unknown>>;

/** Write a bundle whose rootfs is a copy of `rootfs`, running `args`. `netns`: in this network namespace, and with a
 * device program; with these limits, too. */
export function bundle(
  directory: string,
  rootfs: string,
  args: readonly string[],
  netns?: string,
  limits: Resources = {},
): void {
  mkdirSync(directory, { recursive: true });
  cpSync(rootfs, join(directory, "rootfs"), { recursive: true, verbatimSymlinks: true });
  const arch = process.arch === "x64" ? "amd64" : process.arch;
  const mount = (destination: string, type: string, options: string[]) => ({
    destination,
    type,
    source: type,
    options,
  });
  const hardened = ["nosuid", "noexec", "nodev"];
  const config = {
    ociVersion: "1.0.2",
    process: {
      user: { uid: 0, gid: 0 },
      args,
      env: ["PATH=/bin"],
      cwd: "/",
      noNewPrivileges: false,
      capabilities: Object.fromEntries(
        ["bounding", "effective", "permitted"].map((set) => [
          set,
          ["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"],
        ]),
      ),
    },
    root: { path: "rootfs", readonly: true },
    hostname: "peer",
    mounts: [
      mount("/proc", "proc", hardened),
      mount("/dev", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
      mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
      mount("/dev/shm", "tmpfs", [...hardened, "mode=1777", "size=65536k"]),
      mount("/dev/mqueue", "mqueue", hardened),
      mount("/sys", "sysfs", [...hardened, "ro"]),
      mount("/sys/fs/cgroup", "cgroup", [...hardened, "relatime", "ro"]),
      mount("/run", "tmpfs", ["nosuid", "nodev", "mode=755", "size=65536k"]),
    ],
    linux: {
      namespaces: NAMESPACES.map((type) => ({
        type,
        ...(netns !== undefined && type === "network" && { path: `${NETNS}/${netns}` }),
      })),
      ...(netns !== undefined && { resources: { devices: DEVICES, ...limits } }),
      uidMappings: [IDS],
      gidMappings: [IDS],
      seccomp: ociProfile(arch),
      maskedPaths: ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"],
      readonlyPaths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    },
  };
  writeFileSync(join(directory, "config.json"), JSON.stringify(config, null, 2));
  Bun.spawnSync(["chown", "-R", `${IDS.hostID}:${IDS.hostID}`, join(directory, "rootfs")]);
}

/** Milliseconds from spawning the runtime to its exit. */
export function runPeer(runtime: string, directory: string, id: string): number {
  const began = Bun.nanoseconds();
  const { exitCode, stderr } = Bun.spawnSync([runtime, "run", id], {
    cwd: directory,
    env: { ...process.env }, // with what was added since we started
    stdout: "ignore",
    stderr: "pipe",
  });
  const took = (Bun.nanoseconds() - began) / 1e6;
  if (exitCode !== 0) throw new Error(`${runtime} run: exit status ${exitCode}: ${stderr.toString().trim()}`);
  return took;
}

/** What ip(8) does for a pair of links. */
export const linkBatch = (netns: string): string[] => [
  `netns add ${netns}`,
  `link add b${netns} type veth peer name host0 netns ${netns}`,
  `addr add 172.31.255.1/24 dev b${netns}`,
  `link set b${netns} up`,
];

/** The same with a pair of links, made by one call of ip(8) in the timed span. The namespace goes away after it. */
export function runPeerWithLink(runtime: string, directory: string, id: string, netns: string): number {
  const ip = (lines: readonly string[]): void => {
    const { exitCode, stderr } = Bun.spawnSync(["ip", "-batch", "-"], {
      stdin: Buffer.from(lines.map((l) => `${l}\n`).join("")),
      stdout: "ignore",
      stderr: "pipe",
    });
    if (exitCode !== 0) throw new Error(`ip -batch: ${stderr.toString().trim()}`);
  };
  const began = Bun.nanoseconds();
  ip(linkBatch(netns));
  const made = (Bun.nanoseconds() - began) / 1e6;
  try {
    return made + runPeer(runtime, directory, id);
  } finally {
    ip([`netns del ${netns}`]);
  }
}
