// The client as a program, with its input and output in pipes, against a daemon that says what we want.
import { expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import {
  ContainerState,
  ContainerTokenType,
  ControllerToDaemon,
  DaemonToController,
  type IContainerStatus,
} from "../../proto/gen/proto.js";
import { type Answer, type Line, TestDaemon } from "../../test/replay.ts";
import { ioctl } from "../sys/calls.ts";
import { pipe } from "../sys/fd.ts";
import { mem } from "../sys/mem.ts";
import { now } from "../sys/now.ts";
import { titled } from "./answer.ts";

const { Command } = ControllerToDaemon;
const { Code, Response } = DaemonToController;
const FIONREAD = 0x541b; // asm-generic/ioctls.h
const PIPE = 65536; // pipe(7): capacity of a pipe
const MAIN = `${import.meta.dir}/../main.ts`;

const web: IContainerStatus = {
  uuid: "f815386c-25b6-4a09-9ee4-4b65b977f167",
  name: "web",
  type: 1,
  state: ContainerState.STOPPED,
  uptime: 0,
  created: 1795227197,
  guestos: "debian",
  trust_level: 1,
  cryptfs_mode: 1,
};
const OK = { code: Code.RESPONSE, response: Response.CMD_OK } as const;

const daemonWith = (on: (m: ControllerToDaemon, answer: Answer, line: Line) => void): TestDaemon =>
  new TestDaemon((m, answer, line) => {
    if (m.command === Command.GET_CONTAINER_STATUS)
      answer({ code: Code.CONTAINER_STATUS, container_status: [web] });
    else on(m, answer, line);
  });

interface Result {
  readonly stdout: string;
  readonly stderr: string;
  readonly exit: number;
}

const spawn = (daemon: TestDaemon, args: readonly string[], stdin: Blob | Uint8Array = new Uint8Array(0)) =>
  Bun.spawn([process.execPath, MAIN, "control", "-s", daemon.socket, ...args], {
    cwd: daemon.folder,
    stdin,
    stdout: "pipe",
    stderr: "pipe",
    env: {},
  });

async function control(daemon: TestDaemon, args: readonly string[], stdin?: Uint8Array): Promise<Result> {
  const client = spawn(daemon, args, stdin);
  const [stdout, stderr, exit] = await Promise.all([
    client.stdout.text(),
    client.stderr.text(),
    client.exited,
  ]);
  return { stdout, stderr, exit };
}

test("run: status and signal of the command are the client's status", async () => {
  using daemon = daemonWith((m, answer) => {
    if (m.command !== Command.CONTAINER_EXEC_CMD) return;
    const how = m.exec_command!;
    answer({
      code: Code.EXEC_END,
      ...(how === "killed"
        ? { exit_signal: 9 }
        : how === "missing"
          ? { exit_status: 127, error_text: "no such program" }
          : { exit_status: 7 }),
    });
  });
  expect(await control(daemon, ["run", "web", "seven"])).toEqual({ stdout: "", stderr: "", exit: 7 });
  expect(await control(daemon, ["run", "web", "killed"])).toMatchObject({
    stderr: "control: run web: ended by SIGKILL\n",
    exit: 137,
  });
  expect(await control(daemon, ["run", "web", "missing"])).toMatchObject({
    stderr: "control: run web: no such program\n",
    exit: 127,
  });
});

test("run: input with NULs arrives whole, and its end is told", async () => {
  const sent = Buffer.alloc(300_000, "a\0b\n\xff", "latin1");
  const got: Buffer[] = [];
  using daemon = daemonWith((m, answer) => {
    if (m.command !== Command.CONTAINER_EXEC_INPUT) return;
    const piece = m.exec_input_bytes ?? m.exec_input!;
    if (piece.length > 0) got.push(Buffer.from(piece));
    else answer({ code: Code.EXEC_END, exit_status: 0 });
  });
  expect(await control(daemon, ["run", "--no-tty", "web", "cat"], sent)).toMatchObject({ exit: 0 });
  expect(Buffer.concat(got).equals(sent)).toBe(true);
  expect(daemon.said.find((m) => m.command === Command.CONTAINER_EXEC_CMD)?.exec_pty).toBe(false);
});

/** Most memory that a process has had, in MiB. */
const peak = (pid: number): number =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;

test("run: much output to a slow reader: nothing is lost, and the client does not hold it", async () => {
  const pieces = 4096;
  const piece = Buffer.alloc(32 * 1024, "x");
  using daemon = daemonWith((m, answer) => {
    if (m.command !== Command.CONTAINER_EXEC_CMD) return;
    for (let i = 0; i < pieces; i++) answer({ code: Code.EXEC_OUTPUT, exec_output: piece });
    answer({ code: Code.EXEC_END, exit_status: 0 });
  });
  const { read, write } = pipe();
  using _read = read;
  const client = Bun.spawn([process.execPath, MAIN, "control", "-s", daemon.socket, "run", "web", "yes"], {
    stdout: write.n,
    env: {},
  });
  write.close();
  const waiting = mem(4);
  do {
    await Bun.sleep(1); // until the pipe is full
    now(ioctl(read.n, FIONREAD, waiting));
  } while (new DataView(waiting.buffer).getInt32(0, true) < PIPE);
  await Bun.sleep(300); // time in which a client that reads on would have read everything
  const most = peak(client.pid);
  let bytes = 0;
  for await (const chunk of Bun.file(read.n).stream()) bytes += chunk.length;
  expect(await client.exited).toBe(0);
  expect(bytes).toBe(pieces * piece.length);

  expect(most).toBeLessThan(80); // of 128 MiB; most of it is the runtime's own
}, 30_000);

test("run: much input for a daemon that takes none: the client waits", async () => {
  let line: Line | undefined;
  let bytes = 0;
  using daemon = daemonWith((m, answer, connection) => {
    line = connection;
    if (m.command === Command.CONTAINER_EXEC_CMD) connection.pause();
    const piece = m.exec_input_bytes ?? m.exec_input;
    bytes += piece?.length ?? 0;
    if (piece?.length === 0) answer({ code: Code.EXEC_END, exit_status: 0 });
  });
  const total = 128 << 20;
  const big = `${daemon.folder}/big`;
  writeFileSync(big, "");
  truncateSync(big, total);
  const client = spawn(daemon, ["run", "web", "cat"], Bun.file(big));
  while (!line) await Bun.sleep(1); // until it has asked for the command
  await Bun.sleep(300); // time in which a client that reads on would have read everything
  const most = peak(client.pid);
  line.resume();
  expect(await client.exited).toBe(0);
  expect(bytes).toBe(total);
  expect(most).toBeLessThan(80);
}, 30_000);

test("run: nobody reads the output any more", async () => {
  using daemon = daemonWith((m, answer) => {
    if (m.command !== Command.CONTAINER_EXEC_CMD) return;
    for (let i = 0; i < 100; i++)
      answer({ code: Code.EXEC_OUTPUT, exec_output: Buffer.alloc(32 * 1024, "y\n") });
  });
  const shell = Bun.spawn(
    [
      "bash",
      "-c",
      `"$0" "$1" control -s "$2" run web yes | head -n 1; echo \${PIPESTATUS[0]}`,
      process.execPath,
      MAIN,
      daemon.socket,
    ],
    { stdout: "pipe", stdin: "ignore" },
  );
  expect(await shell.stdout.text()).toBe("y\n141\n");
});

test("start --wait: running, or the reason why not", async () => {
  const event = (state: ContainerState, more = {}) => ({
    code: Code.CONTAINER_EVENT,
    event: { uuid: web.uuid, name: "web", state, timestamp: 1795227197000, ...more },
  });
  let fail = false;
  let listener: Answer | undefined;
  using daemon = daemonWith((m, answer) => {
    if (m.command === Command.EVENTS) {
      listener = answer;
      answer(OK);
      answer(event(ContainerState.STOPPED)); // of a stop that was under way
    } else if (m.command === Command.CONTAINER_CMLD_HANDLES_PIN)
      answer({ code: Code.CONTAINER_CMLD_HANDLES_PIN, container_cmld_handles_pin: false });
    else if (m.command === Command.CONTAINER_START) {
      listener!(event(ContainerState.STARTING));
      answer({ code: Code.RESPONSE, response: Response.CONTAINER_START_OK });
      listener!(event(ContainerState.BOOTING));
      listener!(fail ? event(ContainerState.STOPPED, { exit_status: 3 }) : event(ContainerState.RUNNING));
    }
  });
  expect(await control(daemon, ["start", "web", "--key", "--wait"])).toEqual({
    stdout: "code: RESPONSE\nresponse: CONTAINER_START_OK\n",
    stderr: "",
    exit: 0,
  });
  fail = true;
  expect(await control(daemon, ["start", "--key=k", "-w", "web"])).toMatchObject({
    stderr: "control: start web: its init ended with status 3\n",
    exit: 1,
  });
  expect(
    daemon.said.filter((m) => m.command === Command.CONTAINER_START).map((m) => m.container_start_params),
  ).toMatchObject([
    {}, // the daemon's own default
    { key: new Uint8Array(Buffer.from("k")) },
  ]);
});

test("stop --wait: returns when it has stopped, however it did", async () => {
  const event = (state?: ContainerState) => ({
    code: Code.CONTAINER_EVENT,
    event: { uuid: web.uuid, name: "web", state, timestamp: 1795227197000 },
  });
  let last: ContainerState | undefined = ContainerState.STOPPED;
  let listener: Answer | undefined;
  using daemon = daemonWith((m, answer) => {
    if (m.command === Command.EVENTS) {
      listener = answer;
      answer(OK);
    } else if (m.command === Command.CONTAINER_CMLD_HANDLES_PIN)
      answer({ code: Code.CONTAINER_CMLD_HANDLES_PIN, container_cmld_handles_pin: false });
    else if (m.command === Command.CONTAINER_STOP) {
      listener!(event(ContainerState.SHUTDOWN));
      answer({ code: Code.RESPONSE, response: Response.CONTAINER_STOP_OK });
      listener!(event(last));
    }
  });
  for (last of [ContainerState.STOPPED, ContainerState.ZOMBIE, undefined])
    expect(await control(daemon, ["stop", "web", "--key", "--wait"])).toEqual({
      stdout: "code: RESPONSE\nresponse: CONTAINER_STOP_OK\n",
      stderr: "",
      exit: 0,
    });
});

test("passwords: from a pipe to the last character, from --key, from a reader with keys, or none", async () => {
  let pad = false;
  let token_type = ContainerTokenType.SOFT;
  using daemon = daemonWith((m, answer) => {
    if (m.command === Command.CONTAINER_CMLD_HANDLES_PIN)
      answer({ code: Code.CONTAINER_CMLD_HANDLES_PIN, container_cmld_handles_pin: pad });
    else if (m.command === Command.GET_CONTAINER_CONFIG)
      answer({
        code: Code.CONTAINER_CONFIG,
        container_uuids: [web.uuid],
        container_configs: [{ name: "web", guest_os: "debian", color: 0, token_type }],
      });
    else answer({ code: Code.RESPONSE, response: Response.CONTAINER_START_OK });
  });
  const sent = async (args: string[], stdin = ""): Promise<unknown> => {
    expect(await control(daemon, ["start", "web", ...args], Buffer.from(stdin))).toMatchObject({ exit: 0 });
    const { container_start_params } = daemon.said.at(-1)!;
    if (!container_start_params) return undefined;
    const { key, ...rest } = container_start_params; // what was on the wire, without defaults
    return { ...(key && { key: Buffer.from(key).toString() }), ...rest };
  };
  expect(await sent([], "no newline")).toEqual({ key: "no newline" });
  expect(await sent([], "")).toEqual({ key: "" });
  expect(await sent([], "gr\u00fc\u00df\nrest")).toEqual({ key: "gr\u00fc\u00df" });
  expect(await sent([], "x".repeat(200))).toEqual({ key: "x".repeat(200) });
  expect(await sent(["--key=k", "-s"])).toEqual({ key: "k", setup: true });
  expect(await sent(["-kK"])).toEqual({ key: "K" });
  expect(await sent(["--key="])).toEqual({ key: "" });
  expect(await sent(["-k"])).toEqual({});
  token_type = ContainerTokenType.NONE;
  expect(await sent([])).toBeUndefined();
  expect(await sent(["--setup"])).toEqual({ setup: true });
  pad = true;
  expect(await sent([])).toEqual({});
  expect(await control(daemon, ["start", "web", "--key=k"])).toMatchObject({
    stdout: "Please Enter your password via pin reader\ncode: RESPONSE\nresponse: CONTAINER_START_OK\n",
    stderr: "control: start web: --key is ignored: the container has a pin reader\n",
  });
});

test("start --explain prints the program and starts nothing", async () => {
  using daemon = daemonWith((m, answer) => {
    if (m.command === Command.EXPLAIN)
      answer({ code: Code.CONTAINER_PROGRAM, program: { ops: ["close(8)", "setsid()"] } });
  });
  expect(await control(daemon, ["start", "--explain", "web"])).toMatchObject({
    stdout: "close(8)\nsetsid()\n",
    exit: 0,
  });
});

test("a refusal prints the original's words on stdout, our reason on stderr; JSON has both", async () => {
  using daemon = daemonWith((_, answer) =>
    answer({ code: Code.RESPONSE, response: Response.CMD_FAILED, error_text: "web is stopped" }),
  );
  expect(await control(daemon, ["FREEZE", "web"])).toEqual({
    stdout: "code: RESPONSE\nresponse: CMD_FAILED\n",
    stderr: "control: freeze web: web is stopped (CMD_FAILED)\n",
    exit: 1,
  });
  const { stdout } = await control(daemon, ["--json", "freeze", "web"]);
  expect(JSON.parse(stdout)).toEqual({
    code: "RESPONSE",
    response: "CMD_FAILED",
    error_text: "web is stopped",
    container_uuids: [],
    container_status: [],
    container_configs: [],
    container_ifaces: [],
    guestos_configs: [],
    stats: [],
    audit_records: [],
    interfaces: [],
  });
});

test("a name is looked up exactly, a uuid in any of its forms", async () => {
  using daemon = daemonWith((_, answer) => answer(OK));
  for (const word of ["web", web.uuid, web.uuid.toUpperCase(), web.uuid.replaceAll("-", "")])
    expect(await control(daemon, ["freeze", word])).toMatchObject({ exit: 0 });
  for (const word of ["We", "webs", "f815386c-25b6-4a09-9ee4-4b65b977f168"])
    expect(await control(daemon, ["freeze", word])).toMatchObject({
      stderr: `control: freeze ${word}: Container with provided uuid/name does not exist!\n`,
      exit: 1,
    });
});

test("retrieve_logs: whole files under their names, in place of older ones; no name leads out of the folder", async () => {
  let names = ["cml-daemon.1", "cml-daemon.1", "cml-daemon.2"];
  using daemon = new TestDaemon((_, answer) => {
    names.forEach((name, i) => {
      const final = names[i + 1] !== name;
      answer({
        code: final ? Code.LOG_MESSAGE_FINAL : Code.LOG_MESSAGE_FRAGMENT,
        log_message: { name, msg: Buffer.from(`part ${i}\n`) },
      });
    });
    answer(OK);
  });
  const folder = `${daemon.folder}/logs`;
  mkdirSync(folder);
  for (let i = 0; i < 2; i++)
    expect(await control(daemon, ["retrieve_logs", folder])).toEqual({
      stdout: "code: RESPONSE\nresponse: CMD_OK\n",
      stderr: "",
      exit: 0,
    });
  expect(readdirSync(folder).sort()).toEqual(["cml-daemon.1", "cml-daemon.2"]);
  expect(readFileSync(`${folder}/cml-daemon.1`, "utf8")).toBe("part 0\npart 1\n");

  for (const bad of ["../evil", "/etc/evil", "..", "", "a\nb", "x".repeat(300)]) {
    names = [bad];
    expect(await control(daemon, ["retrieve_logs", folder, "--remove"])).toMatchObject({ exit: 1 });
  }
  writeFileSync(`${daemon.folder}/outside`, "mine");
  symlinkSync("../outside", `${folder}/planted.part`);
  names = ["planted"];
  expect(await control(daemon, ["retrieve_logs", folder])).toMatchObject({ exit: 1 });
  expect(readFileSync(`${daemon.folder}/outside`, "utf8")).toBe("mine");
  expect(readdirSync(folder).sort()).toEqual(["cml-daemon.1", "cml-daemon.2", "planted.part"]);
  expect(await control(daemon, ["retrieve_logs", "/no/such"])).toMatchObject({ exit: 255 });
});

test("logs and events are streams", async () => {
  using daemon = daemonWith((m, answer, line) => {
    if (m.command === Command.LOGS) {
      answer({ code: Code.LOG_MESSAGE_FRAGMENT, log_message: { name: "web", msg: Buffer.from("one\nt") } });
      answer({ code: Code.LOG_MESSAGE_FINAL, log_message: { name: "web", msg: Buffer.from("wo\n") } });
      answer(OK);
    } else {
      answer(OK);
      answer({
        code: Code.CONTAINER_EVENT,
        event: { uuid: web.uuid, name: "web", state: ContainerState.RUNNING, timestamp: 1795227197000 },
      });
      line.hangUp();
    }
  });
  expect(await control(daemon, ["logs", "-n", "2", "-f", "web"])).toEqual({
    stdout: "one\ntwo\n",
    stderr: "",
    exit: 0,
  });
  expect(daemon.said.at(-1)).toMatchObject({ container_uuids: [web.uuid], log_follow: true, log_lines: 2 });
  expect(await control(daemon, ["logs", "-n", "many"])).toMatchObject({ exit: 255 });
  const { stdout, exit } = await control(daemon, ["events", "--json"]);
  expect(JSON.parse(stdout).event).toMatchObject({ name: "web", state: "RUNNING" });
  expect(exit).toBe(1); // the daemon hung up
});

test("audit: records as the file has them, or one a line", async () => {
  const record = {
    timestamp: 1795227197,
    type: "SSA.CMLD.CONTAINER_MGMT.container-start",
    subject_id: web.uuid,
    meta: [{ key: "sequence", value: "1" }],
  };
  using daemon = daemonWith((_m, answer) => {
    answer({ code: Code.AUDIT_RECORDS, audit_records: [record] });
    answer({ code: Code.AUDIT_RECORDS, audit_records: [{ ...record, timestamp: 2 }] });
    answer(OK);
  });
  const { stdout, exit } = await control(daemon, ["audit", "-f", "-n", "5", "web"]);
  expect([exit, stdout.split("-----\n").length]).toEqual([0, 3]);
  expect(stdout).toStartWith(
    'timestamp: 1795227197\ntype: "SSA.CMLD.CONTAINER_MGMT.container-start"\nsubject_id: ',
  );
  expect(daemon.said.at(-1)).toMatchObject({
    command: Command.AUDIT,
    container_uuids: [web.uuid],
    log_follow: true,
    log_lines: 5,
  });
  const lines = (await control(daemon, ["audit", "--json"])).stdout.trim().split("\n");
  expect(lines.map((l) => JSON.parse(l).timestamp)).toEqual([1795227197, 2]);
});

test("--json: a refusal is a line as well, of requests whose answers are not printed as they come", async () => {
  const refused = { code: Code.RESPONSE, response: Response.CMD_FAILED, error_text: "not now" };
  using daemon = daemonWith((_m, answer) => answer(refused));
  for (const words of [["audit"], ["events"], ["logs"], ["pull_csr", "/no/such/file"]]) {
    const { stdout, stderr, exit } = await control(daemon, [...words, "--json"]);
    expect([words[0], JSON.parse(stdout).error_text, exit]).toEqual([words[0], "not now", 1]);
    expect(stderr).toContain("not now");
  }
});

test("wrong usage: the usage on stdout, the reason on stderr, 255, and nobody is asked", async () => {
  using daemon = daemonWith(() => {});
  for (const [args, reason] of [
    [["start"], "control: start: CONTAINER is missing\n"],
    [["start", "--no-switch", "web"], "control: start: --no-switch: no such option\n"],
    [["start", "a", "b"], 'control: start: "b" is too much\n'],
    [["frobnicate"], 'control: "frobnicate": no such command\n'],
    [["assign_iface", "web"], "control: assign_iface web: --iface NAME is missing\n"],
    [["run", "--user"], "control: run: --user: USER[:GROUP] is missing\n"],
    [["--nonsense=secret", "list"], "control: --nonsense: no such option\n"],
  ] as const) {
    const { stdout, stderr, exit } = await control(daemon, args);
    expect({ stderr, exit }).toEqual({ stderr: reason, exit: 255 });
    expect(stdout).toContain("USAGE control");
  }
  expect(daemon.requests).toEqual([]);
  expect(await control(daemon, ["start", "--help"])).toMatchObject({ stderr: "", exit: 0 });
});

test("what the original ignores is ignored, without showing a key", async () => {
  using daemon = daemonWith((_, answer) => answer(OK));
  expect(await control(daemon, ["remove", "web", "--key=secret"])).toEqual({
    stdout: "code: RESPONSE\nresponse: CMD_OK\n",
    stderr: "control: remove web: --key is ignored\n",
    exit: 0,
  });
});

test("no daemon, no socket, no file: one line each", async () => {
  using daemon = daemonWith(() => {});
  const run = async (...args: string[]): Promise<string> => {
    const client = Bun.spawn([process.execPath, MAIN, "control", ...args], {
      stdout: "pipe",
      stderr: "pipe",
      env: {},
    });
    expect(await client.exited).toBe(1);
    return client.stderr.text();
  };
  expect(await run("-s", "/no/such", "list")).toBe(
    "control: list: Could not find socket file /no/such. Is cmld running?\n",
  );
  expect(await run("-s", "/dev/null", "list")).toBe(
    "control: list: nobody listens at /dev/null: is cmld running?\n",
  );
  expect(await run("-s", daemon.socket, "create", "/no/such.conf")).toBe(
    "control: create: Error accessing config file /no/such.conf: no such file or directory\n",
  );
  expect(await run("-s", daemon.socket, "create", "/tmp")).toBe(
    "control: create: Error accessing config file /tmp: illegal operation on a directory\n",
  );
  expect(await run("-s", daemon.socket, "import", "/no/such")).toBe(
    "control: import /no/such: no such file or directory\n",
  );
  expect(await run("-s", daemon.socket, "create", "/dev/null")).toBe(
    "control: create: Error accessing config file /dev/null: it is empty\n",
  );
  expect(await run("-s", daemon.socket, "create", "/dev/zero")).toBe(
    "control: create: Error accessing config file /dev/zero: more than 67108863 bytes\n",
  );
  expect(await run("-s", "", "list")).toBe(`control: list: a socket's path has 1 to 107 bytes: ""\n`);
  expect(await run("-s", "/".repeat(200), "list")).toContain("a socket's path has 1 to 107 bytes");
  expect(daemon.requests).toEqual([]);
});

test("a signature that lies beside its configuration goes with it; half of a pair, or another one that is named, does not", async () => {
  using daemon = daemonWith((_, answer) => answer(OK));
  const at = (name: string) => `${daemon.folder}/${name}`;
  for (const name of ["a.conf", "a.sig", "a.cert", "b.conf", "b.sig", "c.sig", "c.cert", "d.txt"])
    writeFileSync(at(name), name);
  const sent = async (...words: string[]) => {
    daemon.requests.length = 0;
    expect((await control(daemon, words)).exit).toBe(0);
    const m = daemon.requests.at(-1)!.message;
    const fields =
      m.command === Command.PUSH_GUESTOS_CONFIG
        ? [m.guestos_config_file, m.guestos_config_signature, m.guestos_config_certificate]
        : [m.container_config_file, m.container_config_signature, m.container_config_certificate];
    return fields
      .map((f) => (f === undefined ? "" : Buffer.from(f).toString()))
      .join(" ")
      .trimEnd();
  };
  expect(await sent("push_guestos_config", at("a.conf"))).toBe("a.conf a.sig a.cert");
  expect(await sent("push_guestos_config", at("a.conf"), at("c.sig"), at("c.cert"))).toBe(
    "a.conf c.sig c.cert",
  );
  expect(await sent("push_guestos_config", at("b.conf"))).toBe("b.conf");
  expect(await sent("create", at("a.conf"))).toBe("a.conf a.sig a.cert");
  expect(await sent("create", at("d.txt"))).toBe("d.txt");
  expect(await sent("update_config", "web", at("a.conf"))).toBe("a.conf a.sig a.cert");
});

test("what stands before a line is not said twice", () => {
  expect(titled("start web: ", "web is STOPPED")).toBe("start web: web is STOPPED");
  expect(titled("start web: ", "start web: no room")).toBe("start web: no room");
  expect(titled("start web: ", "web: no room")).toBe("start web: no room");
  expect(titled("create a.conf: ", "line 1: bad")).toBe("create a.conf: line 1: bad");
  expect(titled("create /a.conf: ", "/a.conf: ENOENT")).toBe("create /a.conf: ENOENT");
  expect(titled("create /a.conf: ", "file /a.conf: ENOENT")).toBe("create: file /a.conf: ENOENT");
  expect(titled("list: ", "refused")).toBe("list: refused");
});

test("an answer that cannot be written is no success: a full disk, a closed descriptor", async () => {
  using daemon = daemonWith((_, answer) =>
    answer({ code: Code.CONTAINERS_LIST, container_uuids: [web.uuid] }),
  );
  for (const words of [["list"], ["state", "web"], ["--help"], ["--json", "list"]])
    for (const [redirection, reason] of [
      [">/dev/full", "standard output: no space left on device"],
      [">&-", "standard output is closed"],
    ] as const) {
      const shell = ["sh", "-c", `exec "$@" ${redirection}`, "sh", process.execPath, MAIN];
      const client = Bun.spawn([...shell, "control", "-s", daemon.socket, ...words], {
        stderr: "pipe",
        env: {},
      });
      const said = await client.stderr.text();
      expect([words, await client.exited, said]).toEqual([words, 1, expect.stringContaining(`${reason}\n`)]);
    }
}, 20_000);
