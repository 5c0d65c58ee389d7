// cmld with scd, where everything must be signed: what is, runs; what is not, is refused with the reason; roots that are
// registered count, and the device gets its certificate.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ContainerState, ContainerTrust } from "../../proto/gen/proto.js";
import { sign } from "../../src/guestos/sign.ts";
import { initialise } from "../../src/pki/development.ts";
import { Cmld, Command } from "./daemon.ts";

const pki = mkdtempSync(join(tmpdir(), "signed-"));
const signer = { key: join(pki, "pki/ssig_cml.key"), certs: [join(pki, "pki/ssig_cml.cert")] };
const foreign = { key: join(pki, "other/ssig_cml.key"), certs: [join(pki, "other/ssig_cml.cert")] };
let cmld: Cmld;
let base: string;

beforeAll(async () => {
  for (const name of ["pki", "other"]) initialise(join(pki, name), "ec:P-256", () => {});
  cmld = await Cmld.begin(undefined, {
    device: "",
    guestos: "feature_install_guest: true\n",
    async prepare(folder) {
      base = folder;
      copyFileSync(join(pki, "pki/ssig_rootca.cert"), join(base, "tokens/ssig_rootca.cert"));
      await sign(join(base, "operatingsystems/busybox-1.conf"), signer);
    },
  });
});
afterAll(async () => {
  await cmld[Symbol.asyncDispose]();
  rmSync(pki, { recursive: true });
});

const CONFIGURATION =
  'guest_os: "busybox"\nguestos_version: 1\ncolor: 0\ntoken_type: NONE\nloopback_only: true\n';

/** What a client sends: the bytes of a configuration and of what is beside it. */
async function signedContainer(name: string, by = signer) {
  const conf = join(pki, `${name}.conf`);
  writeFileSync(conf, `name: "${name}"\n${CONFIGURATION}`);
  await sign(conf, by);
  const [config, signature, certificate] = ["conf", "sig", "cert"].map((e) =>
    readFileSync(join(pki, `${name}.${e}`)),
  );
  return {
    container_config_file: config!,
    container_config_signature: signature!,
    container_config_certificate: certificate!,
  };
}

test("a signed GuestOS is loaded as SIGNED, and a signed container runs", async () => {
  using c = await cmld.client();
  const created = await c.ask(Command.CREATE_CONTAINER, await signedContainer("web"));
  expect(created.error_text ?? "").toBe("");
  const [uuid] = created.container_uuids as [string];
  const at = { container_uuids: [uuid] };
  const [status] = (await c.ask(Command.GET_CONTAINER_STATUS, at)).container_status;
  expect(status).toMatchObject({ trust_level: ContainerTrust.SIGNED, guestos: "busybox" });
  using events = await cmld.client();
  await events.say(Command.EVENTS, at);
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  while ((await events.next()).event!.state !== ContainerState.RUNNING);
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
});

test("a container that may install guests brings one from its own files, as the user it is there; nobody else can", async () => {
  using c = await cmld.client();
  const source = readFileSync(join(base, "operatingsystems/busybox-1.conf"), "utf8")
    .replace('name: "busybox"', 'name: "brought"')
    .concat('update_base_url: "file://run"\n');
  const conf = join(pki, "brought-1.conf");
  writeFileSync(conf, source);
  await sign(conf, signer);
  const files = ["conf", "sig", "cert"].map((end) => join(pki, `brought-1.${end}`));
  const request = {
    guestos_config_file: readFileSync(files[0]!),
    guestos_config_signature: readFileSync(files[1]!),
    guestos_config_certificate: readFileSync(files[2]!),
  };
  expect(await c.say(Command.PUSH_GUESTOS_CONFIG, request)).toBe("GUESTOS_MGR_INSTALL_STARTED");
  expect((await c.next()).error_text).toBe("install brought-1: the client is in no container");

  const created = await c.ask(Command.CREATE_CONTAINER, await signedContainer("installer"));
  const at = { container_uuids: created.container_uuids };
  using events = await cmld.client();
  await events.say(Command.EVENTS, at);
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  while ((await events.next()).event!.state !== ContainerState.RUNNING);
  const init = readFileSync(join(cmld.folder, "run/ledger", created.container_uuids[0]!), "utf8");
  const pid = /"pid":([0-9]+)/.exec(init)![1]!;
  const mirror = `/proc/${pid}/root/run/operatingsystems/${process.arch === "arm64" ? "arm" : "x86"}/brought-1`;
  chmodSync(pki, 0o755); // the client in the container reads what it sends
  // As root of the container is, but with our programs.
  const inside = ["nsenter", "--target", pid, "--user", "--setuid", "0", "--setgid", "0"];
  const placed = Bun.spawnSync([...inside, "sh", "-c", `mkdir -p ${mirror} && cat > ${mirror}/root.img`], {
    stdin: readFileSync(join(base, "operatingsystems/busybox-1/root.img")),
  });
  expect(placed.stderr.toString()).toBe("");
  const socket = `/proc/${pid}/root/run/socket/cml-control`;
  const control = ["src/main.ts", "control", "--socket", socket, "push_guestos_config", ...files];
  const said = Bun.spawnSync([...inside, process.execPath, ...control]);
  expect(`${said.stdout}${said.stderr}`).toContain("GUESTOS_MGR_INSTALL_COMPLETED");
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
  while ((await events.next()).event!.state !== ContainerState.STOPPED);
  expect(await c.say(Command.REMOVE_GUESTOS, { guestos_name: "brought" })).toBe("CMD_OK");
}, 20_000);

test("what is not signed, or by nobody we know, is refused with the reason", async () => {
  using c = await cmld.client();
  const good = await signedContainer("bad");
  const create = async (request: object) => (await c.ask(Command.CREATE_CONTAINER, request)).error_text;
  expect(await create({ container_config_file: good.container_config_file })).toStartWith(
    "it has no signature: sign it",
  );
  const changed = Buffer.concat([good.container_config_file, Buffer.from("\n")]);
  expect(await create({ ...good, container_config_file: changed })).toEndWith("it does not match the data");
  expect(await create(await signedContainer("bad", foreign))).toContain(
    "unable to get local issuer certificate",
  );
  const push = await c.say(Command.PUSH_GUESTOS_CONFIG, {
    guestos_config_file: readFileSync("test/data/signing/dmos-1.conf"),
    guestos_config_signature: readFileSync("test/data/signing/dmos-1.sig"),
    guestos_config_certificate: readFileSync("test/data/signing/dmos-1.cert"),
  });
  expect(push).toStartWith("GUESTOS_MGR_INSTALL_FAILED: ");
  expect(push).toContain("unable to get local issuer certificate");
});

test("a root that is registered counts at once; what is none is refused", async () => {
  using c = await cmld.client();
  const register = (guestos_rootcert: Uint8Array) => c.say(Command.REGISTER_NEWCA, { guestos_rootcert });
  expect(await register(Buffer.from("garbage"))).toStartWith(
    "GUESTOS_MGR_REGISTER_CA_ERROR: a PEM certificate",
  );
  expect(await register(readFileSync(foreign.certs[0]!))).toStartWith("GUESTOS_MGR_REGISTER_CA_ERROR: ");
  const root = readFileSync(join(pki, "other/ssig_rootca.cert"));
  expect(await register(root)).toBe("GUESTOS_MGR_REGISTER_CA_OK");
  expect(await register(root)).toBe("GUESTOS_MGR_REGISTER_CA_OK");
  const created = await c.ask(Command.CREATE_CONTAINER, await signedContainer("theirs", foreign));
  expect(created.error_text ?? "").toBe("");
});

test("local roots: one, for GuestOSes only where device.conf allows them, never through a link", async () => {
  using c = await cmld.client();
  const local = join(base, "tokens/localca_rootca.cert");
  const register = (name: string) =>
    c.say(Command.REGISTER_LOCALCA, { guestos_rootcert: readFileSync(join(pki, name, "gen_rootca.cert")) });
  const outside = join(pki, "outside");
  symlinkSync(outside, local);
  expect(await register("pki")).toBe("GUESTOS_MGR_REGISTER_CA_OK");
  expect(existsSync(outside)).toBe(false);
  expect(await register("pki")).toBe("GUESTOS_MGR_REGISTER_CA_OK");
  expect(await register("other")).toContain(
    "this device has a local root certificate, and it is another one",
  );
});

test("a configuration that was tampered with on the disk is not loaded again", async () => {
  using c = await cmld.client();
  const conf = join(base, "operatingsystems/busybox-1.conf");
  const text = readFileSync(conf, "utf8");
  writeFileSync(conf, text.replace("busybox", "busyb0x"));
  await cmld.end("SIGTERM");
  await cmld.start();
  using again = await cmld.client();
  expect((await again.ask(Command.LIST_GUESTOS_CONFIGS)).guestos_configs).toEqual([]);
  expect(readFileSync(join(cmld.folder, "out"), "utf8")).toContain(
    "busybox-1.conf: not loaded: signature by",
  );
  writeFileSync(conf, text);
  await cmld.end("SIGTERM");
  await cmld.start();
  using last = await cmld.client();
  expect((await last.ask(Command.LIST_GUESTOS_CONFIGS)).guestos_configs).toHaveLength(1);
  void c;
});
