// The client and the daemon together: what somebody types, and what comes of it.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cmld } from "./daemon.ts";

let cmld: Cmld;
beforeAll(async () => {
  cmld = await Cmld.begin("::sysinit:/bin/busybox echo hello from init\n::respawn:/bin/sleep 1000000\n");
});
afterAll(async () => await cmld[Symbol.asyncDispose]());

async function control(...args: string[]) {
  const client = Bun.spawn([process.execPath, "src/main.ts", "control", "-s", cmld.socket, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: "/usr/bin:/bin" },
  });
  const [stdout, stderr, exit] = await Promise.all([
    client.stdout.text(),
    client.stderr.text(),
    client.exited,
  ]);
  return { stdout, stderr, exit };
}

const json = async (...args: string[]) => JSON.parse((await control("--json", ...args)).stdout);
const OK = "code: RESPONSE\nresponse: CMD_OK\n";

test("a container from its configuration to its removal", async () => {
  const file = join(cmld.folder, "web.conf");
  writeFileSync(file, '# ours\nname: "web"\nguest_os: "busybox"\ncolor: 0x2080ffff\ntoken_type: NONE\n');
  const created = await control("create", file);
  expect(created).toMatchObject({ stderr: "", exit: 0 });
  expect(created.stdout).toMatch(
    /^code: CONTAINER_CONFIG\ncontainer_uuids: "[0-9a-f-]{36}"\ncontainer_configs \{\n {2}name: "web"\n/,
  );
  expect((await control("list", "--quiet")).stdout).toBe("web\n");
  expect((await control("start", "--explain", "web")).stdout).toContain('\nexecve("/sbin/init"');
  expect((await json("state", "web")).container_status[0].state).toBe("STOPPED");

  expect(await control("start", "web", "--wait")).toEqual({
    stdout: "code: RESPONSE\nresponse: CONTAINER_START_OK\n",
    stderr: "",
    exit: 0,
  });
  expect((await json("state", "web")).container_status[0]).toMatchObject({
    state: "RUNNING",
    guestos: "busybox",
  });
  expect(await control("start", "web")).toMatchObject({
    stdout: "code: RESPONSE\nresponse: CONTAINER_START_EEXIST\n",
    stderr: "control: start web: web is RUNNING already (CONTAINER_START_EEXIST)\n",
    exit: 1,
  });
  expect((await json("stats", "web")).stats[0]).toMatchObject({ name: "web" });
  expect((await control("ifaces", "web")).stdout).toContain("1: lo: <LOOPBACK");
  expect((await control("logs", "web")).stdout).toContain("hello from init");
  expect(await control("freeze", "web")).toMatchObject({ stdout: OK, exit: 0 });
  expect(await control("unfreeze", "web")).toMatchObject({ stdout: OK, exit: 0 });

  expect(await control("stop", "web")).toMatchObject({
    stdout: "code: RESPONSE\nresponse: CONTAINER_STOP_OK\n",
    exit: 0,
  });
  expect(await control("remove", "web", "--key=x")).toMatchObject({ stdout: OK, exit: 0 });
  expect(await control("state", "web")).toMatchObject({
    stdout: "",
    stderr: "control: state web: Container with provided uuid/name does not exist!\n",
    exit: 1,
  });
}, 30_000);

test("a device is assigned to one container, lent to another while it runs, and never to both", async () => {
  const make = async (name: string, more: string) => {
    const file = join(cmld.folder, `${name}.conf`);
    writeFileSync(file, `name: "${name}"\nguest_os: "busybox"\ncolor: 1\ntoken_type: NONE\n${more}\n`);
    return file;
  };
  expect(await control("create", await make("one", 'assign_dev: "c 10:235 rwm"'))).toMatchObject({ exit: 0 });
  for (const [field, rule] of [
    ["allow_dev", "c 10:* r"],
    ["assign_dev", "c 10:235 m"],
  ])
    expect((await control("create", await make("two", `${field}: "${rule}"`))).stderr).toContain(
      `${field}[0]: device rule "${rule}": one is assigned "c 10:235 rwm"`,
    );
  expect((await control("create", await make("two", 'allow_dev: "a *:* rwm"'))).stderr).toContain(
    'allow_dev[0]: device rule "a *:* rwm" names every device there is',
  );
  expect(await control("create", await make("two", ""))).toMatchObject({ exit: 0 });
  expect(
    (await control("update_config", "two", await make("two", 'allow_dev: "c 10:235"'))).stderr,
  ).toContain("one is assigned");
  expect((await control("dev_access", "two", "c 4:1 rwm")).stderr).toContain("two is STOPPED: not running");
  for (const name of ["one", "two"])
    expect(await control("start", name, "--wait")).toMatchObject({ exit: 0 });
  expect((await control("dev_access", "two", "c 10:235 r")).stderr).toContain("one is assigned");
  expect((await control("dev_access", "two", "c 1:8 -")).stderr).toContain("CMD_FAILED");
  expect(await control("dev_access", "two", "c 4:1 rwm")).toMatchObject({ stdout: OK, exit: 0 });
  const devices = async (name: string) =>
    (await control("run", "--no-tty", name, "/bin/busybox", "ls", "/dev")).stdout;
  expect(await devices("one")).toContain("autofs");
  expect(await devices("two")).toContain("tty1");
  expect(await control("dev_access", "two", "c 4:1")).toMatchObject({ stdout: OK, exit: 0 });
  expect(await devices("two")).not.toContain("tty1");
  for (const name of ["one", "two"]) expect(await control("remove", name)).toMatchObject({ exit: 0 });
}, 180_000);

test("what the daemon refuses, it gives a reason for", async () => {
  const file = join(cmld.folder, "bad.conf");
  writeFileSync(file, 'name: "bad"\nguest_os: "busybox"\ncolour: 1\n');
  const refused = await control("create", file);
  expect(refused.stdout).toBe("code: CONTAINER_CONFIG\n");
  expect(refused.stderr).toMatch(
    /^control: create .*bad.conf: line 3, column 1: ContainerConfig: no field "colour".*\n$/,
  );
  expect(refused.exit).toBe(1);
  expect((await control("list_guestos")).stdout).toContain(
    'name: "busybox"\n  hardware: "x86"\n  version: 1\n',
  );
  expect((await control("device_stats")).stdout).toStartWith(
    "code: DEVICE_STATS\ndevice_stats {\n  disk_system: ",
  );
  expect((await control("get_provisioned")).stdout).toBe(
    "code: DEVICE_PROVISIONED_STATE\ndevice_is_provisioned: false\n",
  );
  expect(await control("reload")).toMatchObject({ stdout: OK, stderr: "", exit: 0 });
  const careless = join(cmld.folder, "base/containers/web.conf");
  writeFileSync(careless, "");
  expect(await control("reload")).toMatchObject({
    stdout: OK,
    stderr: "control: reload: web.conf: not loaded: the name is no uuid in lower case\n",
    exit: 0,
  });
  rmSync(careless);
});

test("two of one name: the first is taken, and said; what a program reads stays JSON", async () => {
  const file = join(cmld.folder, "twin.conf");
  writeFileSync(file, 'name: "twin"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\n');
  for (let i = 0; i < 2; i++) expect((await control("create", file)).exit).toBe(0);
  const uuids: string[] = (await json("list", "--quiet")).container_status.map(
    (s: { uuid: string }) => s.uuid,
  );
  const first = await control("state", "twin");
  expect(first.stderr).toBe(`control: 2 containers are named twin: the first is taken, ${uuids[0]}\n`);
  const start = await control("--json", "start", uuids[0]!);
  expect(JSON.parse(start.stdout)).toMatchObject({ response: "CONTAINER_START_TOKEN_UNPAIRED" });
  expect(start.stderr).toStartWith("Password: ");
  expect((await control("stats", uuids[0]!, "no\nbody")).stderr).toEndWith('does not exist! ("no\\nbody")\n');
  expect(await control("help", "bogus")).toMatchObject({ exit: 255 });
  for (const uuid of uuids) expect(await control("remove", uuid)).toMatchObject({ stdout: OK });
}, 30_000);

test("the logs of the daemon are fetched", async () => {
  const folder = join(cmld.folder, "fetched");
  mkdirSync(folder);
  expect(await control("retrieve_logs", folder)).toEqual({ stdout: OK, stderr: "", exit: 0 });
  expect(readdirSync(folder).filter((name) => name.startsWith("cml-daemon"))).not.toEqual([]);
});
