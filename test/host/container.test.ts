// Real containers, each mount type, and images that lie.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { mapsIds } from "../../src/cmld/images/ownership.ts";
import type { Module } from "../../src/cmld/module.ts";
import { type Abilities, volumesWith } from "../../src/cmld/modules/volumes.ts";
import { AT_FDCWD, ioctl, O_RDONLY, O_RDWR, openat, prctl } from "../../src/sys/calls.ts";
import { chain } from "../../src/sys/error.ts";
import { Fd } from "../../src/sys/fd.ts";
import { attachLoop } from "../../src/sys/loop.ts";
import { mem } from "../../src/sys/mem.ts";
import { now } from "../../src/sys/now.ts";
import { ended } from "../../src/sys/poll.ts";
import {
  busyboxRoot,
  difference,
  type Mounts,
  product,
  ROOT,
  Said,
  Type,
  UID_START,
  until,
  World,
} from "./world.ts";

let world: World;
let before: string[];

beforeAll(async () => {
  world = World.open();
  await world.sh("true"); // opens what stays open: the poll thread
  before = await world.atRest();
});
afterAll(async () => await world[Symbol.asyncDispose]());
afterEach(async () => {
  await until(() => difference(before, world.snapshot()));
});

const [PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, SIGCONT] = [1, 2, 18]; // linux/prctl.h, asm-generic/signal.h
const NS_GET_OWNER_UID = 0xb704; // linux/nsfs.h
const WRITABLE: Mounts = [{ mount_point: "/", mount_type: Type.SHARED_RW }];
const DATA = { mount_point: "/data", image_file: "data", fs_type: "ext4", mount_type: Type.EMPTY };
const ETC = { mount_point: "/etc", image_file: "etc", fs_type: "ext4", mount_type: Type.OVERLAY_RW };

test("a container starts, exits with its status, and leaves nothing", async () => {
  const c = world.container({ init: ["/bin/sh", "-c", "exit 7"] });
  await c.start({ setup: false });
  await c.whenStopped();
  expect([c.state, c.exit]).toEqual(["STOPPED", { status: 7 }]);
});

test("root inside is the first id of the range outside, in namespaces of its own", async () => {
  const { said } = await world.sh(
    "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; hostname; cat /proc/self/cgroup; echo pid $$; ls /sys/class/net",
  );
  const rows = said.split("\n").map((l) => l.trim().replace(/\s+/g, " "));
  expect(rows).toEqual([
    "0",
    "0",
    `0 ${UID_START} 65536`,
    `0 ${UID_START} 65536`,
    "web",
    expect.stringMatching(/./),
    ...rows.slice(6),
  ]);
  expect(said).toMatch(/^0::\/$/m); // the root of its cgroup namespace
  expect(said).toMatch(/pid 1\nhost0\nlo$/); // first of its pid namespace; its network namespace has its own links only
});

test("its user namespace is its own root's, and whoever made it is as before", async () => {
  const own = () => {
    const death = mem(4);
    now({ call: "prctl", args: [PR_GET_PDEATHSIG, death] });
    const status = readFileSync("/proc/thread-self/status", "utf8");
    return [status.match(/^(Uid|Gid|Cap\w+|Groups):.*$/gm), [...death]];
  };
  now(prctl(PR_SET_PDEATHSIG, SIGCONT));
  const before = own();
  const c = world.container({ init: ["/bin/sleep", "100000"] });
  await c.start({ setup: false });
  expect(own()).toEqual(before);
  now(prctl(PR_SET_PDEATHSIG, 0));
  using namespace = new Fd(now(openat(AT_FDCWD, `/proc/${c.pid}/ns/user`, O_RDONLY)));
  const owner = mem(4);
  now(ioctl(namespace.n, NS_GET_OWNER_UID, owner));
  expect(new DataView(owner.buffer).getUint32(0, true)).toBe(UID_START);
  await c.kill();
});

test("a name from before there was a rule: a host name of it, quotes in the log and in errors", async () => {
  const name = `a "b"\n${"long ".repeat(20)}`;
  const { said } = await world.sh("hostname", { config: { name } });
  expect(said).toBe(`a-b-${"long-".repeat(20)}`.slice(0, 63));
  const shown = JSON.stringify(name);
  expect(await world.failure({ config: { name }, osDir: "/no/such" })).toStartWith(`start ${shown}: `);
  await expect(world.container({ config: { name } }).freeze()).rejects.toThrow(
    `${shown} is STOPPED: cannot freeze`,
  );
});

test("what a configuration asks for in vain is said at the start", async () => {
  await world.sh("true", { config: { allow_module: ["loop"] } });
  expect(world.log).toContain(
    "web: allow_module: this kernel would load unsigned modules, too: the container loads none",
  );
});

test("its uptime begins at 0", async () => {
  const { said } = await world.sh("cat /proc/uptime");
  expect(Number(said.split(" ")[0])).toBeLessThan(2);
});

test("it sees its own mounts only", async () => {
  const { said } = await world.sh("cat /proc/self/mountinfo; ls /", { mounts: [...WRITABLE, DATA, ETC] });
  expect(said).not.toContain(world.directory);
  const points = said
    .split("\n")
    .filter((l) => l.includes(" - "))
    .map((l) => l.split(" ")[4]!)
    .filter((p) => !/^\/(proc\/|sys\/(firmware$|fs\/[bp]|kernel|devices))/.test(p)); // masks
  expect(points.sort()).toEqual(
    [
      "/",
      "/data",
      "/dev",
      "/dev/.cml/proc",
      "/dev/.cml/sys",
      "/dev/mqueue",
      "/dev/pts",
      "/dev/shm",
      "/etc",
      "/proc",
      "/run",
      "/sbin/cservice",
      "/sys",
      "/sys/fs/cgroup",
    ].sort(),
  );
});

test("SHARED is read-only; SHARED_RW forgets", async () => {
  expect((await world.sh("touch /x")).said).toContain("Read-only file system");
  const once = await world.sh("echo 1 > /x; cat /x; cat /etc/image; stat -c %u:%g /etc/image /x", {
    mounts: WRITABLE,
  });
  expect(once.said).toBe("1\nfrom the image\n0:0\n0:0");
  expect((await world.sh("ls /x", { mounts: WRITABLE })).status).toBe(1);
});

test("EMPTY: ext4 keeps, tmpfs forgets and is bounded", async () => {
  const uuid = crypto.randomUUID();
  const mounts = [
    ...ROOT,
    DATA,
    { mount_point: "/tmp", image_file: "t", fs_type: "tmpfs", mount_type: Type.EMPTY, mount_data: "size=1m" },
  ];
  const write =
    "echo kept > /data/f; echo gone > /tmp/f; stat -c %u:%g /data /data/f; dd if=/dev/zero of=/tmp/big bs=64k count=64";
  const first = await world.sh(write, { uuid, mounts });
  expect(first.said).toContain("0:0\n0:0");
  expect(first.said).toContain("No space left on device");
  const second = await world.sh("cat /data/f; ls /tmp", { uuid, mounts });
  expect(second.said).toBe("kept");
});

test("a guest without /etc/hosts and /etc/resolv.conf gets them; files, links and a read-only root stay as they are", async () => {
  const config = { dns_server: "192.0.2.53" };
  const rw = (image: string) => [{ mount_point: "/", image_file: image, mount_type: Type.SHARED_RW }];
  const both = "cat /etc/hosts /etc/resolv.conf";
  const { said } = await world.sh(`${both}; stat -c '%a %u:%g' /etc/hosts`, { mounts: rw("root"), config });
  expect(said).toBe("127.0.0.1\tlocalhost\n127.0.1.1\tweb\n::1\tlocalhost\nnameserver 192.0.2.53\n644 0:0");
  expect((await world.sh("ls /etc", { config })).said).toBe("image"); // the root can't be written

  world.image("named", (root) => {
    busyboxRoot(root);
    symlinkSync("/data/elsewhere", join(root, "etc/hosts"));
    writeFileSync(join(root, "etc/resolv.conf"), "mine\n");
  });
  const kept = await world.sh("readlink /etc/hosts; ls /data; cat /etc/resolv.conf", {
    mounts: rw("named"),
    config,
  });
  expect(kept.said).toBe("/data/elsewhere\nmine");

  world.image("led", (root) => {
    busyboxRoot(root);
    rmSync(join(root, "etc"), { recursive: true });
    symlinkSync("/srv", join(root, "etc"));
  });
  expect((await world.sh("ls /srv", { mounts: rw("led"), config })).said).toBe("file");
});

test("OVERLAY_RW keeps changes over the image, on a directory and on /", async () => {
  const uuid = crypto.randomUUID();
  const mounts = [...ROOT, ETC];
  await world.sh("cat /etc/image; echo changed > /etc/image; echo new > /etc/new", { uuid, mounts });
  expect((await world.sh("cat /etc/image /etc/new", { uuid, mounts })).said).toBe("changed\nnew");

  const root = crypto.randomUUID();
  const whole = [...ROOT, { ...ETC, mount_point: "/" }];
  expect((await world.sh("mkdir /made; echo kept > /made/f", { uuid: root, mounts: whole })).status).toBe(0);
  expect((await world.sh("cat /made/f; stat -c %u:%g /made/f", { uuid: root, mounts: whole })).said).toBe(
    "kept\n0:0",
  );
});

test("OVERLAY_RW on tmpfs forgets", async () => {
  const mounts = [...ROOT, { ...ETC, fs_type: "tmpfs" }];
  expect((await world.sh("echo new > /etc/new; cat /etc/image /etc/new", { mounts })).said).toBe(
    "from the image\nnew",
  );
});

test("OVERLAY_RO puts a second image over the first", async () => {
  world.image("feature", (root) => {
    mkdirSync(join(root, "upper/added"), { recursive: true });
    mkdirSync(join(root, "work"));
    writeFileSync(join(root, "upper/added/f"), "feature\n");
  });
  const over = (mount_point: string) => [
    ...ROOT,
    { mount_point, image_file: "feature", mount_type: Type.OVERLAY_RO },
  ];
  expect((await world.sh("cat /added/f /etc/image; touch /x", { mounts: over("/") })).said).toMatch(
    /^feature\nfrom the image\ntouch: \/x: Read-only file system$/,
  );
  expect(
    (await world.sh("cat /etc/added/f /etc/image; touch /etc/x", { mounts: over("/etc") })).said,
  ).toMatch(/^feature\nfrom the image\ntouch: \/etc\/x: Read-only file system$/);
});

test("BIND_FILE is one file for several containers, BIND_FILE_RW lets them write it", async () => {
  const bind = (mount_type: number): Mounts => [
    ...ROOT,
    { mount_point: "/srv/file", image_file: "sub/note", fs_type: "none", mount_type },
  ];
  const wrote = await world.sh("echo shared > /srv/file; stat -c %u /srv/file", {
    mounts: bind(Type.BIND_FILE_RW),
  });
  expect(wrote.said).toBe("0");
  const other = { uidStart: UID_START + 100_000, mounts: bind(Type.BIND_FILE) };
  const read = await world.sh("cat /srv/file; echo no > /srv/file", other);
  expect(read.said).toMatch(/^shared\n.*Read-only file system$/);
});

test("DEVICE is a copy of a block device, made once; DEVICE_RW can be written", async () => {
  const file = join(world.directory, "device");
  writeFileSync(file, "");
  truncateSync(file, 8 << 20);
  expect(Bun.spawnSync(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", file]).exitCode).toBe(0);
  using open = new Fd(now(openat(-100, file, O_RDWR)));
  const { fd, path } = attachLoop(open, false, file);
  {
    using _device = fd;
    for (const mount_type of [Type.DEVICE, Type.DEVICE_RW]) {
      const uuid = crypto.randomUUID();
      const mounts = [...ROOT, { mount_point: "/data", image_file: path, fs_type: "ext4", mount_type }];
      const { said } = await world.sh("echo 1 > /data/f; cat /data/f; stat -c %u /data", { uuid, mounts });
      if (mount_type === Type.DEVICE) expect(said).toMatch(/Read-only file system\n.*No such file.*\n0$/);
      else expect(said).toBe("1\n0");
      if (mount_type === Type.DEVICE_RW)
        expect((await world.sh("cat /data/f", { uuid, mounts })).said).toBe("1");
    }
  }
  rmSync(file);
});

test("mount points inside other mounts, and inside /run, are made", async () => {
  const tmpfs = (mount_point: string) => ({
    mount_point,
    image_file: "t",
    fs_type: "tmpfs",
    mount_type: Type.EMPTY,
  });
  const mounts = [...ROOT, DATA, tmpfs("/data/a/b"), tmpfs("/run/deep/er")];
  expect(
    (await world.sh("touch /data/a/b/f /run/deep/er/f; ls /data/a/b /run/deep/er", { mounts })).said,
  ).toBe("/data/a/b:\nf\n\n/run/deep/er:\nf");
});

test("a volume is grown to its configured size, and never attached twice", async () => {
  const uuid = crypto.randomUUID();
  await world.sh("echo kept > /data/f", { uuid, mounts: [...ROOT, DATA] });
  // As after a power cut: something is to be mended first.
  const file = join(world.directory, "containers", uuid, "data.plain.img");
  Bun.spawnSync(["debugfs", "-w", "-R", "set_super_value free_blocks_count 1", file]);
  const grown = await world.sh("cat /data/f; stat -f -c %b:%S /data", {
    uuid,
    mounts: [...ROOT, { ...DATA, def_size: 40 }],
  });
  const [text, size] = grown.said.split("\n");
  expect(text).toBe("kept");
  const [blocks, bytes] = size!.split(":").map(Number);
  expect(blocks! * bytes!).toBeGreaterThan(30 * 1024 * 1024);

  const said = new Said();
  const c = world.container({
    uuid,
    mounts: [...ROOT, DATA],
    init: ["/bin/sh", "-c", "echo up; sleep 1000"],
    modules: [...product(), said.module],
  });
  await c.start({ setup: false });
  expect(await said.line()).toBe("up\n");
  // Another container that is told to use the same files, as a copied configuration would.
  const images = join(world.directory, "containers", uuid);
  expect(await world.failure({ images, mounts: [...ROOT, DATA] })).toMatch(
    /^start web: prepare volumes: volume data on \/data: .* is in use$/,
  );
  await c.kill();
  said.close();
});

test("devices: the usual ones work, no others can be made", async () => {
  const { said } = await world.sh(
    "echo x > /dev/null; dd if=/dev/zero bs=4 count=1 2>/dev/null | cat | wc -c; mknod /dev/sda b 8 0; mknod /tmp/null c 1 3; ls -l /dev/null; readlink /dev/fd; touch /dev/shm/x",
    { mounts: WRITABLE },
  );
  expect(said).toMatch(/mknod: \/dev\/sda: Operation not permitted/);
  expect(said).toMatch(/mknod: \/tmp\/null: Operation not permitted/);
  expect(said).toMatch(/crw-rw-rw-.* 1, +3 .*\/dev\/null\n\/proc\/self\/fd$/);
});

test("it inherits no descriptor, and no environment but its own", async () => {
  const { said } = await world.sh("ls /proc/self/fd | cat; env", {
    config: { init_env: ["A=b"] },
  });
  expect(said.split("\n").sort()).toEqual(
    [
      "0",
      "1",
      "2",
      "3",
      "A=b",
      "NOTIFY_SOCKET=/run/socket/cml-notify",
      "PATH=/bin",
      "PWD=/",
      "SHLVL=1",
    ].sort(),
  ); // 3: ls' own
});

test("a failed execve is the start's error", async () => {
  expect(await world.failure({ init: ["/etc/image"] })).toMatch(
    /^start web: child: execve\("\/etc\/image", .*EACCES$/,
  );
});

// --- several at once ----------------------------------------------------------------------

const SLEEPS = { init: ["/bin/sleep", "1000"] };
const outcome = (p: Promise<unknown>) => p.then(() => "ok", chain);

test("a kill that meets a start ends it, whenever it comes", async () => {
  for (const ticks of [0, 1, 2, 4, 8, 16, 32]) {
    const c = world.container(SLEEPS);
    const started = outcome(c.start({ setup: false }));
    for (let i = 0; i < ticks; i++) await new Promise<void>((go) => setImmediate(go));
    await Promise.all([c.kill(), c.kill()]);
    expect(await started).toMatch(/^ok$|^start web: /);
    expect(c.state).toBe("STOPPED");
  }
});

test("a start that hangs can be stopped", async () => {
  const reached = Promise.withResolvers<void>();
  const stuck: Module = {
    name: "stuck",
    async attach(_, p) {
      reached.resolve();
      await ended(p.pidfd);
      throw new Error("its child is gone");
    },
  };
  const c = world.container({ init: ["/bin/sleep", "1000"], modules: [...product(), stuck] });
  const starting = c.start({ setup: false }).then(() => "started", chain);
  await reached.promise;
  await c.stop();
  expect([c.state, await starting]).toEqual([
    "STOPPED",
    "start web: it was stopped meanwhile: attach stuck: its child is gone",
  ]);
});

test("only one start at a time; explain() and start() do not meet", async () => {
  const c = world.container(SLEEPS);
  const [explained, first, second, again] = await Promise.all([
    c.explain(),
    outcome(c.start({ setup: false })),
    outcome(c.start({ setup: false })),
    outcome(c.explain()),
  ]);
  expect(explained.at(-1)).toBe(
    'execve("/sbin/cservice", [/bin/sleep 1000], [PATH=/bin NOTIFY_SOCKET=/run/socket/cml-notify])',
  );
  expect([first, second, again]).toEqual(["ok", "web is STARTING already", "web is STARTING: stop it first"]);
  await c.kill();
});

test("frozen, it can be thawed, stopped and killed", async () => {
  const c = world.container({
    init: ["/bin/sh", "-c", "trap 'exit 3' USR2 TERM; while :; do sleep 0.02; done"],
  });
  for (const end of ["stop", "kill"] as const) {
    await c.start({ setup: false });
    await c.freeze();
    expect([c.state, await outcome(c.start({ setup: false }))]).toEqual([
      "FROZEN",
      "web is FROZEN: cannot become STARTING",
    ]);
    await c[end]();
    await c.whenStopped();
    expect([c.state, c.exit]).toEqual(["STOPPED", end === "stop" ? { status: 3 } : { signal: 9 }]);
  }
  expect(await outcome(c.freeze())).toBe("web is STOPPED: cannot freeze");
});

// --- images that lie ----------------------------------------------------------------------

/** A folder of the host that everybody may write to, and how an image would name it. */
function bait(): { path: string; spellings: Record<string, string> } {
  const path = join(world.directory, "bait");
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path);
  spawnChmod(path);
  const up = "../".repeat(12);
  return {
    path,
    spellings: {
      absolute: path,
      up: `${up}${path.slice(1)}`,
      "up from a directory": `bin/../${path.slice(1)}`,
      "up from a directory, absolute": `/bin/..${path}`,
      "through a descriptor": `/proc/self/fd/0/${up}${path.slice(1)}`,
      "through the old root": `/proc/1/root${path}`,
      "through init's cwd": `/proc/1/cwd/..${path}`,
    },
  };
}
const spawnChmod = (path: string): void => void Bun.spawnSync(["/bin/chmod", "0777", path]);

const SPELLINGS = [
  "absolute",
  "up",
  "up from a directory",
  "up from a directory, absolute",
  "through a descriptor",
  "through the old root",
  "through init's cwd",
];
const PLACES = ["proc", "sys", "dev", "run", "data", "sbin/cservice"];

for (const spelling of SPELLINGS)
  test(`an image whose directories are links out (${spelling}) touches nothing of the host`, async () => {
    const { path, spellings } = bait();
    const target = spellings[spelling]!;
    for (const [i, place] of PLACES.entries()) {
      const name = `hostile-${SPELLINGS.indexOf(spelling)}-${i}`;
      world.image(name, (root) => {
        busyboxRoot(root);
        rmSync(join(root, place), { recursive: true, force: true });
        symlinkSync(target, join(root, place));
      });
      const mounts = [
        { mount_point: "/", image_file: name, mount_type: Type.SHARED_RW },
        { ...DATA, mount_point: place === "data" ? "/data/made/here" : "/mnt/made/here", fs_type: "tmpfs" },
        {
          mount_point: place === "data" ? "/data/file" : "/mnt/file",
          image_file: "note",
          fs_type: "none",
          mount_type: Type.BIND_FILE_RW,
        },
      ];
      const outcome = await world
        .sh("echo 1 > /data/made/here/f; echo 2 > /data/file; cat /proc/self/mountinfo", { mounts })
        .then(
          (r) => r.said,
          (e) => chain(e),
        );
      expect(readdirSync(path), `${place}: ${outcome}`).toEqual([]);
      if (outcome.includes(" - ")) expect(outcome).not.toContain(world.directory);
      else expect(outcome).toMatch(/^start web: .*: [A-Z]+$/);
    }
    expect(existsSync(path)).toBe(true);
  });

test("a volume that holds links is no way out either", async () => {
  const { path } = bait();
  const uuid = crypto.randomUUID();
  const up = "../".repeat(12);
  await world.sh(
    `cd /data; ln -s ${path} absolute; ln -s ${up}${path.slice(1)} up; ln -s /proc/self/fd fds; ln -s /proc/1/root root; mkdir d; ln -s d/..${path} dots`,
    { uuid, mounts: [...ROOT, DATA] },
  );
  for (const at of ["absolute", "up", "dots", "root", ...[...Array(24).keys()].map((n) => `fds/${n}`)]) {
    const mounts: Mounts = [
      ...ROOT,
      DATA,
      { mount_point: `/data/${at}/x/y`, image_file: "t", fs_type: "tmpfs", mount_type: Type.EMPTY },
      { mount_point: `/data/${at}/file`, image_file: "note", fs_type: "none", mount_type: Type.BIND_FILE_RW },
    ];
    const outcome = await world.sh("cat /proc/self/mountinfo", { uuid, mounts }).then((r) => r.said, chain);
    expect(readdirSync(path), `${at}: ${outcome}`).toEqual([]);
  }
});

test("an upper directory that is a link is refused", async () => {
  const { path } = bait();
  const uuid = crypto.randomUUID();
  const as = (mount_point: string, mount_type: number) => [
    ...ROOT,
    { ...ETC, mount_point, mount_type, image_file: "v" },
  ];
  await world.sh(`cd /data; ln -s ${path} upper; mkdir work`, { uuid, mounts: as("/data", Type.EMPTY) });
  for (const at of ["/", "/etc"])
    expect(await world.failure({ uuid, mounts: as(at, Type.OVERLAY_RW) })).toMatch(/ELOOP/);
  world.image("linked", (root) => {
    symlinkSync(path, join(root, "upper"));
    mkdirSync(join(root, "work"));
  });
  for (const at of ["/", "/etc"])
    expect(
      await world.failure({
        mounts: [...ROOT, { mount_point: at, image_file: "linked", mount_type: Type.OVERLAY_RO }],
      }),
    ).toMatch(/ELOOP/);
  expect(readdirSync(path)).toEqual([]);
});

test("what a mount may not do, root of the container cannot give it", async () => {
  world.image("nodes", (root) => {
    busyboxRoot(root);
    Bun.spawnSync(["mknod", "-m", "666", join(root, "srv/null"), "c", "1", "3"]);
    writeFileSync(join(root, "note"), "");
  });
  const { said } = await world.sh(
    `for at in / /data /note; do for flags in bind,dev bind,rw bind,dev,rw; do busybox mount -o remount,$flags $at; done; done
     echo x > /srv/null; echo x > /note; cat /note; busybox grep -E ' (/|/data|/note) r' /proc/self/mountinfo`,
    {
      mounts: [
        { mount_point: "/", image_file: "nodes" },
        { mount_point: "/data", image_file: "locked", fs_type: "ext4", mount_type: Type.EMPTY },
        { mount_point: "/note", image_file: "note", fs_type: "", mount_type: Type.BIND_FILE },
      ],
    },
  );
  expect(said).toMatch(/srv\/null: Permission denied/);
  expect(said).toMatch(/note: Read-only file system/);
  expect(said).toMatch(/ \/ ro,nodev,noatime/);
  expect(said).toMatch(/ \/data rw,nodev,noatime/);
  expect(said).toMatch(/ \/note ro,nosuid,nodev,noexec/);
});

/** The product's modules as on a kernel that can do less. */
const on = (kernel: Abilities) => product().map((m) => (m.name === "volumes" ? volumesWith(kernel) : m));

// --- where the kernel cannot map the ids of an image ---------------------------------------------------------------

test("an image whose ids cannot be mapped: owners, special bits and capabilities are right, in two ranges", async () => {
  world.image(
    "old",
    (root) => {
      busyboxRoot(root);
      writeFileSync(join(root, "srv/big"), Buffer.alloc(1 << 20, "x"));
      writeFileSync(join(root, "srv/su"), "");
      writeFileSync(join(root, "srv/ping"), "");
      writeFileSync(join(root, "srv/one"), "both\n");
      linkSync(join(root, "srv/one"), join(root, "srv/two"));
      Bun.spawnSync(["chmod", "4755", join(root, "srv/su"), join(root, "srv/ping")]);
      Bun.spawnSync(["chown", "7:8", join(root, "srv/one"), join(root, "mnt")]);
      Bun.spawnSync(["chown", "-h", "5:6", join(root, "bin/sh")]);
      Bun.spawnSync(["setcap", "cap_net_raw+ep", join(root, "srv/ping")]);
    },
    "squashfs",
  );
  const unmapped = on({ mapsIds: async () => false, tmpfsTakesUserXattrs: () => false });
  const old = { image_file: "old", fs_type: "squashfs" };
  const look =
    "stat -c '%n %u:%g %a' / /bin /bin/sh /srv/big /srv/su /srv/one /srv/two /mnt; cat /srv/one /srv/two; stat -c %s /srv/big; tail -c 3 /srv/big";
  const seen =
    "/ 0:0 755|/bin 0:0 755|/bin/sh 5:6 777|/srv/big 0:0 644|/srv/su 0:0 4755|/srv/one 7:8 644|/srv/two 7:8 644|/mnt 7:8 755|both|both|1048576|xxx";
  const all = (said: string) => said.split("\n").join("|");
  for (const uidStart of [UID_START, UID_START + 100_000])
    for (const mount_type of [Type.SHARED, Type.SHARED_RW]) {
      const mounts = [
        { mount_point: "/", mount_type, ...old },
        ...(mount_type === Type.SHARED_RW ? [ETC] : []),
      ];
      const { said, status } = await world.sh(look, { uidStart, mounts, modules: unmapped });
      expect(all(said)).toBe(seen);
      expect(status).toBe(0);
    }
  const write =
    "echo new > /srv/big; cat /srv/big; mkdir /a; touch /a/f; stat -c %u:%g /a/f; echo e > /etc/e; cat /etc/e; rm /srv/one; ls /srv; mknod /null c 1 3";
  const rw = { mounts: [{ mount_point: "/", mount_type: Type.SHARED_RW, ...old }, ETC], modules: unmapped };
  expect(all((await world.sh(write, rw)).said)).toBe(
    "new|0:0|e|big|file|ping|su|two|mknod: /null: Operation not permitted",
  );
  expect((await world.sh("stat -c %s /srv/big; ls /a", rw)).said).toMatch(/^1048576\nls: /); // forgotten
  const shared = { mounts: [{ mount_point: "/", ...old }], modules: unmapped };
  expect((await world.sh("touch /x", shared)).said).toContain("Read-only file system");
  expect(world.log.filter((l) => l.includes("owners of")).length).toBe(2); // one pass for each range

  // The capability is one of the container's root: getcap shows the id it is for.
  const { said } = await world.sh("sleep 0; cat /proc/self/status", { ...shared });
  expect(said).toContain("CapBnd");
  const stay = new Said();
  const c = world.container({
    ...shared,
    init: ["/bin/sh", "-c", "echo up; sleep 1000"],
    modules: [...unmapped, stay.module],
  });
  await c.start({ setup: false });
  await stay.line();
  const cap = Bun.spawnSync(["getcap", "-n", `/proc/${c.pid}/root/srv/ping`]).stdout.toString();
  expect(cap).toContain(`cap_net_raw=ep [rootid=${UID_START}]`);
  await c.kill();
  stay.close();
});

test("where a tmpfs takes no user.* xattrs, directories of an image can be replaced all the same", async () => {
  world.image("tree", (root) => {
    busyboxRoot(root);
    mkdirSync(join(root, "srv/a/b"), { recursive: true });
    writeFileSync(join(root, "srv/a/b/file"), "of the image\n");
    writeFileSync(join(root, "srv/su"), "");
    writeFileSync(join(root, "srv/ping"), "");
    Bun.spawnSync(["chmod", "4755", join(root, "srv/su")]);
    Bun.spawnSync(["chown", "7:8", join(root, "srv/a/b/file")]);
    Bun.spawnSync(["setcap", "cap_net_raw+ep", join(root, "srv/ping")]);
    Bun.spawnSync(["mknod", "-m", "666", join(root, "srv/null"), "c", "1", "3"]);
    symlinkSync("/srv", join(root, "link"));
  });
  const modules = on({ mapsIds, tmpfsTakesUserXattrs: () => false });
  const tree = { image_file: "tree", mount_type: Type.SHARED_RW };
  const mounts = [{ mount_point: "/", ...tree }, { mount_point: "/mnt", ...tree }, ETC];
  for (const uidStart of [UID_START, UID_START + 100_000])
    for (const at of ["", "/mnt"]) {
      const { said } = await world.sh(
        `cd ${at}/srv && stat -c '%n %u:%g %a' . su a/b a/b/file; rm -r a && mkdir a && ls a; echo new > a/b; cat a/b;
         busybox mv /bin/ls /bin/ls2; rm -r ../tmp; mkdir ../tmp; touch ../tmp/x; stat -c %u:%g ../tmp/x;
         echo e > /etc/e; cat /etc/e; busybox chown 9:9 su; stat -c '%u:%g %a' su; mknod x c 1 3`,
        { mounts, modules, uidStart },
      );
      expect(said.split("\n")).toEqual([
        ". 0:0 755",
        "su 0:0 4755",
        "a/b 0:0 755",
        "a/b/file 7:8 644",
        "new",
        "0:0",
        "e",
        "9:9 755",
        "mknod: x: Operation not permitted",
      ]);
    }
  expect((await world.sh("cat /srv/a/b/file /mnt/srv/a/b/file", { mounts, modules })).said).toBe(
    "of the image\nof the image",
  );
  expect(world.log.filter((l) => /tree\.img: .*cmld mounts its overlays, in/.test(l)).length).toBe(1);

  // OVERLAY_RW in memory over a directory of the image, over one that is a link, over none, and over all of it.
  const memory = (mount_point: string) => ({ mount_point, fs_type: "tmpfs", mount_type: Type.OVERLAY_RW });
  for (const mount_type of [Type.SHARED, Type.SHARED_RW])
    for (const at of [["/srv"], ["/srv", "/none"], ["/link/a", "/etc"], ["/"], ["//"]]) {
      const stacked = [{ mount_point: "/", ...tree, mount_type }, ...at.map(memory)];
      if (mount_type === Type.SHARED && at.includes("/none")) continue; // cannot be made
      const { said } = await world.sh(
        `cd ${at[0] === "/link/a" ? "/srv/a" : "/srv"} && echo d > d && ${at[0] === "/link/a" ? "rm -r b && mkdir b && ls b" : "rm -r a && mkdir a && ls a"}; ls; test -d /none && echo x > /none/x`,
        { mounts: stacked, modules },
      );
      expect([at, said.split("\n").join(" ")]).toEqual([
        at,
        at[0] === "/link/a" ? "b d" : "a d file null ping su",
      ]);
    }

  // It belongs to the host's root, and the container cannot make it more than it was given.
  const { said } = await world.sh(
    `for flags in remount,size=99% remount,bind,dev remount,dev remount,bind,suid; do busybox mount -o $flags /; done
     echo x > /srv/null; cat /proc/self/mountinfo`,
    { mounts, modules },
  );
  expect(said).toMatch(/srv\/null: Permission denied/);
  expect(said).toMatch(/ \/ \/ rw,nodev,noatime.* - overlay /);

  const bounded = { mounts, modules, config: { tmpfs_size: 2 } };
  expect((await world.sh("dd if=/dev/zero of=/x bs=1M count=3", bounded)).said).toContain(
    "No space left on device",
  );

  const stay = new Said();
  const c = world.container({
    mounts,
    init: ["/bin/sh", "-c", "echo up; sleep 1000"],
    modules: [...modules, stay.module],
  });
  await c.start({ setup: false });
  await stay.line();
  const cap = Bun.spawnSync(["getcap", "-n", `/proc/${c.pid}/root/srv/ping`]).stdout.toString();
  expect(cap).toContain(`cap_net_raw=ep [rootid=${UID_START}]`);
  await c.kill();
  stay.close();
});

test("a squashfs image where the kernel maps its ids", async () => {
  const { said } = await world.sh("stat -c %u /bin", {
    mounts: [{ mount_point: "/", image_file: "old", fs_type: "squashfs" }],
  });
  expect(said).toBe("0");
});

test("the test's own world is what it says", () => {
  expect(readFileSync("/proc/self/mountinfo", "utf8")).not.toContain(world.directory);
});
