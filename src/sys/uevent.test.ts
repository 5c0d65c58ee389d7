import { expect, test } from "bun:test";
import { parseUevent, printUevent } from "./uevent.ts";

test("parseUevent() reads the kernel's form and nothing else", () => {
  const event = parseUevent(
    Buffer.from("add@/devices/virtual/block/loop0\0ACTION=add\0DEVNAME=loop0\0MAJOR=7\0"),
  );
  expect(event?.action).toBe("add");
  expect(event?.path).toBe("/devices/virtual/block/loop0");
  expect(event?.values.get("DEVNAME")).toBe("loop0");
  expect(parseUevent(Buffer.from("libudev\0\xfe\xed\xca\xfe"))).toBeUndefined();
  expect(parseUevent(Buffer.from("add@relative\0"))).toBeUndefined();
  expect(parseUevent(new Uint8Array(0))).toBeUndefined();
});

test("printUevent() is the kernel's form again, without the number that the kernel adds, and never too long to be sent", () => {
  const values = new Map([
    ["SEQNUM", "7"],
    ["ACTION", "change"],
    ["SUBSYSTEM", "usb"],
    ["DEVNAME", "bus/usb/001/002"],
  ]);
  const printed = printUevent({ action: "add", path: "/devices/x", values })!;
  expect(Buffer.from(printed).toString()).toBe(
    "add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=usb\0DEVNAME=bus/usb/001/002\0",
  );
  expect(parseUevent(printed)?.values.get("DEVNAME")).toBe("bus/usb/001/002");
  expect(
    printUevent({ action: "add", path: "/x", values: new Map([["A", "b".repeat(2048)]]) }),
  ).toBeUndefined();
});
