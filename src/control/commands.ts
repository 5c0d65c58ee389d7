// Every command of `control`, a row each. From this table come the parser's rules (arguments.ts), usage (usage.ts),
// completion (completion.ts) and the manual page (man.ts); a new command is a new row.
//
// Names, forms and the order of requests on the wire are the original's; what is new says so in its row.
import { closeSync, existsSync, openSync, readSync, writeFileSync } from "node:fs";
import {
  ContainerConfig,
  ContainerTokenType,
  ContainerTrust,
  ControllerToDaemon,
  CryptfsMode,
  DaemonToController,
  type IContainerStartParams,
  type IControllerToDaemon,
} from "../../proto/gen/proto.js";
import { FRAME_MAX } from "../lib/frame.ts";
import { harmless } from "../lib/harmless.ts";
import { print as asText } from "../lib/text.ts";
import { out } from "../sys/output.ts";
import type { Secret } from "../sys/secret.ts";
import { type Call, type Container, find, isOk, reason, stateWord } from "./answer.ts";
import { type Argument, type Option, type Shape, Usage } from "./arguments.ts";
import type { Connection } from "./client.ts";
import type { Waiter } from "./logs.ts";
import { type Colours, duration, isTerminal, json, named, size, table } from "./print.ts";
import { ProgressLine } from "./progress.ts";

const { Command } = ControllerToDaemon;
const { Code, Response } = DaemonToController;

export interface Row extends Shape {
  /** One line of help. */
  readonly summary: string;
  /** Further sentences, for the manual. */
  readonly details?: string;
  /** Not a command of the original. */
  readonly ours?: true;
  /** The exit status. */
  readonly act: (call: Call) => Promise<number>;
}

// --- arguments and options that several rows have ----------------------------------

const CONTAINER: Argument = {
  name: "container",
  kind: "container",
  description: "name of a container, or its uuid",
};
const CONTAINERS: Argument = { ...CONTAINER, optional: true, many: true };
const file = (name: string, description: string, more: Partial<Argument> = {}): Argument => ({
  name,
  kind: "file",
  description,
  ...more,
});
const CONFIG = file("config", "file with the configuration, see container.conf(5)");
const SIGNATURE = file("signature", "its signature (NAME.sig beside NAME.conf)", { optional: true });
const CERTIFICATE = file("certificate", "certificate of whoever signed it (NAME.cert)", { optional: true });
const KEY: Option = {
  name: "key",
  short: "k",
  value: "KEY",
  attached: true,
  description: "password of the token, instead of asking for it; everybody who can list processes sees it",
};
const FOLLOW: Option = { name: "follow", short: "f", description: "go on as more is written" };
const IFACE: Option = {
  name: "iface",
  short: "i",
  value: "NAME",
  description: "name of the interface, or its MAC address",
};
const PERSISTENT: Option = {
  name: "persistent",
  short: "p",
  description: "write it into the configuration as well",
};

// --- what rows do -------------------------------------------------------------------

type Fields = Partial<Omit<IControllerToDaemon, "command">>;
type Person = (m: DaemonToController, c: Colours, container?: Container) => string;

const done: Person = () => "done\n";

/** A request of its own, and its answer. */
const ask =
  (command: ControllerToDaemon.Command, person: Person = done, fields: (call: Call) => Fields = () => ({})) =>
  async (call: Call): Promise<number> => {
    const given = fields(call); // a file that is missing is said before anybody is asked
    using connection = await call.connect();
    const m = await connection.ask({ command, ...given });
    return call.show(m, (c) => person(m, c));
  };

/** A request about one container, which is looked up first. */
const about =
  (
    command: ControllerToDaemon.Command,
    person: Person = done,
    fields: (call: Call) => Fields = () => ({}),
    units = false,
  ) =>
  async (call: Call): Promise<number> => {
    const given = fields(call);
    using connection = await call.connect();
    const [container] = await find(connection, [call.given.word("container")], units);
    const m = await connection.ask({ command, container_uuids: [container!.uuid], ...given });
    return call.show(m, (c) => person(m, c, container));
  };

const saying =
  (sentence: string): Person =>
  (_m, _c, container) =>
    `${container ? named(container.name) : "device"}: ${sentence}\n`;

type Bytes = Uint8Array | undefined;

function bytesOf(call: Call, argument: string): Bytes {
  const path = call.given.words(argument)[0];
  return path === undefined ? undefined : bytesIn(argument, path);
}

function bytesIn(argument: string, path: string): Uint8Array {
  try {
    const bytes = contents(path);
    if (bytes.length === 0) throw new Error("it is empty");
    return bytes;
  } catch (cause) {
    throw new Error(`Error accessing ${argument} file ${path}`, { cause });
  }
}

/** Whatever it is, a file or a pipe, but no more than a message can hold. */
function contents(path: string): Uint8Array {
  const fd = openSync(path, "r");
  try {
    const pieces: Uint8Array[] = [];
    for (let total = 0; ; ) {
      const piece = new Uint8Array(64 * 1024);
      const n = readSync(fd, piece);
      if (n === 0) return new Uint8Array(Buffer.concat(pieces));
      pieces.push(piece.subarray(0, n));
      total += n;
      if (total > FRAME_MAX) throw new Error(`more than ${FRAME_MAX} bytes`);
    }
  } finally {
    closeSync(fd);
  }
}

/** A configuration and its signature: the files that were named, or what lies beside NAME.conf as NAME.sig and NAME.cert. */
function signed(call: Call): [config: Bytes, signature: Bytes, certificate: Bytes] {
  const config = bytesOf(call, "config");
  const [path = ""] = call.given.words("config");
  const beside = ["sig", "cert"].map((end) => path.replace(/conf$/, end));
  if (
    call.given.words("signature").length === 0 &&
    path.endsWith(".conf") &&
    beside.every((p) => existsSync(p))
  ) {
    const [signature, certificate] = beside as [string, string];
    return [config, bytesIn("signature", signature), bytesIn("certificate", certificate)];
  }
  return [config, bytesOf(call, "signature"), bytesOf(call, "certificate")];
}

function configuration(call: Call): Fields {
  const [container_config_file, container_config_signature, container_config_certificate] = signed(call);
  return { container_config_file, container_config_signature, container_config_certificate };
}

const iface = (call: Call): Fields => {
  const name = call.given.value("iface");
  if (name === undefined) throw new Usage("--iface NAME is missing");
  return {
    assign_iface_params: { iface_name: name, ...(call.given.has("persistent") && { persistent: true }) },
  };
};

// --- what a person sees -----------------------------------------------------------------

const word = (table: Record<number, string>, n: number): string => (table[n] ?? `${n}`).toLowerCase();

const interfaceTable: Person = (m, c) =>
  m.interfaces.length === 0
    ? m.container_ifaces.map((i) => harmless(i)).join("") || c.quiet("no interfaces\n")
    : table(
        ["NAME", "KIND", "STATE", "ADDRESSES", "MAC", "MTU", "RECEIVED", "SENT"],
        m.interfaces.map((i) => [
          harmless(i.name),
          harmless(i.kind ?? ""),
          (i.state === "DOWN" ? c.quiet : c.good)(harmless(i.state).toLowerCase()),
          harmless(i.addresses.join(" ")),
          harmless(i.mac ?? ""),
          String(i.mtu ?? ""),
          size(i.rx_bytes ?? 0),
          size(i.tx_bytes ?? 0),
        ]),
        c,
      );

const statusTable: Person = (m, c) =>
  m.container_status.length === 0
    ? c.quiet("no containers\n")
    : table(
        ["NAME", "STATE", "UP", "GUESTOS", "TRUST", "VOLUMES", "UUID"],
        m.container_status.map((s) => [
          named(s.name),
          stateWord(s.state, c),
          s.uptime > 0 ? duration(s.uptime) : "",
          named(s.guestos),
          word(ContainerTrust, s.trust_level),
          word(CryptfsMode, s.cryptfs_mode).replace("not_implemented", "plain"),
          c.quiet(named(s.uuid)),
        ]),
        c,
      );

const guestosTable: Person = (m, c) =>
  m.guestos_configs.length === 0
    ? c.quiet("no guest operating systems\n")
    : table(
        ["NAME", "VERSION", "HARDWARE", "SIZE", "DESCRIPTION"],
        m.guestos_configs.map((g) => [
          named(g.name),
          String(g.version),
          named(g.hardware),
          size(g.mounts.reduce((sum, mount) => sum + (mount.image_size ?? 0), 0)),
          harmless(g.description.en),
        ]),
        c,
      );

const configText: Person = (m, c) =>
  m.container_configs
    .map(
      (config, i) =>
        c.quiet(`# ${named(m.container_uuids[i] ?? "")}\n`) + harmless(asText(ContainerConfig, config)),
    )
    .join("");

const deviceTable: Person = (m, c) => {
  const s = m.device_stats;
  if (!s) return "";
  const row = (name: string, total?: number, free?: number): string[][] =>
    total === undefined ? [] : [[name, size(total), free === undefined ? "" : size(free)]];
  return table(
    ["", "TOTAL", "FREE"],
    [
      ...row("disk", s.disk_system, s.disk_system_free),
      ...row("containers", s.disk_containers, s.disk_containers_free),
      ...row("memory", s.mem_total, s.mem_available ?? s.mem_free),
    ],
    c,
  );
};

const statsTable: Person = (m, c) => {
  const bytes = (n: number | undefined): string => (n === undefined ? "-" : size(n));
  const count = (n: number | undefined): string => (n === undefined ? "-" : String(n));
  return m.stats.length === 0
    ? c.quiet("no container runs\n")
    : table(
        ["NAME", "MEMORY", "PEAK", "LIMIT", "CPU", "PIDS", "READ", "WRITTEN", "WAITS"],
        m.stats.map((s) => [
          named(s.name ?? s.uuid),
          bytes(s.memory_current),
          bytes(s.memory_peak),
          bytes(s.memory_limit),
          s.cpu_usec === undefined ? "-" : `${(s.cpu_usec / 1e6).toFixed(2)}s`,
          count(s.pids_current),
          bytes(s.io_read_bytes),
          bytes(s.io_write_bytes),
          percent(Math.max(s.memory_pressure ?? 0, s.cpu_pressure ?? 0, s.io_pressure ?? 0)),
        ]),
        c,
      );
};

/** Hundredths of a per cent. */
const percent = (n: number | undefined): string => (n === undefined ? "-" : `${(n / 100).toFixed(1)}%`);

const pressureTable: Person = (m, c) => {
  const seconds = (usec: number | undefined): string =>
    usec === undefined ? "-" : `${(usec / 1e6).toFixed(2)}s`;
  const rows = m.stats.flatMap((s) =>
    (["memory", "cpu", "io"] as const).flatMap((of) => {
      const p = s[`${of}_stall`];
      if (!p) return [];
      const some = [percent(p.some_avg10), percent(p.some_avg60), seconds(p.some_usec)];
      return [
        [
          named(s.name ?? s.uuid),
          of,
          ...some,
          percent(p.full_avg10),
          percent(p.full_avg60),
          seconds(p.full_usec),
        ],
      ];
    }),
  );
  return rows.length === 0
    ? c.quiet("no container runs, or the kernel does not count its waits\n")
    : table(["NAME", "WAITS FOR", "SOME 10s", "60s", "TOTAL", "ALL 10s", "60s", "TOTAL"], rows, c);
};

// --- rows with more than one request --------------------------------------------------

async function list(call: Call): Promise<number> {
  using connection = await call.connect();
  const m = await connection.ask({
    command: Command.GET_CONTAINER_STATUS,
    ...(call.given.has("system") && { system_services: true }),
  });
  if (!call.given.has("quiet") || call.manner === "json") return call.show(m, (c) => statusTable(m, c));
  await out(m.container_status.map((s) => `${named(s.name)}\n`).join(""));
  if (isOk(m)) return 0;
  call.note(reason(m));
  return 1;
}

/** Whether the container needs no password. The original's client asks for one all the same, and its daemon refuses it. */
async function tokenless(connection: Connection, uuid: string): Promise<boolean> {
  const m = await connection.ask({ command: Command.GET_CONTAINER_CONFIG, container_uuids: [uuid] });
  return m.container_configs[0]?.token_type === ContainerTokenType.NONE;
}

/** The bytes of a password for a request, until the request has been made. */
const lent =
  (until: DisposableStack) =>
  (typed: Secret): Uint8Array =>
    until.use(typed).lend((bytes) => bytes);

/** The answer to a request with passwords, which are not here any more while we wait for it. */
function asked(
  connection: Connection,
  secrets: DisposableStack,
  request: IControllerToDaemon,
): Promise<DaemonToController> {
  const answer = connection.ask(request); // encoded at once
  secrets[Symbol.dispose]();
  return answer;
}

async function withKey(
  call: Call,
  connection: Connection,
  uuid: string,
  pin: (typed: Secret) => Uint8Array,
): Promise<IContainerStartParams | undefined> {
  const pad = await connection.ask({ command: Command.CONTAINER_CMLD_HANDLES_PIN, container_uuids: [uuid] });
  const known = pad.code === Code.CONTAINER_CMLD_HANDLES_PIN;
  if (!known)
    call.note(`ERROR: Failed to retrieve pin handle info (${reason(pad)}), the password is read here`);
  const key = call.given.option("key");
  const setup = call.given.has("setup") ? { setup: true } : undefined;
  if (pad.container_cmld_handles_pin) {
    if (key !== undefined) call.note("--key is ignored: the container has a pin reader");
    await (call.manner === "json" ? undefined : out("Please Enter your password via pin reader\n"));
    return { ...setup };
  }
  if (key !== undefined) return { ...(key !== true && { key: Buffer.from(key) }), ...setup };
  if (known && (await tokenless(connection, uuid))) return setup;
  const { Input } = await import("./terminal.ts");
  await using input = new Input(call.manner === "json");
  return { key: pin(await input.secret("Password: ")), ...setup };
}

/** One system call a line, for whoever reads it. */
async function explain(call: Call, connection: Connection, container_uuids: string[]): Promise<number> {
  const m = await connection.ask({ command: Command.EXPLAIN, container_uuids });
  if (!isOk(m) || call.manner === "json") return call.show(m, () => "");
  await out((m.program?.ops ?? []).map((op) => `${harmless(op)}\n`).join(""));
  return 0;
}

/** Before the request: what comes of it must not come before we listen. */
const waitingFor = async (call: Call, uuid: string): Promise<Waiter | undefined> =>
  call.given.has("wait") ? (await import("./logs.ts")).waiter(call, uuid) : undefined;

async function start(call: Call): Promise<number> {
  using connection = await call.connect();
  const [container] = await find(connection, [call.given.word("container")]);
  const container_uuids = [container!.uuid];
  if (call.given.has("explain")) return await explain(call, connection, container_uuids);
  using secrets = new DisposableStack();
  const params = await withKey(call, connection, container!.uuid, lent(secrets));
  using waiting = await waitingFor(call, container!.uuid);
  const m = await asked(connection, secrets, {
    command: Command.CONTAINER_START,
    container_uuids,
    container_start_params: params,
  });
  const status = await call.show(m, () => (waiting ? "" : saying("started")(m, NO_COLOURS, container)));
  if (status !== 0 || !waiting) return status;
  await waiting.up();
  if (call.manner === "person") await out(`${named(container!.name)}: running\n`);
  return 0;
}

const same = (s: string): string => s;
const NO_COLOURS: Colours = { head: same, good: same, busy: same, cold: same, bad: same, quiet: same };

async function stop(call: Call): Promise<number> {
  using connection = await call.connect();
  using secrets = new DisposableStack();
  const [container] = await find(connection, [call.given.word("container")]);
  const container_start_params = await withKey(call, connection, container!.uuid, lent(secrets));
  using waiting = await waitingFor(call, container!.uuid);
  const m = await asked(connection, secrets, {
    command: Command.CONTAINER_STOP,
    container_uuids: [container!.uuid],
    container_start_params,
  });
  const status = await call.show(m, () => (waiting ? "" : saying("stopping")(m, NO_COLOURS, container)));
  if (status !== 0 || !waiting) return status;
  await waiting.down();
  if (call.manner === "person") await out(`${named(container!.name)}: stopped\n`);
  return 0;
}

async function changePin(call: Call): Promise<number> {
  using connection = await call.connect();
  const [container] = await find(connection, [call.given.word("container")]);
  const { Input } = await import("./terminal.ts");
  await using input = new Input(call.manner === "json");
  using pin = await input.secret("Current Password: ");
  using fresh = await input.secret("New Password: ");
  {
    using again = await input.secret("Re-enter New Password: ");
    if (!again.equals(fresh)) throw new Error("Passwords don't match!");
  }
  if (fresh.length === 0 && (await isTerminal(0))) throw new Error("an empty password is none");
  using secrets = new DisposableStack();
  const m = await asked(connection, secrets, {
    command: Command.CONTAINER_CHANGE_TOKEN_PIN,
    container_uuids: [container!.uuid],
    device_pin: lent(secrets)(pin),
    device_newpin: lent(secrets)(fresh),
  });
  return call.show(m, (c) => saying("password changed")(m, c, container));
}

/** A request about a container that may need its password, on a connection that goes on. */
async function opened(
  call: Call,
  command: ControllerToDaemon.Command,
  go: (connection: Connection, container: Container) => Promise<number>,
): Promise<number> {
  using connection = await call.connect();
  using secrets = new DisposableStack();
  const [container] = await find(connection, [call.given.word("container")]);
  const container_start_params = await withKey(call, connection, container!.uuid, lent(secrets));
  await connection.send({ command, container_uuids: [container!.uuid], container_start_params });
  secrets[Symbol.dispose]();
  return await go(connection, container!);
}

const recoveryKey = (call: Call): Promise<number> =>
  opened(call, Command.RECOVERY_KEY, async (connection, container) =>
    (await import("./saving.ts")).recoveryKey(call, connection, container),
  );

async function save(call: Call): Promise<number> {
  const saving = await import("./saving.ts");
  const path = call.given.word("file");
  saving.checkTarget(path);
  if (!call.given.has("recovery"))
    return await opened(call, Command.EXPORT, (connection) => saving.save(call, connection, path));
  using connection = await call.connect();
  const [container] = await find(connection, [call.given.word("container")]);
  const import_data = await saving.typed(call);
  await connection.send({ command: Command.EXPORT, container_uuids: [container!.uuid], import_data });
  import_data.fill(0);
  return await saving.save(call, connection, path);
}

async function restore(call: Call): Promise<number> {
  using connection = await call.connect();
  return await (await import("./saving.ts")).restore(call, connection, call.given.word("file"));
}

async function pushGuestos(call: Call): Promise<number> {
  const [guestos_config_file, guestos_config_signature, guestos_config_certificate] = signed(call);
  const fields = {
    guestos_config_file,
    guestos_config_signature,
    guestos_config_certificate,
    ...(call.manner === "person" && process.stderr.isTTY && { want_progress: true }),
  };
  using connection = await call.connect();
  await connection.send({ command: Command.PUSH_GUESTOS_CONFIG, ...fields });
  const line = new ProgressLine();
  for (;;) {
    const m = await connection.next();
    if (
      m.response !== Response.GUESTOS_MGR_INSTALL_STARTED &&
      m.response !== Response.GUESTOS_MGR_INSTALL_WAITING
    ) {
      line.done();
      return call.show(m, () => "installed\n");
    }
    if (m.install_progress) line.show(m.install_progress);
    else call.note("installation has begun");
  }
}

async function pullCsr(call: Call): Promise<number> {
  using connection = await call.connect();
  const m = await connection.ask({ command: Command.PULL_DEVICE_CSR });
  if (call.manner === "json") await out(json(m));
  if (!isOk(m) || !m.device_csr)
    throw new Error(`DEVICE_CSR_ERROR: ${m.error_text ?? "the device has none"}`);
  writeFileSync(call.given.word("output"), m.device_csr);
  return 0;
}

async function run(call: Call): Promise<number> {
  return (await import("./exec.ts")).run(call);
}

// --- the table ----------------------------------------------------------------------------

const row = (
  name: string,
  args: readonly Argument[],
  summary: string,
  act: Row["act"],
  more: Partial<Row> = {},
): Row => ({ name, arguments: args, options: [], summary, act, ...more });

/** What the original ignores there, ours does with a warning. */
const lenient = { lenient: true } as const;

export const COMMANDS: readonly Row[] = [
  row("list", [], "list the containers", list, {
    ...lenient,
    options: [
      { name: "system", short: "s", description: "the services of the system as well" },
      { name: "quiet", short: "q", description: "names only" },
    ],
  }),
  row(
    "state",
    [CONTAINER],
    "show the state of a container",
    about(Command.GET_CONTAINER_STATUS, statusTable, undefined, true),
    lenient,
  ),
  row("start", [CONTAINER], "start a container", start, {
    options: [
      KEY,
      { name: "setup", short: "s", description: "start it in setup mode" },
      { name: "wait", short: "w", description: "return when it is running; fail if it does not get there" },
      { name: "explain", description: "print the system calls that a start would do, and do nothing" },
    ],
    details:
      "The password of the container's token is asked for, unless --key is given or the container has no token. Without --wait the command succeeds as soon as the container's init has been executed.",
  }),
  row("stop", [CONTAINER], "stop a container", stop, {
    options: [KEY, { name: "wait", short: "w", description: "return when it has stopped" }],
    details:
      "Without --wait the command succeeds when stopping has begun. A guest that does not stop in time is killed.",
  }),
  row(
    "run",
    [
      CONTAINER,
      {
        name: "command",
        kind: "program",
        description: "program and its arguments; a shell, /bin/sh, if absent",
        optional: true,
        many: true,
      },
    ],
    "run a command in a container",
    run,
    {
      options: [
        {
          name: "user",
          short: "u",
          value: "USER[:GROUP]",
          description: "as this user of the container, by name or number",
        },
        { name: "workdir", short: "w", value: "DIR", description: "in this folder of the container" },
        {
          name: "env",
          short: "e",
          value: "NAME=VALUE",
          many: true,
          description: "with this variable in its environment",
        },
        {
          name: "no-tty",
          description: "without a terminal: bytes pass as they are (also: the word nopty before the command)",
        },
      ],
      details:
        "Options stand before the container: all words behind it belong to the command, except a first `nopty`. Standard input goes to the command until its end. The exit status is the command's, or 128 plus the number of the signal that ended it.",
    },
  ),
  row(
    "logs",
    [{ ...CONTAINER, optional: true }],
    "print the log of the daemon, or what a container wrote to its console",
    async (call) => (await import("./logs.ts")).logs(call),
    {
      ours: true,
      options: [FOLLOW, { name: "lines", short: "n", value: "N", description: "the last N lines only" }],
    },
  ),
  row(
    "events",
    [CONTAINERS],
    "print every change of state, until interrupted",
    async (call) => (await import("./logs.ts")).events(call),
    {
      ours: true,
      options: [{ ...FOLLOW, description: "the same: events are always followed" }],
    },
  ),
  row(
    "audit",
    [{ ...CONTAINER, optional: true }],
    "print the audit records of the CML, or of a container, that nobody has received yet",
    async (call) => (await import("./audit.ts")).audit(call),
    {
      ours: true,
      options: [FOLLOW, { name: "lines", short: "n", value: "N", description: "the last N records only" }],
      details:
        "Into a pipe: records in the text format, each followed by five dashes, as the file has them. What is printed is on the disk already. With `--json`, one record a line.",
    },
  ),
  row("stats", [CONTAINERS], "show what the running containers use", stats, {
    ours: true,
    details:
      "WAITS is the largest share of the last ten seconds in which some process of the container had to wait for " +
      "memory, a processor or a disk.",
    options: [
      {
        name: "pressure",
        short: "p",
        description:
          "how much they had to wait for memory, processors and disks: some, or all of their processes",
      },
    ],
  }),
  row(
    "config",
    [CONTAINER],
    "print the configuration of a container",
    about(Command.GET_CONTAINER_CONFIG, configText),
    lenient,
  ),
  row(
    "create",
    [CONFIG, SIGNATURE, CERTIFICATE],
    "create a container",
    ask(
      Command.CREATE_CONTAINER,
      (m) =>
        `${named(m.container_configs[0]?.name ?? "")}: created as ${named(m.container_uuids[0] ?? "")}\n`,
      configuration,
    ),
    lenient,
  ),
  row(
    "update_config",
    [CONTAINER, CONFIG, SIGNATURE, CERTIFICATE],
    "give a container another configuration",
    about(
      Command.CONTAINER_UPDATE_CONFIG,
      saying("configured; a running container takes it over when it stops"),
      configuration,
    ),
    lenient,
  ),
  row(
    "remove",
    [CONTAINER],
    "remove a container and its data",
    about(Command.REMOVE_CONTAINER, saying("removed")),
    lenient,
  ),
  row(
    "wipe",
    [CONTAINER],
    "delete the data and the key of a container",
    about(Command.CONTAINER_WIPE, saying("wiped")),
    lenient,
  ),
  row("recovery_key", [CONTAINER], "make a recovery key for the volumes of a container", recoveryKey, {
    options: [KEY],
    details:
      "Printed once, as words, and kept nowhere: whoever has them can restore a backup of the container. One that was made before opens nothing any more, except the backups made with it.",
  }),
  row("export", [CONTAINER, file("file", "where to")], "write a backup of a container to a file", save, {
    options: [
      KEY,
      { name: "recovery", short: "r", description: "by its recovery key, where its token is lost" },
    ],
    details:
      "Configuration and volumes, encrypted: it can be restored on any device that has the GuestOS, with the container's recovery key. The container must be stopped.",
  }),
  row("import", [file("file", "a backup")], "restore a container from a backup", restore, {
    details: "Asks for the recovery key. The container is a new one, with a uuid of its own.",
  }),
  row(
    "freeze",
    [CONTAINER],
    "suspend every process of a container",
    about(Command.CONTAINER_FREEZE, saying("frozen")),
    lenient,
  ),
  row(
    "unfreeze",
    [CONTAINER],
    "resume a frozen container",
    about(Command.CONTAINER_UNFREEZE, saying("resumed")),
    lenient,
  ),
  row(
    "snapshot",
    [CONTAINER],
    "does nothing, as in the original",
    about(Command.CONTAINER_SNAPSHOT),
    lenient,
  ),
  row(
    "allow_audio",
    [CONTAINER],
    "allow a container to use sound",
    about(Command.CONTAINER_ALLOWAUDIO),
    lenient,
  ),
  row(
    "deny_audio",
    [CONTAINER],
    "forbid a container to use sound",
    about(Command.CONTAINER_DENYAUDIO),
    lenient,
  ),
  row(
    "ifaces",
    [CONTAINER],
    "list the network interfaces of a container",
    about(Command.CONTAINER_LIST_IFACES, interfaceTable),
    lenient,
  ),
  row(
    "assign_iface",
    [CONTAINER],
    "move a network interface into a container",
    about(Command.CONTAINER_ASSIGNIFACE, saying("has the interface"), iface),
    {
      options: [IFACE, PERSISTENT],
    },
  ),
  row(
    "unassign_iface",
    [CONTAINER],
    "take a network interface back from a container",
    about(Command.CONTAINER_UNASSIGNIFACE, saying("no longer has the interface"), iface),
    {
      options: [IFACE, PERSISTENT],
    },
  ),
  row(
    "dev_access",
    [CONTAINER, { name: "rule", kind: "word", many: true, description: 'such as "c 10:200 rwm"' }],
    "allow or deny a device while a container runs",
    about(Command.CONTAINER_DEV_ACCESS, done, (call) => ({ dev_rule: call.given.words("rule").join(" ") })),
  ),
  row("change_pin", [CONTAINER], "change the password of a container's token", changePin, {
    ...lenient,
    details:
      "Asks for the current password and twice for the new one. The first change makes the token usable.",
  }),
  row(
    "list_guestos",
    [],
    "list the guest operating systems",
    ask(Command.LIST_GUESTOS_CONFIGS, guestosTable),
    lenient,
  ),
  row(
    "push_guestos_config",
    [file("config", "configuration of a guest operating system"), SIGNATURE, CERTIFICATE],
    "install or update a guest operating system",
    pushGuestos,
    {
      ...lenient,
      details:
        "Refused without a signature by somebody whose root certificate the machine believes (ca_register).",
    },
  ),
  row(
    "remove_guestos",
    [{ name: "name", kind: "word", description: "name of a guest operating system" }],
    "remove a guest operating system that no container uses",
    ask(Command.REMOVE_GUESTOS, done, (call) => ({ guestos_name: call.given.word("name") })),
  ),
  row("reload", [], "read the configurations from disk again", ask(Command.RELOAD_CONTAINERS), lenient),
  row(
    "retrieve_logs",
    [{ name: "dir", kind: "directory", description: "an existing folder" }],
    "fetch the log files of the daemon",
    async (call) => (await import("./logs.ts")).retrieveLogs(call),
    {
      ...lenient,
      options: [{ name: "remove", short: "r", description: "delete them on the device" }],
    },
  ),
  row(
    "device_stats",
    [],
    "show disk and memory of the device",
    ask(Command.GET_DEVICE_STATS, deviceTable),
    lenient,
  ),
  row(
    "ca_register",
    [file("certificate", "root certificate, PEM")],
    "trust a further certificate authority for guest operating systems",
    ask(Command.REGISTER_NEWCA, done, (call) => ({ guestos_rootcert: bytesOf(call, "certificate") })),
  ),
  row(
    "pull_csr",
    [file("output", "file to write")],
    "fetch the device's certificate signing request",
    pullCsr,
  ),
  row(
    "push_cert",
    [file("certificate", "the device's certificate, PEM")],
    "give the device its certificate",
    ask(Command.PUSH_DEVICE_CERT, done, (call) => ({ device_cert: bytesOf(call, "certificate") })),
  ),
  row(
    "get_provisioned",
    [],
    "show whether the device is provisioned",
    ask(Command.GET_PROVISIONED, (m) => `${m.device_is_provisioned ? "provisioned" : "not provisioned"}\n`),
    lenient,
  ),
  row(
    "set_provisioned",
    [],
    "mark the device as provisioned; there is no way back",
    ask(Command.SET_PROVISIONED, saying("provisioned")),
    lenient,
  ),
  row(
    "reboot",
    [],
    "stop everything and reboot the device",
    ask(Command.REBOOT_DEVICE, saying("rebooting")),
    lenient,
  ),
  row(
    "wipe_device",
    [],
    "delete all containers, guest operating systems, keys and logs",
    ask(Command.WIPE_DEVICE, saying("wiped")),
    lenient,
  ),
  row(
    "destroy_system",
    [],
    "clear the TPM: every encrypted volume is lost",
    ask(Command.DESTROY_SYSTEM, saying("destroyed")),
    lenient,
  ),
  row(
    "completion",
    [{ name: "shell", kind: "shell", description: "bash, zsh or fish" }],
    "print a completion script for a shell",
    async (call) => (await import("./completion.ts")).completion(call),
    {
      ours: true,
      details: "For example: control completion bash > /usr/share/bash-completion/completions/control",
    },
  ),
  row(
    "help",
    [{ name: "command", kind: "command", optional: true, description: "a command" }],
    "print the usage of control, or of one command",
    help,
    { ours: true },
  ),
];

async function stats(call: Call): Promise<number> {
  using connection = await call.connect();
  const words = call.given.words("container");
  const found = words.length > 0 ? await find(connection, words) : [];
  const m = await connection.ask({ command: Command.STATS, container_uuids: found.map((f) => f.uuid) });
  return call.show(m, (c) => (call.given.has("pressure") ? pressureTable(m, c) : statsTable(m, c)));
}

async function help(call: Call): Promise<number> {
  const word = call.given.words("command")[0];
  const found = COMMANDS.find((c) => c.name === word?.toLowerCase());
  if (word !== undefined && !found) throw new Usage(`${JSON.stringify(word)}: no such command`);
  const { usage } = await import("./usage.ts");
  await out(await usage(found));
  return 0;
}
