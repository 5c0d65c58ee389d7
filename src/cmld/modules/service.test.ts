import { expect, test } from "bun:test";
import { kindOf } from "./service.ts";

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
