// The Debian package in a Debian machine with systemd: installed, used, restarted, crashed, upgraded, removed, purged.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PKI } from "../../initramfs/pki.ts";
import { Debian } from "./debian.ts";

const CONF = 'name: "web"\nguest_os: "busybox"\nguestos_version: 1\ncolor: 0\ntoken_type: NONE\n';

let m: Debian;
/** What the machine is like before. */
let before: Record<string, string>;

const deb = (): string => {
  const found = readdirSync("out").filter((f) => /^cml_.*_amd64\.deb$/.test(f));
  if (found.length !== 1) throw new Error(`out/: ${found.join(" ") || "no package"}: make deb`);
  return found[0]!;
};

/** Everything that a package or a container could leave behind. */
const state = (): Record<string, string> =>
  Object.fromEntries(
    Object.entries({
      mounts: "cut -d' ' -f5- /proc/self/mountinfo | grep -v ' /run/credentials/' | sort",
      groups: "cd /sys/fs/cgroup; find . -type d | grep -v '/dpkg\\|/run-u' | sort",
      links: "ip -o link | cut -d: -f2 | sort",
      loops: "grep -h ^/var/lib/cml /sys/block/loop*/loop/backing_file",
      routes: "ip route; ip rule",
      forwarding: "cat /proc/sys/net/ipv4/ip_forward",
      users: "cat /etc/passwd /etc/group",
      files:
        "find / -xdev \\( -path /var/lib/dpkg -o -path /var/cache -o -path /var/log/journal -o -path /proc \\) -prune -o -print | grep -v '/var/log/\\(dpkg\\|alternatives\\)' | sort",
      run: "find /run -xdev | grep -v '/run/systemd\\|/run/log\\|/run/credentials' | sort",
      processes: "ps -eo comm= | grep -v '^\\(ps\\|sh\\|sort\\|grep\\)$' | sort",
    }).map(([what, how]) => [what, m.shell(`${how} || true`)]),
  );

/** Without the copies that tools for users and groups leave beside what they change. */
const backups = (files: string): string =>
  files.replace(/^\/etc\/(passwd|group|shadow|gshadow|subuid|subgid)-\n/gm, "");

const control = (...args: string[]): string => m.must("cml-control", ...args);
const container = (): { state: string; uptime: number } => {
  const { container_status } = JSON.parse(control("--json", "state", "web"));
  return container_status[0];
};
/** The init of the container, in the machine's pid namespace. */
const inits = (): string =>
  m.shell(
    "cat /sys/fs/cgroup/system.slice/cml-containers.service/containers/*/child/cgroup.procs 2>/dev/null | head -1",
  );
const property = (name: string, unit = "cmld.service"): string =>
  m.must("systemctl", "show", "--value", "-p", name, unit);

/** As README.Debian says: whom to believe, then the guest. */
function install(): void {
  const [push, conf] = ["push_guestos_config", "/host/busybox-1.conf"];
  m.shell(`cp ${conf} /root/alone.conf`);
  const unsigned = m.run("cml-control", push, "/root/alone.conf");
  m.shell("rm /root/alone.conf");
  expect(unsigned.stdout + unsigned.stderr).toContain("it has no signature: sign it with `cml guestos sign`");
  control("ca_register", "/host/root.cert");
  m.shell("cp -r /host/busybox-1 /var/lib/cml/operatingsystems/");
  control(push, conf); // what lies beside it goes with it
}

/** Units change in their own time: what is waited for is asked again, until it holds. */
async function until(what: string, holds: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!holds()) {
    if (Date.now() > deadline)
      throw new Error(`not ${what}: ${m.run("journalctl", "-u", "cmld", "-n", "40", "--no-pager").stdout}`);
    await Bun.sleep(50); // between two questions
  }
}

beforeAll(async () => {
  m = await Debian.boot();
  cpSync(join("out", deb()), join(m.share, "cml.deb"));
  for (const name of ["", ".conf", ".sig", ".cert"].map((end) => `busybox-1${end}`))
    cpSync(join("out/guests", name), join(m.share, name), { recursive: true });
  cpSync(join(PKI, "ssig_rootca.cert"), join(m.share, "root.cert"));
  writeFileSync(join(m.share, "web.conf"), CONF);
  before = state();
});
afterAll(() => m?.[Symbol.asyncDispose]());

test("a Debian without systemd, a container image for instance, takes it and gives it back", () => {
  // No systemd can be seen there: its folder in /run is what tells.
  m.must(
    "unshare",
    "-m",
    "sh",
    "-ec",
    "mount -t tmpfs none /run; dpkg -i /host/cml.deb; dpkg -V cml; dpkg -P cml",
  );
  const now = state();
  for (const [what, was] of Object.entries(before))
    expect(`${what}:\n${backups(now[what]!)}`).toBe(`${what}:\n${backups(was)}`);
});

test("installing starts the manager; only root and the group cml-control reach it", () => {
  m.must("dpkg", "-i", "/host/cml.deb");
  expect(m.must("dpkg", "-V", "cml")).toBe("");
  expect(property("ActiveState")).toBe("active");
  expect(m.must("systemctl", "is-enabled", "cmld.service", "cmld.socket")).toBe("enabled\nenabled");
  expect(m.must("stat", "-c", "%a %U %G", "/run/socket/cml-control")).toBe("660 root cml-control");
  m.must("useradd", "-m", "-G", "cml-control", "member");
  m.must("useradd", "-m", "stranger");
  expect(m.must("runuser", "-u", "member", "--", "cml-control", "list")).toContain("code: CONTAINER_STATUS");
  expect(m.run("runuser", "-u", "stranger", "--", "cml-control", "list").status).toBe(1);
});

test("systemd finds nothing to say about the units", () => {
  const units = ["cmld.service", "cmld.socket", "cml-containers.service"];
  const verify = m.run("systemd-analyze", "verify", "--man=no", ...units);
  expect(`${verify.stdout}${verify.stderr}`).toBe("");
  expect(verify.status).toBe(0);
});

test("a container starts in the group that is kept for them", async () => {
  install();
  expect(control("create", "/host/web.conf")).toContain("guest_os");
  control("start", "web");
  await until("running", () => container().state === "RUNNING");
  expect(inits()).not.toBe("");
  expect(property("ControlGroup")).toBe("/system.slice/cmld.service");
});

test("containers outlive a restart, a crash and an upgrade of the manager", async () => {
  const init = inits();
  let manager = property("MainPID");
  const next = async (what: string): Promise<void> => {
    await until(`${what}: another manager`, () => {
      const now = property("MainPID");
      return now !== "0" && now !== manager && property("ActiveState") === "active";
    });
    manager = property("MainPID");
    expect(`${what}: ${container().state} ${inits()}`).toBe(`${what}: RUNNING ${init}`);
    // The sockets inside the container are kept by systemd for the next one.
    expect(Number(property("NFileDescriptorStore"))).toBeGreaterThan(0);
  };

  m.must("systemctl", "restart", "cmld");
  await next("restart");
  m.must("kill", "-KILL", manager);
  await next("crash");

  m.shell("echo '# changed here' >> /etc/cml/device.conf");
  m.shell(`
    cd /host
    dpkg-deb -R cml.deb tree
    sed -i 's/^Version: .*/&+next/' tree/DEBIAN/control
    dpkg-deb --root-owner-group -Znone -b tree next.deb >&2
  `);
  m.must("dpkg", "-i", "/host/next.deb");
  await next("upgrade");
  expect(m.shell("dpkg-query -W cml")).toEndWith("+next");
  expect(m.must("tail", "-1", "/etc/cml/device.conf")).toBe("# changed here");
  // Which executable it is: a link to a deleted file would be the old one.
  expect(m.must("readlink", `/proc/${manager}/exe`)).toBe("/usr/lib/cml/cml");
});

test("stopping the manager stops the containers", async () => {
  m.must("systemctl", "stop", "cmld");
  expect(inits()).toBe("");
  m.must("systemctl", "start", "cmld");
  expect(container().state).toBe("STOPPED");
  control("start", "web");
  await until("running", () => container().state === "RUNNING");
});

test("removing keeps the data and leaves nothing else; purging leaves nothing", () => {
  m.must("dpkg", "-r", "cml");
  const removed = state();
  for (const what of ["mounts", "groups", "loops", "links", "routes", "forwarding", "run", "processes"])
    expect(`${what}:\n${removed[what]}`).toBe(`${what}:\n${before[what]}`);
  expect(m.must("ls", "/etc/cml", "/var/lib/cml")).toContain("device.conf");

  m.shell(
    "userdel -r member 2>/dev/null; userdel -r stranger 2>/dev/null; rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-",
  );
  m.must("dpkg", "-P", "cml");
  const purged = state();
  for (const [what, was] of Object.entries(before))
    expect(`${what}:\n${backups(purged[what]!)}`).toBe(`${what}:\n${backups(was)}`);
});

test("a manager that is not there when the package goes does not leave its containers", async () => {
  m.must("dpkg", "-i", "/host/cml.deb");
  install();
  control("create", "/host/web.conf");
  control("start", "web");
  await until("running", () => container().state === "RUNNING");
  m.shell(
    "systemctl mask --runtime cmld; systemctl kill -s KILL --kill-who=main cmld; systemctl stop cmld; systemctl unmask --runtime cmld",
  );
  expect(inits()).not.toBe("");
  m.must("dpkg", "-P", "cml");
  const now = state();
  for (const what of ["mounts", "groups", "loops", "links", "processes"])
    expect(`${what}:\n${now[what]}`).toBe(`${what}:\n${before[what]}`);
});
