import { expect, test } from "bun:test";
import { hears, kindOf } from "./service.ts";

test("kindOf() goes by the executed file", () => {
  expect(
    [
      "/usr/lib/systemd/systemd",
      "/sbin/cservice",
      "/usr/sbin/cservice",
      "/bin/busybox",
      "/sbin/init",
      "/bin/app",
    ].map(kindOf),
  ).toEqual(["systemd", "cservice", "cservice", "busybox", "sysvinit", "plain"]);
  expect(kindOf("/bin/busybox.static (deleted)")).toBe("busybox");
  expect(kindOf("/opt/sbin/cservice")).toBe("plain");
});

test("hears(): caught, blocked, or waited for", () => {
  const status = (blocked: string, caught: string) =>
    `Name:\tinit\nSigBlk:\t${blocked}\nSigIgn:\t0\nSigCgt:\t${caught}\n`;
  const none = "0000000000000000";
  const waiting = process.arch === "arm64" ? "137 0x7f 0x0" : "128 0x7f 0x0";
  expect(hears(status(none, "0000000000004000"), "running", 15)).toBe(true);
  expect(hears(status("0000001000000000", none), "7 0x0", 37)).toBe(true);
  expect(hears(status(none, none), waiting, 12)).toBe(true);
  expect(hears(status(none, "0000000000000800"), "7 0x0", 15)).toBe(false);
});
