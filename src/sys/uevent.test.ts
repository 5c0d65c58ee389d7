import { expect, test } from "bun:test";
import { parseUevent } from "./uevent.ts";

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
