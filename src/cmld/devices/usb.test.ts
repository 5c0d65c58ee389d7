import { expect, test } from "bun:test";
import { ContainerUsbType } from "../../../proto/gen/proto.js";
import { type Claimant, isMeant, type UsbConfig, usbDevice, whose } from "./usb.ts";

const event = (values: Record<string, string>) => ({
  action: "add",
  path: "/devices/pci0000:00/0000:00:04.0/usb1/1-4/1-4.2",
  values: new Map(Object.entries(values)),
});
const stick = usbDevice(event({ DEVTYPE: "usb_device", PRODUCT: "50/7ab/100" }), "S1")!;
const { GENERIC, TOKEN, PIN_ENTRY } = ContainerUsbType;
const config = (fields: Partial<UsbConfig> = {}): UsbConfig => ({
  ...{ id: "0050:07AB", serial: "S1", assign: false, type: GENERIC, port: "" },
  ...fields,
});
const claimant = (uuid: string, ...configs: Partial<UsbConfig>[]): Claimant => ({
  uuid,
  name: uuid,
  usb_configs: configs.map(config),
});

test("usbDevice() reads the kernel's words, of devices only", () => {
  expect(stick).toMatchObject({ id: "0050:07ab", serial: "S1", port: "1-4.2" });
  expect(usbDevice(event({ DEVTYPE: "usb_interface", PRODUCT: "50/7ab/100" }))).toBeUndefined();
  for (const PRODUCT of ["", "50", "xyz/1/1", "12345/1/1", "50/7ab"])
    expect(usbDevice(event({ DEVTYPE: "usb_device", PRODUCT }))).toBeUndefined();
});

test("isMeant() compares numbers, serial number and port; a configuration without serial means a device without", () => {
  expect(isMeant(config(), stick)).toBe(true);
  expect(isMeant(config({ id: "50:7ab" }), stick)).toBe(true);
  expect(isMeant(config({ id: "50:7ac" }), stick)).toBe(false);
  for (const serial of ["", "s1", "S1 ", "S"]) expect(isMeant(config({ serial }), stick)).toBe(false);
  expect(isMeant(config({ serial: "" }), { ...stick, serial: "" })).toBe(true);
  expect(isMeant(config({ port: "1-4.2" }), stick)).toBe(true);
  expect(isMeant(config({ port: "1-4" }), stick)).toBe(false);
});

test("whose(): all that share it, or one that is assigned it, the first to come", () => {
  const all = [claimant("a", {}), claimant("b", { assign: true }), claimant("c", {}), claimant("d")];
  expect(whose(stick, all, [])).toEqual({ to: [], closed: false, refused: [] });
  expect(whose(stick, all, ["d", "a", "c"])).toEqual({ to: ["a", "c"], closed: false, refused: [] });
  expect(whose(stick, all, ["b", "a"])).toEqual({
    to: ["b"],
    closed: true,
    refused: [["a", "b has it, assigned"]],
  });
  expect(whose(stick, all, ["a", "b", "c"])).toEqual({
    to: ["a", "c"],
    closed: false,
    refused: [["b", "a has it"]],
  });
});

test("whose(): a token or PIN pad of any container, running or not, is closed to all", () => {
  for (const type of [TOKEN, PIN_ENTRY]) {
    const all = [claimant("a", { assign: true }), claimant("b", { type })];
    expect(whose(stick, all, ["a"])).toEqual({ to: [], closed: true, refused: [] });
    expect(whose(stick, all, ["b", "a"])).toEqual({ to: [], closed: true, refused: [] });
    expect(whose({ ...stick, serial: "S2" }, all, ["a"])).toEqual({ to: [], closed: false, refused: [] });
  }
});
