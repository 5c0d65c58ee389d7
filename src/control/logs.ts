// Streams from the daemon: log files fetched into a folder, logs and events as they happen.
import { closeSync, constants, openSync, renameSync, statSync, unlinkSync, writeSync } from "node:fs";
import { ContainerState, ControllerToDaemon, DaemonToController } from "../../proto/gen/proto.js";
import { harmless } from "../lib/harmless.ts";
import { out } from "../sys/output.ts";
import { type Call, find, isOk, reason, stateWord } from "./answer.ts";
import { Usage } from "./arguments.ts";
import { colours, json, named, text } from "./print.ts";

const { Command } = ControllerToDaemon;
const { Code } = DaemonToController;

/** NAME_MAX of linux/limits.h, less ".part". */
const NAME_LIMIT = 250;

/** A name that the peer chose, before it becomes a path. */
export function logName(name: string): string {
  if (name === "" || name === "." || name === ".." || /[/\x00-\x1f\x7f]/.test(name))
    throw new Error(`the daemon sent ${JSON.stringify(name)} as the name of a log: refused`);
  if (Buffer.byteLength(name) > NAME_LIMIT) throw new Error("the daemon sent a name that is too long");
  return name;
}

/**
 * Every log of the daemon into a folder. A file is complete or not there: it gets its name when its last part has come,
 * in place of one that was fetched before.
 */
export async function retrieveLogs(call: Call): Promise<number> {
  const folder = call.given.word("dir");
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory())
    throw new Usage(`${folder} is no directory`);
  using connection = await call.connect();
  await connection.send({
    command: Command.GET_LAST_LOG,
    ...(call.given.has("remove") && { remove_logs: true }),
  });
  let file: { name: string; part: string; fd: number } | undefined;
  using undo = new DisposableStack();
  undo.defer(() => {
    if (!file) return;
    closeSync(file.fd);
    unlinkSync(file.part);
  });
  for (;;) {
    const m = await connection.next();
    if (!m.log_message) return call.show(m, () => `the logs are in ${folder}\n`);
    const name = logName(m.log_message.name);
    if (file && file.name !== name)
      throw new Error(`a part of ${JSON.stringify(name)} came within ${JSON.stringify(file.name)}`);
    if (!file) {
      const part = `${folder}/${name}.part`;
      const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
      file = { name, part, fd: openSync(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0o600) };
    }
    writeSync(file.fd, m.log_message.msg);
    if (m.code !== Code.LOG_MESSAGE_FINAL) continue;
    const { fd, part } = file;
    file = undefined;
    closeSync(fd);
    renameSync(part, `${folder}/${name}`);
  }
}

/** --follow and --lines, as a request has them. */
export function wanted(call: Call): { log_follow?: true; log_lines?: number } {
  const lines = call.given.value("lines");
  if (lines !== undefined && !/^[0-9]{1,9}$/.test(lines)) throw new Usage(`--lines: ${lines} is no number`);
  return {
    ...(call.given.has("follow") && { log_follow: true as const }),
    ...(lines !== undefined && { log_lines: Number(lines) }),
  };
}

/** A log of the daemon, or of one container, to standard output. */
export async function logs(call: Call): Promise<number> {
  using connection = await call.connect();
  const words = call.given.words("container");
  const found = words.length > 0 ? await find(connection, words) : [];
  await connection.send({
    command: Command.LOGS,
    container_uuids: found.map((f) => f.uuid),
    ...wanted(call),
  });
  const utf8 = new TextDecoder(); // a character may end in the next part
  for (;;) {
    const m = await connection.next();
    const msg = m.log_message?.msg;
    if (call.manner === "json") await out(json(m));
    else if (msg)
      await out(call.manner === "person" ? harmless(utf8.decode(msg, { stream: true }), true) : msg);
    if (m.log_message) continue;
    if (isOk(m)) return 0;
    call.note(reason(m));
    return 1;
  }
}

/** Changes of state as they happen, until interrupted. */
export async function events(call: Call): Promise<number> {
  using connection = await call.connect();
  const words = call.given.words("container");
  const found = words.length > 0 ? await find(connection, words) : [];
  await connection.send({ command: Command.EVENTS, container_uuids: found.map((f) => f.uuid) });
  const c = await colours();
  for (;;) {
    const m = await connection.next();
    if (!isOk(m)) return call.refused(m);
    const e = m.event;
    if (!e) continue; // the answer that says that we listen now
    if (call.manner !== "person") await out(call.manner === "json" ? json(m) : text(m));
    else {
      const how =
        e.exit_signal === POWERED_OFF
          ? "powered off"
          : e.exit_signal !== undefined
            ? `by signal ${e.exit_signal}`
            : e.exit_status !== undefined
              ? `status ${e.exit_status}`
              : "";
      const state = e.state === undefined ? c.bad("removed") : stateWord(e.state, c);
      const rest = [how, e.error_text === undefined ? "" : harmless(e.error_text)].filter(Boolean).join(": ");
      const time = new Date(e.timestamp).toISOString();
      await out(`${c.quiet(time)} ${named(e.name)} ${state}${rest && ` (${rest})`}\n`);
    }
  }
}

/** SIGINT: how reboot(2) ends the init of a pid namespace that halts or powers off, pid_namespaces(7). */
const POWERED_OFF = 2;

/** States at which a start is over. */
const UP: ReadonlySet<ContainerState> = new Set([ContainerState.RUNNING, ContainerState.SETUP]);
const DOWN: ReadonlySet<ContainerState> = new Set([ContainerState.STOPPED, ContainerState.ZOMBIE]);

export interface Waiter extends Disposable {
  /** Resolves when it runs; rejects with why it does not. */
  up(): Promise<void>;
  /** Resolves when it has stopped, or is no more. */
  down(): Promise<void>;
}

/** Listens from now on, so that nothing is missed of what is asked for next. */
export async function waiter(call: Call, uuid: string): Promise<Waiter> {
  const connection = await call.connect();
  const m = await connection.ask({ command: Command.EVENTS, container_uuids: [uuid] });
  if (!isOk(m)) {
    connection[Symbol.dispose]();
    throw new Error(`waiting is not possible: ${reason(m)}`);
  }
  return {
    async up() {
      let begun = false; // it may have been on its way down when we began to listen
      for (;;) {
        const { event } = await connection.next();
        if (!event) continue;
        if (event.state === undefined) throw new Error("the container was removed");
        if (UP.has(event.state)) return;
        begun ||= !DOWN.has(event.state) && event.state !== ContainerState.SHUTDOWN;
        if (!begun || !DOWN.has(event.state)) continue;
        const how =
          event.exit_signal === POWERED_OFF
            ? "it powered itself off"
            : event.exit_signal !== undefined
              ? `its init was ended by signal ${event.exit_signal}`
              : event.exit_status !== undefined
                ? `its init ended with status ${event.exit_status}`
                : `it is ${ContainerState[event.state]?.toLowerCase()}`;
        throw new Error(event.error_text ?? how);
      }
    },
    async down() {
      for (;;) {
        const { event } = await connection.next();
        if (event && (event.state === undefined || DOWN.has(event.state))) return;
      }
    },
    [Symbol.dispose]: () => connection[Symbol.dispose](),
  };
}
