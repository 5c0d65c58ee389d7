// What is asked of the machine as a whole: reading the data folder again, guests, being provisioned, being wiped.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { developer, signed } from "../../initramfs/pki.ts";
import { ContainerState } from "../../proto/gen/proto.js";
import { type Client, Cmld, Command, Response } from "./daemon.ts";
import { busyboxRoot } from "./world.ts";

let cmld: Cmld;
beforeAll(async () => {
  cmld = await Cmld.begin();
});
afterAll(async () => await cmld[Symbol.asyncDispose]());

const containers = () => join(cmld.folder, "base/containers");

async function list(c: Client): Promise<string[]> {
  const { container_status } = await c.ask(Command.GET_CONTAINER_STATUS);
  return container_status.map((s) => `${s.name} ${ContainerState[s.state]}`).sort();
}

test("reload: what was put there appears, what was taken away goes unless it runs", async () => {
  const [runs, rests] = [await cmld.create("runs"), await cmld.create("rests")];
  using c = await cmld.client();
  expect(await c.say(Command.CONTAINER_START, { container_uuids: [runs] })).toBe("CONTAINER_START_OK");
  const away = join(cmld.folder, "away.conf");
  renameSync(join(containers(), `${rests}.conf`), away);
  rmSync(join(containers(), `${runs}.conf`));
  const text = 'name: "new"\nguest_os: "busybox"\ntoken_type: NONE\nloopback_only: true\n';
  writeFileSync(join(containers(), "11111111-2222-3333-4444-555555555555.conf"), text);
  writeFileSync(join(containers(), "broken.conf"), text);
  const said = "CMD_OK: broken.conf: not loaded: the name is no uuid in lower case";
  expect(await c.say(Command.RELOAD_CONTAINERS)).toBe(said);
  expect(await list(c)).toEqual(["new STOPPED", "runs RUNNING"]);
  renameSync(away, join(containers(), `${rests}.conf`));
  writeFileSync(join(containers(), "empty.conf"), "");
  expect(await c.say(Command.RELOAD_CONTAINERS)).toBe(`${said}, and 1 more: see the log`);
  for (const name of ["broken", "empty"]) rmSync(join(containers(), `${name}.conf`));
  expect(await c.say(Command.RELOAD_CONTAINERS)).toBe("CMD_OK");
  expect(await list(c)).toEqual(["new STOPPED", "rests STOPPED", "runs RUNNING"]);
  for (const uuid of [rests, "11111111-2222-3333-4444-555555555555"])
    expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
}, 20_000);

test("a GuestOS that a container uses is not removed", async () => {
  using c = await cmld.client();
  expect(await c.say(Command.REMOVE_GUESTOS, { guestos_name: "busybox" })).toStartWith(
    "CMD_FAILED: guest_os busybox is used by ",
  );
});

test("an update waits for the next start; then the old version goes, which nobody uses any more", async () => {
  using c = await cmld.client();
  const oses = join(cmld.folder, "base/operatingsystems");
  const versions = async () =>
    (await c.ask(Command.LIST_GUESTOS_CONFIGS)).guestos_configs
      .filter((os) => os.name === "updated")
      .map((os) => os.version);
  const install = async (version: number) => {
    cpSync(join(oses, "busybox-1"), join(oses, `updated-${version}`), { recursive: true });
    const conf = join(cmld.folder, `updated-${version}.conf`);
    const text = readFileSync(join(oses, "busybox-1.conf"), "utf8");
    writeFileSync(conf, text.replace('"busybox"', '"updated"').replace("version: 1", `version: ${version}`));
    signed(conf);
    const [config, signature, certificate] = ["conf", "sig", "cert"].map((end) =>
      readFileSync(conf.replace(/conf$/, end)),
    );
    const pushed = await c.say(Command.PUSH_GUESTOS_CONFIG, {
      guestos_config_file: config!,
      guestos_config_signature: signature!,
      guestos_config_certificate: certificate!,
    });
    if (pushed !== "GUESTOS_MGR_INSTALL_STARTED") return pushed;
    const { response, error_text } = await c.next();
    return error_text ?? Response[response!];
  };
  expect(await install(1)).toBe("GUESTOS_MGR_INSTALL_COMPLETED");
  const text = 'name: "up"\nguest_os: "updated"\ncolor: 0\ntoken_type: NONE\nloopback_only: true\n';
  const created = await c.ask(Command.CREATE_CONTAINER, { container_config_file: Buffer.from(text) });
  const at = { container_uuids: created.container_uuids };
  using events = await cmld.client();
  await events.say(Command.EVENTS, at);
  const becomes = async (state: ContainerState) => {
    while ((await events.next()).event!.state !== state);
  };
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  await becomes(ContainerState.RUNNING);
  expect(await install(2)).toBe("GUESTOS_MGR_INSTALL_COMPLETED");
  expect(await versions()).toEqual([1, 2]);
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
  await becomes(ContainerState.STOPPED);
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  await becomes(ContainerState.RUNNING);
  expect(await versions()).toEqual([2]);
  expect(readdirSync(oses).filter((n) => n.startsWith("updated-1"))).toEqual([]);
  expect(await install(1)).toBe(
    "GUESTOS_MGR_INSTALL_FAILED: updated-1 is older than updated-2, which is installed",
  );
  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
  await becomes(ContainerState.STOPPED);
  while ((await list(c)).some((line) => line.startsWith("up "))) await Bun.sleep(5); // its files go; nothing tells
  expect(await c.say(Command.REMOVE_GUESTOS, { guestos_name: "updated" })).toBe("CMD_OK");
  expect(await install(1)).toBe(
    "GUESTOS_MGR_INSTALL_FAILED: updated-1 is older than version 2, which has run here (device.conf: allow_downgrade)",
  );
}, 30_000);

test("docs/guests.md: a guest that was built here is installed, runs and is removed", async () => {
  const at = (name: string) => join(cmld.folder, name);
  const cml = (...words: string[]) => {
    const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, "src/main.ts", ...words]);
    return `${exitCode} ${stdout}${stderr}`;
  };
  const control = (...words: string[]) => cml("control", "--socket", cmld.socket, ...words);
  busyboxRoot(at("root"));
  symlinkSync("../bin/busybox", at("root/sbin/init"));
  const built = [
    "build",
    "own",
    at("root"),
    "--version",
    "1",
    "-o",
    at("built"),
    "--volume",
    "data:/data:16",
  ];
  expect(cml("guestos", ...built)).toStartWith("0 ");
  expect(control("push_guestos_config", at("built/own-1.conf"))).toContain(
    "it has no signature: sign it with",
  );
  const { key, certs } = developer();
  expect(cml("guestos", "sign", "--key", key, "--cert", certs[0]!, at("built/own-1.conf"))).toStartWith("0 ");
  cpSync(at("built/own-1"), join(cmld.folder, "base/operatingsystems/own-1"), { recursive: true });
  const files = ["conf", "sig", "cert"].map((extension) => at(`built/own-1.${extension}`));
  expect(control("push_guestos_config", ...files)).toMatch(/^0 [\s\S]*INSTALL_COMPLETED/);
  writeFileSync(at("own.conf"), 'name: "own"\nguest_os: "own"\ntoken_type: NONE\nloopback_only: true\n');
  expect(control("create", at("own.conf"))).toStartWith("0 ");
  expect(control("start", "own", "--wait")).toMatch(/^0 [\s\S]*CONTAINER_START_OK/);
  expect(control("run", "own", "nopty", "/bin/stat", "-f", "-c", "%T", "/data")).toBe("0 ext2/ext3\n");
  expect(control("remove", "own")).toMatch(/^0 [\s\S]*CMD_OK/);
  expect(control("remove_guestos", "own")).toMatch(/^0 [\s\S]*CMD_OK/);
}, 30_000);

test("provisioned is for good", async () => {
  const provisioned = async () => {
    using c = await cmld.client();
    return (await c.ask(Command.GET_PROVISIONED)).device_is_provisioned;
  };
  expect(await provisioned()).toBe(false);
  {
    using c = await cmld.client();
    expect(await c.say(Command.SET_PROVISIONED)).toBe("CMD_OK");
  }
  expect(await provisioned()).toBe(true);
  expect(await cmld.end("SIGHUP")).toBe(0);
  await cmld.start();
  expect(await provisioned()).toBe(true);
}, 20_000);

test("a wiped device runs nothing and has nothing left", async () => {
  using c = await cmld.client();
  expect(await list(c)).toEqual(["new RUNNING", "rests RUNNING"]); // the third had lost its configuration
  expect(await c.say(Command.WIPE_DEVICE)).toBe("CMD_OK");
  expect(await list(c)).toEqual([]);
  expect((await c.ask(Command.LIST_GUESTOS_CONFIGS)).guestos_configs).toEqual([]);
  for (const folder of ["operatingsystems", "containers"])
    expect(readdirSync(join(cmld.folder, "base", folder))).toEqual([]);
  expect(readdirSync(join(cmld.folder, "run/ledger"))).toEqual([]);
  expect(existsSync(join(cmld.folder, "base/device.conf"))).toBe(true);
}, 20_000);
