import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AF_UNIX, bindUnix, read, SOCK_DGRAM, SOCK_NONBLOCK, socket } from "./calls.ts";
import { Fd } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import { inherited, supervisor } from "./supervisor.ts";

test("supervisor() speaks to NOTIFY_SOCKET and hides it from programs that we start", () => {
  const folder = mkdtempSync(join(tmpdir(), "notify-"));
  const path = join(folder, "socket");
  using listening = new Fd(now(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)));
  now(bindUnix(listening.n, path));
  const env: Record<string, string | undefined> = {
    NOTIFY_SOCKET: path,
    WATCHDOG_USEC: "30000000",
    WATCHDOG_PID: String(process.pid),
    OTHER: "x",
  };
  const above = supervisor(env);
  expect(env).toEqual({ OTHER: "x" });
  expect(above.watchdogMs).toBe(15_000);
  above.notify("READY=1");
  above.notify("STATUS=ä");
  const said = () => {
    const into = mem(100);
    return Buffer.from(into.subarray(0, attempt(read(listening.n, into)))).toString();
  };
  expect([said(), said()]).toEqual(["READY=1", "STATUS=ä"]);
  rmSync(folder, { recursive: true });
  above.notify("READY=1"); // nobody is there any more
});

test("without a supervisor nothing is said; somebody else's watchdog is not ours", () => {
  expect(supervisor({}).watchdogMs).toBeUndefined();
  supervisor({}).notify("READY=1");
  expect(
    supervisor({ NOTIFY_SOCKET: "@x", WATCHDOG_USEC: "1", WATCHDOG_PID: "1" }).watchdogMs,
  ).toBeUndefined();
});

test("inherited(): only what is for us", () => {
  const env = { LISTEN_PID: "1", LISTEN_FDS: "2", LISTEN_FDNAMES: "a:b" };
  expect(inherited(() => true, env).size).toBe(0);
  expect(env).toEqual({} as never);
});
