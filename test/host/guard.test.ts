// What holds a container: capabilities, the filter, masks. Real ones, in real containers.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { filterOps } from "../../src/cmld/modules/seccomp.ts";
import { launch, reap } from "../../src/run/launch.ts";
import { exit } from "../../src/sys/calls.ts";
import { EINVAL, ENOSYS, EPERM } from "../../src/sys/error.ts";
import { type Op, show } from "../../src/sys/op.ts";
import { ended } from "../../src/sys/poll.ts";
import { busyboxRoot, World } from "./world.ts";

const EFAULT = 14;
const EAFNOSUPPORT = 97;

let world: World;
beforeAll(() => {
  world = World.open();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const status = (said: string, key: string): string => said.match(new RegExp(`^${key}:\\s*(\\S+)$`, "m"))![1]!;

test("capabilities: the bounding set is the list, nothing is inheritable or ambient", async () => {
  const { said } = await world.sh("cat /proc/self/status");
  const kept = 0xa9ecfdffn; // by number, independent of the list: a change must be meant
  expect(BigInt(`0x${status(said, "CapBnd")}`).toString(16)).toBe(kept.toString(16));
  expect(status(said, "CapEff")).toBe(status(said, "CapBnd"));
  expect([status(said, "CapInh"), status(said, "CapAmb")]).toEqual(["0000000000000000", "0000000000000000"]);
  expect([status(said, "NoNewPrivs"), status(said, "Seccomp"), status(said, "Seccomp_filters")]).toEqual([
    "0",
    "2",
    "1",
  ]);
});

test("system calls: refused, absent, allowed, in a real child", async () => {
  const calls: readonly (readonly [Op, number])[] = [
    [{ call: "keyctl", args: [0, 0, 0] }, EPERM],
    [{ call: "bpf", args: [0, 0, 0] }, EPERM],
    [{ call: "kexec_load", args: [0, 0, 0, 0] }, EPERM],
    [{ call: "open_by_handle_at", args: [0, 0, 0] }, EPERM],
    [{ call: "clock_settime", args: [0, 0] }, EPERM],
    [{ call: "syslog", args: [3, 0, 0] }, EPERM],
    [{ call: "userfaultfd", args: [0] }, ENOSYS],
    [{ call: "io_uring_setup", args: [1, 0] }, ENOSYS],
    [{ call: "fsopen", args: ["proc", 0] }, ENOSYS],
    [{ call: "mount_setattr", args: [0, "", 0, 0, 0] }, ENOSYS],
    [{ call: "socket", args: [40, 1, 0] }, EAFNOSUPPORT],
    [{ call: "personality", args: [0x40000] }, EPERM],
    [{ call: "ioctl", args: [0, 0x5412, 0] }, EPERM],
    [{ call: "clock_adjtime", args: [0, 0] }, EFAULT],
    [{ call: "clone3", args: [0, 0] }, EINVAL],
  ];
  for (const [call, errno] of calls) {
    // The call is expected to fail so; had it another result, the child would end there with 127.
    const child = launch([...filterOps(), { ...call, allow: errno, want: -1 }, exit(0)]);
    await child.started();
    await ended(child.pidfd);
    expect([show(call), reap(child.pidfd)]).toEqual([show(call), { status: 0 }]);
    child.pidfd.close();
  }
});

test("masks: what is the host's is empty, what is read-only stays so, the container's own network is not", async () => {
  const { said } = await world.sh(
    [
      "for f in interrupts kallsyms keys key-users kmsg timer_list; do cat /proc/$f; done",
      "ls /sys/firmware; ls /proc/acpi",
      "for f in /proc/sys/kernel/panic /proc/sys/vm/swappiness /sys/x; do (echo 1 > $f) 2>&1; done",
      "echo 1 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward",
      "ls -d /dev/.cml/*; stat -c %a /dev/.cml",
    ].join("; "),
  );
  expect(said.split("\n")).toEqual([
    ...["/proc/sys/kernel/panic", "/proc/sys/vm/swappiness", "/sys/x"].map(
      (path) => `/bin/sh: can't create ${path}: Read-only file system`,
    ),
    "1",
    "/dev/.cml/proc",
    "/dev/.cml/sys",
    "700",
  ]);
});

test("nested: another user namespace mounts a proc, a sysfs, an overlay of its own, and a container engine's calls work", async () => {
  const overlay =
    "mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr o m && touch m/x && ls u";
  const { said } = await world.sh(
    [
      "busybox unshare -U -r -m -p -n -i -u -f sh -c 'mount -t proc proc /proc && echo $$'",
      "busybox unshare -U -r -m -n sh -c 'mount -t sysfs -o ro sysfs /sys && echo sysfs'",
      `busybox unshare -U -r -m sh -c 'mount -t tmpfs t /tmp && cd /tmp && ${overlay}'`,
      "busybox unshare -m -p -f sh -c 'mount -t proc proc /proc && echo proc'",
      "busybox unshare -U -r -m sh -c 'mount -t tmpfs t /mnt && mkdir /mnt/o && cd /mnt && busybox pivot_root . o && echo pivot'",
    ].join("; "),
  );
  expect(said.split("\n")).toEqual(["1", "sysfs", "x", "proc", "pivot"]);
});

test("nested: a user who is not root has a container on an overlay of its own, as rootless engines make one", async () => {
  const { said } = await world.sh(`
    mkdir -p -m 777 /run/free
    cat > /run/inner << 'END'
      mount -t tmpfs t /run/free && cd /run/free && mkdir -p l/bin l/proc l/old u w m
      busybox cp /bin/busybox l/bin/busybox && busybox ln -s busybox l/bin/sh
      mount -t overlay -o lowerdir=l,upperdir=u,workdir=w,userxattr o m && mount -t proc proc m/proc
      busybox hostname inner && cd m && busybox pivot_root . old && exec /bin/sh -c '
        cd /bin; busybox umount -l /old; echo $(busybox id -u) $$ $(busybox wc -l < /proc/mounts) $(busybox hostname)'
END
    mount -t tmpfs none /etc; echo user:x:1000:1000::/:/bin/sh > /etc/passwd
    busybox su user -c 'busybox unshare -U -r -m -p -n -i -u -f sh /run/inner'`);
  expect(said).toBe("0 1 2 inner"); // its overlay and its proc are all that is mounted there
});

// runc takes NOTIFY_SOCKET, which cmld gives to a container's init, for its own service manager's, and waits for its
// container to say READY=1: docs/guests.md.
for (const [name, engine] of [
  ["crun", "/usr/bin/crun"],
  ["runc", "/usr/sbin/runc"],
] as const)
  test(`nested: an unmodified container engine, ${name}, starts a container inside`, async () => {
    world.image(name, (root) => {
      busyboxRoot(root);
      const libraries = Bun.spawnSync(["ldd", engine]).stdout.toString();
      for (const file of [engine, ...(libraries.match(/\/\S+(?=( \(0x))/g) ?? [])]) {
        mkdirSync(join(root, dirname(file)), { recursive: true });
        copyFileSync(file, join(root, file));
      }
    });
    const script = `set -e
      mkdir -p /run/b/rootfs; cd /run/b; for d in bin proc sys dev; do mkdir rootfs/$d; done; cp /bin/busybox rootfs/bin/sh
      unset NOTIFY_SOCKET
      ${engine} spec
      busybox sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"sh", "-c", "echo nested $$"/' config.json
      ${engine} run inner; echo $?`;
    const { said } = await world.sh(script, { mounts: [{ mount_point: "/", image_file: name }] });
    expect(said).toBe("nested 1\n0");
  });
