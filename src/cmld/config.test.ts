import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { DeviceConfig } from "../../proto/gen/proto.js";
import {
  type ContainerRules,
  checkDevice,
  isName,
  plainName,
  readContainer,
  readDevice,
  readDeviceId,
  readGuestOs,
  shownName,
} from "./config.ts";

const golden = new URL("../../test/data/golden/", import.meta.url).pathname;
const device = checkDevice(DeviceConfig.create());
const rules: ContainerRules = { device, provisioned: false, loaded: false };
const bytes = (text: string) => new Uint8Array(Buffer.from(text));
const web = 'name: "web" guest_os: "debian" ';
const container = (more = "", r = rules) => readContainer(bytes(web + more), r).config;

test("every configuration of the original's is accepted", () => {
  for (const folder of ["state/containers", "input", "state/operatingsystems"])
    for (const f of readdirSync(golden + folder).filter((f) => f.endsWith(".conf"))) {
      const source = readFileSync(`${golden}${folder}/${f}`);
      if (folder === "state/operatingsystems" || f.endsWith("os.conf")) readGuestOs(source);
      else readContainer(source, rules);
    }
  expect(readDeviceId(readFileSync(`${golden}state/tokens/device_id.conf`))).toMatch(/^[0-9a-f-]{36}$/);
});

test("a checked configuration is complete and frozen", () => {
  const c = container("vnet_configs { if_name: 'eth0' configure: true }");
  expect(c).toMatchObject({
    userns: true,
    netns: true,
    token_type: 2,
    ram_limit: 0,
    assign_cpus: "",
    init_env: [],
    pids_limit: 0,
  });
  expect(c.vnet_configs[0]).toEqual({ if_name: "eth0", configure: true, if_rootns_name: "", if_mac: "" });
  expect(() => Object.assign(c, { name: "x" })).toThrow();
  expect(() => (c.vnet_configs as unknown[]).push(1)).toThrow();
  const os = readGuestOs(
    bytes('name:"a" hardware:"x86" version:1 description{en:"x"} def_ram_limit: 64'),
  ).config;
  expect(os).toMatchObject({
    init_path: "/init",
    def_ram_limit: 64,
    def_ram_limit_written: true,
    min_ram_limit: 128,
  });
  expect(
    readGuestOs(bytes('name:"a" hardware:"x86" version:1 description{en:"x"}')).config.def_ram_limit_written,
  ).toBeFalse();
});

test("what a container may not say is refused by field and reason", () => {
  const wrong = (more: string, reason: string) => expect(() => container(more)).toThrow(reason);
  wrong("type: KVM", "type: KVM is not supported");
  wrong("userns: false", "userns: false is refused: every container has its own user namespace");
  wrong(
    "image_sizes { image_name: '../x' image_size: 1 }",
    'image_sizes[0].image_name: "../x" is no name of an image',
  );
  wrong("image_sizes { image_name: '/x' image_size: 1 }", "is no name of an image");
  wrong(
    "image_sizes { image_name: 'x' image_size: 16777217 }",
    "image_sizes[0].image_size: 16777217 is not within 0 to 16777216",
  );
  wrong(
    "image_sizes { image_name: 'x' image_size: 18446744073709551615 }",
    "image_sizes[0].image_size: larger than",
  );
  wrong("init_env: 'FOO'", 'init_env[0]: "FOO" is not like NAME=value');
  wrong("assign_cpus: '3-1'", "assign_cpus");
  wrong("assign_cpus: '0,'", "assign_cpus");
  wrong(
    "dns_server: '8.8.8.8\\noptions x'",
    'dns_server: "8.8.8.8\\noptions x" contains a control character',
  );
  wrong("dns_server: 'dns'", 'dns_server: "dns" is no IP address');
  wrong("net_ifaces { netif: 'a b' }", 'net_ifaces[0].netif: "a b" is neither');
  wrong("allow_dev: 'c 1:3 x'", 'allow_dev[0]: device rule "c 1:3 x" is not like');
  wrong("assign_dev: 'a *:* rwm'", 'assign_dev[0]: device rule "a *:* rwm" names every device there is');
  wrong("vnet_configs { if_name: 'a/b' configure: true }", "vnet_configs[0].if_name");
  wrong(
    "vnet_configs {if_name:'a' configure:true} vnet_configs {if_name:'a' configure:true}",
    '"a" is there twice',
  );
  wrong("usb_configs { id: '1050' serial: '1' }", "usb_configs[0].id");
  wrong("usb_configs { id: '1050:1' serial: '1' port: '../1' }", "usb_configs[0].port");
  wrong("token_type: USB", "token_type: USB needs a usb_configs entry of type TOKEN");
  wrong("fifos: '..'", 'fifos[0]: ".." is no name of a fifo');
  wrong("pids_limit: 0", "pids_limit: 0 is not within 1 to 4194304");
  wrong("cpu_weight: 10001", "cpu_weight: 10001 is not within 1 to 10000");
  wrong(`${"fifos: 'a'".repeat(257)}`, "fifos: 257 entries, at most 256");
  expect(() => readContainer(bytes("name: 'a' guest_os: '../x'"), rules)).toThrow("guest_os");
});

test("userns: false only where device.conf allows it, and never once provisioned", () => {
  const allowing = readDevice(bytes("allow_host_userns: true")).config;
  expect(container("userns: false", { ...rules, device: allowing }).userns).toBeFalse();
  expect(() => container("userns: false", { device: allowing, provisioned: true, loaded: false })).toThrow(
    "userns: false is refused on a provisioned device",
  );
});

test("names: a rule for new ones, quotes for old ones", () => {
  const named = (name: string, loaded: boolean) =>
    readContainer(bytes(`name: ${JSON.stringify(name)} guest_os: "a"`), { ...rules, loaded }).config.name;
  expect(named("web-1.example_2", false)).toBe("web-1.example_2");
  for (const name of ["", "a b", "ä", "a\nb", "..", "x".repeat(64), "3bcdeac9-fd88-4d04-b241-f84b85fe1161"]) {
    expect(() => named(name, false)).toThrow("name: ");
    expect(named(name, true)).toBe(name);
    expect(isName(name)).toBeFalse();
  }
  expect(shownName("web")).toBe("web");
  expect(shownName("a\nb")).toBe('"a\\nb"');
  expect(plainName("a\nb ä")).toBe("a-b-");
});

test("what a GuestOS may not say", () => {
  const wrong = (more: string, reason: string) =>
    expect(() => readGuestOs(bytes(`name:"a" hardware:"x86" version:1 description{en:"x"} ${more}`))).toThrow(
      reason,
    );
  const mount = (image: string, point: string, type: string, more = "") =>
    `mounts { image_file: "${image}" mount_point: "${point}" fs_type: "ext4" mount_type: ${type} ${more} }`;
  wrong(mount("../root", "/", "SHARED"), 'mounts[0].image_file: "../root" is no name of an image');
  wrong(mount("root", "/../etc", "SHARED"), 'mounts[0].mount_point: "/../etc" contains ".."');
  wrong(mount("root", "etc", "SHARED"), "is no absolute path");
  wrong(mount("/etc/shadow", "/x", "DEVICE"), "is no device below /dev");
  wrong(mount("../x", "/x", "BIND_FILE"), "is no relative path");
  wrong(mount("root", "/", "SHARED", 'image_sha2_256: "ab"'), "mounts[0].image_sha2_256");
  const hashes = (digit: string, size = 1) => `image_size: ${size} image_sha2_256: "${digit.repeat(64)}"`;
  const twice = (first: string, second: string) =>
    `${mount("root", "/", "SHARED_RW", first)} ${mount("root", "/lower", "SHARED", second)}`;
  wrong(
    twice(hashes("a"), hashes("b")),
    `mounts[1].image_sha2_256: "root" has ${"b".repeat(64)} here, and ${"a".repeat(64)} in mounts[0]`,
  );
  wrong(twice(hashes("a"), hashes("a", 2)), 'mounts[1].image_size: "root" has 2 here, and 1 in mounts[0]');
  wrong(
    twice(`${hashes("a", 4096)} image_verity_sha256: "${"c".repeat(64)}"`, hashes("a", 4096)),
    `mounts[1].image_verity_sha256: "root" has none here, and ${"c".repeat(64)} in mounts[0]`,
  );
  wrong(
    `${mount("root", "/", "SHARED", hashes("a"))} ${mount("root", "/", "SHARED", hashes("b")).replace("mounts", "mounts_setup")}`,
    "mounts_setup[0].image_sha2_256",
  );
  wrong(
    mount("root", "/", "SHARED", `${hashes("a", 4097)} image_verity_sha256: "${"c".repeat(64)}"`),
    "mounts[0].image_size: 4097 is no number of whole blocks of 4096",
  );
  const same = `name:"a" hardware:"x86" version:1 description{en:"x"} ${twice(hashes("a"), hashes("A"))}`;
  expect(readGuestOs(bytes(same)).config.mounts).toHaveLength(2);
  wrong('mounts { image_file: "a" mount_point: "/" fs_type: "ext4" }', "mounts[0].mount_type: missing");
  wrong('init_path: "sbin/init"', "init_path");
  expect(() => readGuestOs(bytes('name:"a/b" hardware:"x86" version:1 description{en:"x"}'))).toThrow(
    'name: "a/b" is no name',
  );
});

test("what a device may not say", () => {
  expect(readDevice(bytes("")).config).toMatchObject({
    c0os: "trustx-coreos",
    tpm_enabled: true,
    signed_configs: true,
    host_if: "wlan0",
  });
  expect(() => readDevice(bytes('host_dns: "x"'))).toThrow('host_dns: "x" is no IP address');
  expect(() => readDevice(bytes("hostedmode: 7"))).toThrow("line 1, column 13: DeviceConfig.hostedmode");
});
