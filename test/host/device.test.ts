// What is asked of the machine as a whole: reading the data folder again, guests, being provisioned, being wiped.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, existsSync, readdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { developer } from "../../initramfs/pki.ts";
import { ContainerState } from "../../proto/gen/proto.js";
import { type Client, Cmld, Command } from "./daemon.ts";
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
  expect(await c.say(Command.RELOAD_CONTAINERS)).toBe("CMD_OK");
  expect(await list(c)).toEqual(["new STOPPED", "runs RUNNING"]);
  renameSync(away, join(containers(), `${rests}.conf`));
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
