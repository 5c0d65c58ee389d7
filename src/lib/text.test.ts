import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import * as proto from "../../proto/gen/proto.js";
import {
  ContainerConfig,
  DeviceConfig,
  DeviceId,
  GuestOSConfig,
  GuestOSMount,
} from "../../proto/gen/proto.js";
import { Unframer } from "./frame.ts";
import { decode, encode, type MessageClass } from "./protobuf.ts";
import { parse, print } from "./text.ts";

const golden = new URL("../../test/data/golden/", import.meta.url).pathname;

test("every message of the original's is decoded, encoded to the same bytes and printed as it was", () => {
  const records = readFileSync(`${golden}messages.jsonl`, "utf8").trimEnd().split("\n");
  let messages = 0;
  for (const record of records) {
    const { call, type, stream, message, text } = JSON.parse(record);
    const { schema } = (proto as unknown as Record<string, MessageClass>)[type]!;
    const all = stream
      ? [...new Unframer().push(Buffer.from(stream, "base64"))]
      : [Buffer.from(message, "base64")];
    expect(all.length).toBe(text.length);
    for (const [i, bytes] of all.entries()) {
      const m = decode(schema, bytes);
      expect(`${call}: ${Buffer.from(encode(schema, m)).toString("hex")}`).toBe(
        `${call}: ${Buffer.from(bytes).toString("hex")}`,
      );
      expect(`${call}\n${print({ schema }, m)}`).toBe(`${call}\n${text[i]}`);
      expect(encode(schema, parse({ schema, decode: (b) => decode(schema, b) }, text[i]))).toEqual(
        encode(schema, m),
      );
      messages++;
    }
  }
  expect(messages).toBe(335);
});

test("configurations that the original wrote are printed byte for byte", () => {
  const kinds = [
    ["state/containers", ContainerConfig, 9],
    ["state/operatingsystems", GuestOSConfig, 4],
    ["state/tokens", DeviceId, 1],
  ] as const;
  for (const [folder, type, count] of kinds) {
    const files = readdirSync(`${golden}${folder}`).filter((f) => f.endsWith(".conf"));
    expect(files.length).toBe(count);
    for (const f of files) {
      const source = readFileSync(`${golden}${folder}/${f}`, "utf8");
      const again = print(type as { schema: typeof type.schema }, parse<object>(type, source));
      if (f.startsWith("247d34db") || f === "dmos-1.conf")
        expect(again).not.toBe(source); // as pushed: written by hand
      else expect(`${f}\n${again}`).toBe(`${f}\n${source}`);
    }
  }
});

test("required numbers, enums and bools may be missing", () => {
  const c = parse(ContainerConfig, readFileSync(`${golden}input/tinycontainer.conf`));
  expect(print(ContainerConfig, c)).toBe(`name: "tinycontainer"
guest_os: "tinyos"
guestos_version: 1
color: 0
type: CONTAINER
assign_dev: "c 4:1 rwm"
token_type: SOFT
`);
  expect(parse(DeviceConfig, "")).toEqual(expect.objectContaining({ hostedmode: false, tpm_enabled: true }));
  expect(parse(GuestOSConfig, readFileSync(`${golden}input/tinyos.conf`)).mounts.length).toBe(2);
});

test("parse() takes what people write", () => {
  const c = parse(
    ContainerConfig,
    `\uFEFF# a demo\r
name: 'we' "b"; guest_os: "d\\x65b\\151an" # its system\r
color: 0xff00ff00,
init_env: ["A=1", 'B="2"']
init_env: "C=\u00e4\\303\\266\\u00fc"
vnet_configs: { if_name: "eth0" configure: t }
vnet_configs < if_name: "eth1", configure: false >
type: 1 token_type: NONE
pids_limit: 100
`,
  );
  expect(print(ContainerConfig, c)).toBe(`name: "web"
guest_os: "debian"
color: 4278255360
type: CONTAINER
init_env: "A=1"
init_env: "B=\\"2\\""
init_env: "C=äöü"
vnet_configs {
  if_name: "eth0"
  configure: true
}
vnet_configs {
  if_name: "eth1"
  configure: false
}
token_type: NONE
pids_limit: 100
`);
  expect(print(ContainerConfig, parse(ContainerConfig, print(ContainerConfig, c)))).toBe(
    print(ContainerConfig, c),
  );
});

test("numbers at their limits", () => {
  const version = (n: string) =>
    parse(GuestOSConfig, `name:"a"hardware:"b"version:${n} description{en:""}`).version;
  expect(version("18446744073709551615")).toBe(2 ** 64);
  expect(
    print(
      GuestOSConfig,
      parse(GuestOSConfig, `name:"a"hardware:"b"version:18446744073709551615 description{en:""}`),
    ),
  ).toContain("version: 18446744073709551615\n");
  expect(version("0x10")).toBe(16);
});

test("what is wrong is named by line, column and field", () => {
  const wrong = (source: string | Uint8Array, message: string) =>
    expect(() => parse(ContainerConfig, source)).toThrow(message);
  const ok = 'name: "web"\nguest_os: "debian"\n';
  wrong("", "line 1, column 1: ContainerConfig.name: required, but missing");
  wrong(`${ok}colour: 1`, 'line 3, column 1: ContainerConfig: no field "colour"');
  wrong(`${ok}color: red`, 'line 3, column 8: ContainerConfig.color: "red" is no number');
  wrong(
    `${ok}color: 4294967296`,
    "line 3, column 8: ContainerConfig.color: 4294967296 is not within 0 to 4294967295",
  );
  wrong(`${ok}color: -1`, "ContainerConfig.color: -1 is not within");
  wrong(`${ok}color: 1.5`, 'ContainerConfig.color: "1.5" is no whole number');
  wrong(`${ok}color: 010`, 'ContainerConfig.color: "010" begins with 0');
  wrong(`${ok}type: VM`, 'ContainerConfig.type: "VM" is none of CONTAINER KVM');
  wrong(`${ok}type: 7`, "ContainerConfig.type: 7 is none of 1 2");
  wrong(`${ok}userns: maybe`, 'ContainerConfig.userns: "maybe" is neither true nor false');
  wrong(`${ok}name: "x"`, "line 3, column 1: ContainerConfig.name: given twice");
  wrong(`${ok}userns: true userns: true`, "line 3, column 14: ContainerConfig.userns: given twice");
  wrong(`${ok}color 1`, 'line 3, column 7: ContainerConfig.color: "1" where a ":" should be');
  wrong(`${ok}vnet_configs {\n  if_name: "eth0"\n`, 'line 3, column 14: ContainerVnetConfig: "}" is missing');
  wrong(
    `${ok}vnet_configs {\n configure: true\n}`,
    "line 3, column 14: ContainerVnetConfig.if_name: required, but missing",
  );
  wrong(`${ok}vnet_configs 5`, 'ContainerConfig.vnet_configs: "5" where "{" should be');
  wrong(
    `${ok}dns_server: "8.8.8.8\n`,
    "line 3, column 13: ContainerConfig.dns_server: the string does not end",
  );
  wrong(`${ok}dns_server: "\\q"`, 'line 3, column 14: ContainerConfig.dns_server: "\\\\q" is no escape');
  wrong(`${ok}dns_server: "\\777"`, 'ContainerConfig.dns_server: "\\\\777" is no byte');
  wrong(`${ok}dns_server: "\\ud800"`, "is no character");
  wrong(`${ok}dns_server: "\\303"`, "ContainerConfig.dns_server: not UTF-8");
  wrong(`${ok}dns_server: "\\000"`, "ContainerConfig.dns_server: contains a NUL");
  wrong(`${ok}init_env: ["a" "b"`, '"," or "]"');
  wrong(`${ok}}`, '"}" where the name of a field should be');
  wrong(`${ok}[a.b]: 1`, "extensions are not known");
  wrong("\x1b[31m", 'line 1, column 1: ContainerConfig: "\\u001b" where');
  wrong(Buffer.from(`${ok}# ä\n# \xe4\n`, "latin1"), "line 3, column 3: ContainerConfig: not UTF-8");
  wrong(`${ok}\0`, "line 3, column 1: ContainerConfig: a NUL");
  wrong(" ".repeat(2 ** 20 + 1), "1048577 bytes, at most 1048576");
  wrong(`${ok}${"init_env:''".repeat(70_000)}`, "more than 65536 entries");
});

test("duplicate required numbers: the last one counts, as for the original", () => {
  expect(parse(ContainerConfig, 'name:"a" guest_os:"b" color:1 color:2').color).toBe(2);
});

test("print() writes unknown enums as the original, and bytes that act on a terminal as octals", () => {
  const mount = {
    image_file: "a\u009bb\x7f\x1b",
    mount_point: "/",
    fs_type: "ext4",
    mount_type: 99 as GuestOSMount.Type,
  };
  expect(print(GuestOSMount, mount)).toBe(`image_file: "a\\302\\233b\\177\\033"
mount_point: "/"
fs_type: "ext4"
mount_type: unknown
`);
});
