import { expect, test } from "bun:test";
import {
  AuditRecord,
  ContainerConfig,
  ContainerStatus,
  ControllerToDaemon,
  DaemonToController,
  DeviceStats,
  ServiceToCmldMessage,
} from "../../proto/gen/proto.js";
import { UINT64_MAX } from "./protobuf.ts";

const hex = (h: string) => new Uint8Array(Buffer.from(h.replaceAll(" ", ""), "hex"));
const { Command } = ControllerToDaemon;

test("enums go both ways", () => {
  expect(Command.CONTAINER_START).toBe(101);
  expect(Command[101]).toBe("CONTAINER_START");
});

test("encode() writes required fields, and the optional ones that are there, in order", () => {
  const bytes = ControllerToDaemon.encode({
    exec_pty: false,
    command: Command.CONTAINER_EXEC_CMD,
    exec_args: ["a", ""],
  });
  expect(Buffer.from(bytes).toString("hex")).toBe("0871" + "7a0161" + "7a00" + "800100");
  expect(ControllerToDaemon.encode({ command: -1 as 1 }).length).toBe(11);
  expect(() => ContainerStatus.encode({ uuid: "" } as ContainerStatus)).toThrow(
    "ContainerStatus.name: required, but missing",
  );
  expect(() => ControllerToDaemon.encode({ command: 1.5 as 1 })).toThrow(
    "ControllerToDaemon.command: not a whole number of",
  );
});

test("a message that is frozen is written once, and as one that is not", () => {
  const status = { uuid: "u", name: "web", type: 1, state: 4, uptime: 1, created: 2, guestos: "debian" };
  const write = (s: object) =>
    Buffer.from(DaemonToController.encode({ code: 3, container_status: [s as ContainerStatus] })).toString(
      "hex",
    );
  const full = { ...status, trust_level: 1, cryptfs_mode: 1 };
  const frozen = Object.freeze({ ...full });
  const bytes = write(full);
  expect([write(frozen), write(frozen)]).toEqual([bytes, bytes]);
  expect(write({ ...frozen, uptime: 2 })).not.toBe(bytes);
  expect(() => write(Object.freeze({ ...status }))).toThrow(
    "ContainerStatus.trust_level: required, but missing",
  );
});

test("decode() gives lists, stated defaults, and numbers without a name", () => {
  const m = ControllerToDaemon.decode(hex("08e707"));
  expect(m.command as number).toBe(999);
  expect(m.container_uuids).toEqual([]);
  expect(m.exec_pty).toBeFalse();
  expect(Object.hasOwn(m, "exec_pty")).toBeFalse();
  expect(m.exec_command).toBeUndefined();
  expect(Buffer.from(ControllerToDaemon.encode(m)).toString("hex")).toBe("08e707");
});

test("decode() takes a required field with a default as there, the last of many, and unknown fields", () => {
  const start = "0a0161 1200".replaceAll(" ", "");
  const color = "3500000000";
  expect(ContainerConfig.decode(hex(start + color)).token_type).toBe(2);
  expect(ContainerConfig.decode(hex(`${start}${color}0a0162`)).name).toBe("b");
  expect(
    ContainerConfig.decode(hex(`${start}${color}a006 01 a506 00000000 a106 0000000000000000 a306 0801 a406`))
      .name,
  ).toBe("a");
});

test("decode() names what is wrong", () => {
  const wrong = (h: string, message: string) =>
    expect(() => ControllerToDaemon.decode(hex(h))).toThrow(message);
  wrong("", "ControllerToDaemon.command: required, but missing");
  wrong("0d00000000", "ControllerToDaemon.command: wire type 5, not 0");
  wrong("0801 5205 6161", "ControllerToDaemon.container_uuids: longer than the message");
  wrong("0801 5202 c328", "ControllerToDaemon.container_uuids: not UTF-8");
  wrong("0801 5202 6100", "ControllerToDaemon.container_uuids: contains a NUL");
  wrong("0801 5a03 1202", "ControllerToDaemon.container_start_params: longer than the message");
  wrong("0801 5a02 1280", "ContainerStartParams.no_switch: wire type 2, not 0");
  wrong("08ffffffffffffffffffff01", "ControllerToDaemon.command: a number of more than ten bytes");
  wrong("0801 00", "field number 0");
  wrong("0801 07", "field number 0");
  wrong("0801 a706", "ControllerToDaemon.field 100: wire type 7");
  wrong(`0801 ${"a306".repeat(40)}`, "groups nest deeper than 16");
  wrong(`0801 ${"5200".repeat(300_000)}`, "more than 262144 fields");
});

test("64-bit numbers: exact to 2^53, and the largest one", () => {
  const stats = { disk_system: UINT64_MAX, disk_system_free: 2 ** 53, disk_system_used: 0 };
  const bytes = DeviceStats.encode(stats);
  expect(Buffer.from(bytes).toString("hex")).toBe("08ffffffffffffffffff01" + "108080808080808010" + "1800");
  expect(DeviceStats.decode(bytes)).toEqual(expect.objectContaining(stats));
  const old = AuditRecord.decode(AuditRecord.encode({ timestamp: -5, type: "x" }));
  expect(old.timestamp).toBe(-5);
  expect(ServiceToCmldMessage.plain({ code: 1 })).toEqual({ code: "BOOT_COMPLETED" });
});
