// At a real terminal: what is shown, what is hidden, and that its settings come back on every way out.
import { expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ContainerState,
  ContainerTokenType,
  ControllerToDaemon,
  DaemonToController,
  type IContainerStatus,
  type IDaemonToController,
} from "../../proto/gen/proto.js";
import { type Answer, type Line, TestDaemon } from "../../test/replay.ts";
import { Seat } from "../../test/seat.ts";

const { Command } = ControllerToDaemon;
const { Code, Response } = DaemonToController;
const SIZE = { rows: 31, columns: 97 };

const web: IContainerStatus = {
  uuid: "f815386c-25b6-4a09-9ee4-4b65b977f167",
  name: "web",
  type: 1,
  state: ContainerState.RUNNING,
  uptime: 3725,
  created: 1795227197,
  guestos: "debian",
  trust_level: 1,
  cryptfs_mode: 1,
};

/** What a daemon with one container answers to the questions that come before the request itself. */
function before(
  m: ControllerToDaemon,
  token_type = ContainerTokenType.SOFT,
): IDaemonToController | undefined {
  if (m.command === Command.GET_CONTAINER_STATUS)
    return { code: Code.CONTAINER_STATUS, container_status: [web] };
  if (m.command === Command.CONTAINER_CMLD_HANDLES_PIN)
    return { code: Code.CONTAINER_CMLD_HANDLES_PIN, container_cmld_handles_pin: false };
  if (m.command === Command.GET_CONTAINER_CONFIG)
    return {
      code: Code.CONTAINER_CONFIG,
      container_uuids: [web.uuid],
      container_configs: [{ name: "web", guest_os: "debian", color: 0, token_type }],
    };
  return undefined;
}

const daemonWith = (
  on: (m: ControllerToDaemon, answer: Answer, line: Line) => void,
  token?: ContainerTokenType,
): TestDaemon =>
  new TestDaemon((m, answer, line) => {
    const known = before(m, token);
    if (known) answer(known);
    else on(m, answer, line);
  });

const seat = (daemon: TestDaemon, ...args: string[]): Seat =>
  new Seat(
    [process.execPath, `${import.meta.dir}/../main.ts`, "control", "--socket", daemon.socket, ...args],
    ["TERM=xterm", "PATH=/usr/bin:/bin"],
    SIZE,
  );

const startOk = (_: ControllerToDaemon, answer: Answer): void =>
  answer({ code: Code.RESPONSE, response: Response.CONTAINER_START_OK });

test("a password is not shown, and the terminal shows again what is typed", async () => {
  using daemon = daemonWith(startOk);
  await using user = seat(daemon, "start", "web");
  const settings = user.settings;
  await user.sees("Password: ");
  user.type("s3cret\n");
  expect(await user.ended()).toEqual({ status: 0 });
  await user.sees("web: started");
  expect(user.text).not.toContain("s3cret");
  expect(user.settings).toEqual(settings);
  expect(Buffer.from(daemon.said.at(-1)!.container_start_params!.key!).toString()).toBe("s3cret");
});

test("Ctrl-C at a password gives the settings back", async () => {
  using daemon = daemonWith(startOk);
  await using user = seat(daemon, "stop", "web");
  const settings = user.settings;
  await user.sees("Password: ");
  user.type("half\x03");
  expect(await user.ended()).toEqual({ status: 130 });
  expect(user.settings).toEqual(settings);
  expect(user.text).not.toContain("half");
});

test("a container without a token is started without asking", async () => {
  using daemon = daemonWith(startOk, ContainerTokenType.NONE);
  await using user = seat(daemon, "start", "web");
  expect(await user.ended()).toEqual({ status: 0 });
  expect(user.text).not.toContain("Password");
  expect(daemon.said.at(-1)?.container_start_params).toBeUndefined();
});

test("lists are tables with words and colours; a hostile name does nothing to the terminal", async () => {
  using daemon = new TestDaemon((_, answer) =>
    answer({
      code: Code.CONTAINER_STATUS,
      container_status: [web, { ...web, name: "x\x1b]0;owned\x07\u202e", state: ContainerState.ZOMBIE }],
    }),
  );
  await using user = seat(daemon, "list");
  user.resize({ rows: 31, columns: 120 });
  expect(await user.ended()).toEqual({ status: 0 });
  await user.sees("zombie");
  const lines = Bun.stripANSI(user.text).split("\r\n");
  expect(lines[0]).toMatch(/^NAME +STATE +UP +GUESTOS +TRUST +VOLUMES +UUID$/);
  expect(lines[1]).toMatch(/^web +running +1h 2m +debian +signed +plain +f815386c-/);
  expect(lines[2]).toStartWith('"x\\u001b]0;owned\\u0007\\u202e"');
  expect(user.text).toContain("\x1b[32mrunning\x1b[39m");
});

test("ifaces: a table with addresses; of a daemon that sends the original's text alone, that text", async () => {
  let table = true;
  using daemon = daemonWith((_, answer) =>
    answer({
      code: Code.CONTAINER_IFACES,
      container_ifaces: ["1: lo: <LOOPBACK\x1b[2J>\n"],
      ...(table && {
        interfaces: [
          {
            name: "host0",
            kind: "veth",
            state: "UP",
            mac: "02:00:00:00:00:07",
            addresses: ["172.23.0.2/24", "fe80::1/64"],
            mtu: 1500,
            rx_bytes: 2048,
            tx_bytes: 7,
          },
        ],
      }),
    }),
  );
  {
    await using user = seat(daemon, "ifaces", "web");
    expect(await user.ended()).toEqual({ status: 0 });
    await user.sees("host0");
    const lines = Bun.stripANSI(user.text).split("\r\n");
    expect(lines[0]).toMatch(/^NAME +KIND +STATE +ADDRESSES +MAC +MTU +RECEIVED +SENT$/);
    expect(lines[1]).toMatch(
      /^host0 +veth +up +172\.23\.0\.2\/24 fe80::1\/64 +02:00:00:00:00:07 +1500 +2\.0 KiB +7 B$/,
    );
  }
  table = false;
  await using user = seat(daemon, "ifaces", "web");
  expect(await user.ended()).toEqual({ status: 0 });
  await user.sees("LOOPBACK");
  expect(user.text).toBe("1: lo: <LOOPBACK\\x1b[2J>\r\n");
});

test("a refusal is one line with the daemon's reason", async () => {
  using daemon = daemonWith((_, answer) =>
    answer({
      code: Code.RESPONSE,
      response: Response.CMD_FAILED,
      error_text: "web is stopped: cannot freeze",
    }),
  );
  await using user = seat(daemon, "freeze", "web");
  expect(await user.ended()).toEqual({ status: 1 });
  await user.sees("freeze");
  expect(user.text).toBe("control: freeze web: web is stopped: cannot freeze (CMD_FAILED)\r\n");
});

test("run: keys go as they are typed, the window follows, the status comes back", async () => {
  const typed = Promise.withResolvers<void>();
  const resized = Promise.withResolvers<void>();
  using daemon = daemonWith((m, answer) => {
    if (m.command === Command.CONTAINER_EXEC_CMD)
      answer({ code: Code.EXEC_OUTPUT, exec_output: Buffer.from("# ") });
    if (m.command === Command.EXEC_RESIZE) {
      answer({ code: Code.RESPONSE, response: Response.CMD_OK });
      resized.resolve();
    }
    if (m.command === Command.CONTAINER_EXEC_INPUT && Buffer.from(m.exec_input ?? []).includes(3))
      typed.resolve();
    if (m.command === Command.CONTAINER_EXEC_INPUT && Buffer.from(m.exec_input ?? []).includes(4)) {
      answer({ code: Code.EXEC_OUTPUT, exec_output: Buffer.from("bye\r\n") });
      answer({ code: Code.EXEC_END, exit_status: 7 });
    }
  });
  await using user = seat(
    daemon,
    "run",
    "--user",
    "joe",
    "-e",
    "A=b",
    "--workdir=/srv",
    "web",
    "sh",
    "-c",
    "--help",
  );
  const settings = user.settings;
  await user.sees("# ");
  user.type("ls\x03");
  await typed.promise;
  user.resize({ rows: 50, columns: 132 });
  await resized.promise;
  user.type("\x04");
  expect(await user.ended()).toEqual({ status: 7 });
  await user.sees("bye\r\n");
  expect(user.text).toBe("# bye\r\n");
  expect(user.settings).toEqual(settings);
  const said = daemon.said;
  expect(said.find((m) => m.command === Command.CONTAINER_EXEC_CMD)).toMatchObject({
    exec_command: "sh",
    exec_args: ["sh", "-c", "--help"],
    exec_pty: true,
    exec_user: "joe",
    exec_cwd: "/srv",
    exec_env: ["A=b", "TERM=xterm"],
    exec_rows: 31,
    exec_cols: 97,
  });
  expect(said.find((m) => m.command === Command.EXEC_RESIZE)).toMatchObject({
    exec_rows: 50,
    exec_cols: 132,
  });
});

test.each([
  ["SIGTERM", 143],
  ["SIGHUP", 129],
] as const)("run: %s gives the settings back", async (signal, status) => {
  using daemon = daemonWith((_, answer) =>
    answer({ code: Code.EXEC_OUTPUT, exec_output: Buffer.from("# ") }),
  );
  await using user = seat(daemon, "run", "web", "sh");
  const settings = user.settings;
  await user.sees("# ");
  expect(user.settings).not.toEqual(settings);
  process.kill(user.pid, signal);
  expect(await user.ended()).toEqual({ status });
  expect(user.settings).toEqual(settings);
});

test("run: a daemon that goes away gives the settings back", async () => {
  using daemon = daemonWith((_, answer, line) => {
    answer({ code: Code.EXEC_OUTPUT, exec_output: Buffer.from("half a li") });
    line.hangUp();
  });
  await using user = seat(daemon, "run", "web", "sh");
  const settings = user.settings;
  expect(await user.ended()).toEqual({ status: 1 });
  await user.sees("error receiving message");
  expect(user.text).toStartWith("half a li");
  expect(user.settings).toEqual(settings);
});

test("Enter, or the end of the input, is no new password", async () => {
  using daemon = daemonWith(startOk);
  await using user = seat(daemon, "change_pin", "web");
  await user.sees("Current Password: ");
  user.type("trustme\n");
  await user.sees("New Password: ");
  user.type("\n");
  await user.sees("Re-enter New Password: ");
  user.type("\x04");
  expect(await user.ended()).toEqual({ status: 1 });
  await user.sees("an empty password is none");
  expect(daemon.said.some((m) => m.command === Command.CONTAINER_CHANGE_TOKEN_PIN)).toBe(false);
});

test("a recovery key is words and a code, and words alone where a code would break", async () => {
  const made = (_: ControllerToDaemon, answer: Answer): void =>
    answer({ code: Code.EXPORT_DATA, export_data: new Uint8Array(16).fill(7) });
  for (const [columns, code] of [
    [97, true],
    [36, false],
  ] as const) {
    using daemon = daemonWith(made, ContainerTokenType.NONE);
    await using user = seat(daemon, "recovery_key", "web");
    user.resize({ rows: 31, columns });
    expect(await user.ended()).toEqual({ status: 0 });
    await user.sees("it is shown only now");
    expect(user.text).toContain("bisal-");
    expect(user.text.includes("█")).toBe(code);
  }
});

test("an export takes the place of a file, not of a folder or a device; nobody is asked first", async () => {
  using daemon = daemonWith(startOk);
  for (const [path, why] of [
    [tmpdir(), "not a regular file"],
    ["/dev/null", "not a regular file"],
    ["/no/such", "no such file or directory"],
  ] as const) {
    await using user = seat(daemon, "export", "web", path);
    expect(await user.ended()).toEqual({ status: 1 });
    await user.sees(why);
    expect(user.text).not.toContain("Password");
  }
});

test("an export that is interrupted leaves nothing, and no file of somebody else's is written to", async () => {
  const folder = mkdtempSync(join(tmpdir(), "export-"));
  const path = join(folder, "web");
  for (const name of ["web", "web.new"]) writeFileSync(join(folder, name), "mine");
  using daemon = daemonWith(
    (_, answer) => answer({ code: Code.EXPORT_DATA, export_data: new Uint8Array(1000) }),
    ContainerTokenType.NONE,
  );
  await using user = seat(daemon, "export", "web", path);
  while (readdirSync(folder).length < 3) await Bun.sleep(5); // another process makes it
  user.type("\x03");
  expect(await user.ended()).toEqual({ status: 130 });
  expect(readdirSync(folder).sort()).toEqual(["web", "web.new"]);
  for (const name of ["web", "web.new"]) expect(readFileSync(join(folder, name), "utf8")).toBe("mine");
  rmSync(folder, { recursive: true });
});

test("a table has the columns that the terminal has room for, and says that there are more", async () => {
  for (const [columns, head] of [
    [97, "NAME  STATE    UP     GUESTOS  TRUST   VOLUMES  UUID"],
    [80, "NAME  STATE    UP     GUESTOS  TRUST   VOLUMES  …"],
    [40, "NAME  STATE    UP     GUESTOS  TRUST   …"],
    [10, "NAME  STATE    …"],
  ] as const) {
    using daemon = daemonWith(startOk);
    await using user = seat(daemon, "list");
    user.resize({ rows: 31, columns });
    expect(await user.ended()).toEqual({ status: 0 });
    const lines = Bun.stripANSI(user.text).split("\r\n");
    expect(lines[0]!).toBe(head);
    if (columns > 10) expect(Math.max(...lines.map((l) => l.length))).toBeLessThanOrEqual(columns);
  }
});
