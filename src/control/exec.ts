// `control run`: a command in a container, with our standard input and output as its own. With a terminal on both ends
// it is as if one sat inside: keys go there as they are typed, Ctrl-C included, and the size of the window follows.
import { constants } from "node:os";
import { ControllerToDaemon, DaemonToController, type IControllerToDaemon } from "../../proto/gen/proto.js";
import { out } from "../sys/output.ts";
import { getWindow, type WindowSize } from "../sys/pty.ts";
import { type Call, find, isOk, reason } from "./answer.ts";
import type { Connection } from "./client.ts";
import { isTerminal, text } from "./print.ts";
import { Changed, Input } from "./terminal.ts";

const { Command } = ControllerToDaemon;
const { Code } = DaemonToController;

/** The status of a program that a signal ended, as shells have it. */
const SIGNALLED = 128;

/** What every guest that people enter has. */
const SHELL = "/bin/sh";

export async function run(call: Call): Promise<number> {
  const { given } = call;
  const words = [...given.words("command")];
  const wantsNoPty = words[0] === "nopty";
  if (wantsNoPty) words.shift();
  if (words.length === 0) words.push(SHELL);
  const pty = !wantsNoPty && !given.has("no-tty");
  // Both, or the settings of a terminal would be changed under a pager that reads our output.
  const interactive = pty && (await isTerminal(0)) && (await isTerminal(1));

  using connection = await call.connect();
  const [container] = await find(connection, [given.word("container")]);
  const container_uuids = [container!.uuid];
  const size = interactive ? getWindow(1) : undefined;
  const env = given.values("env");
  if (interactive && process.env.TERM && !env.some((e) => e.startsWith("TERM=")))
    env.push(`TERM=${process.env.TERM}`);
  await connection.send({
    command: Command.CONTAINER_EXEC_CMD,
    container_uuids,
    exec_command: words[0],
    exec_args: words,
    exec_pty: pty,
    exec_user: given.value("user"),
    exec_cwd: given.value("workdir"),
    exec_env: env,
    ...windowOf(size),
  });

  using _raw = interactive ? Changed.toRaw() : undefined;
  let resizes = 0; // answers to come that are not for us
  const resized = (): void => {
    const window = getWindow(1);
    if (!window) return;
    resizes++;
    quietly(connection.send({ command: Command.EXEC_RESIZE, container_uuids, ...windowOf(window) }));
  };
  if (size) process.on("SIGWINCH", resized);
  await using stdin = new Input();
  quietly(input(stdin, connection, container_uuids));

  for (;;) {
    const m = await connection.next();
    if (m.code === Code.EXEC_OUTPUT) await out(m.exec_output ?? new Uint8Array(0));
    else if (m.code === Code.RESPONSE && resizes > 0) resizes--;
    else if (m.code === Code.EXEC_END) {
      process.off("SIGWINCH", resized);
      _raw?.[Symbol.dispose]();
      return ended(call, m);
    } else {
      _raw?.[Symbol.dispose]();
      if (!isOk(m)) call.note(reason(m));
      await out(text(m));
      return isOk(m) ? 0 : 1;
    }
  }
}

const windowOf = (w: WindowSize | undefined): Partial<IControllerToDaemon> =>
  w ? { exec_rows: w.rows, exec_cols: w.columns } : {};

/** A send that fails has lost the connection: whoever waits for answers says so. */
const quietly = (sending: Promise<void>): void => void sending.catch(() => {});

function ended(call: Call, m: DaemonToController): number {
  if (m.error_text !== undefined) call.note(m.error_text);
  if (m.exit_signal !== undefined) {
    const name = Object.entries(constants.signals).find(([, n]) => n === m.exit_signal)?.[0];
    call.note(`ended by ${name ?? `signal ${m.exit_signal}`}`);
    return SIGNALLED + m.exit_signal;
  }
  return m.exit_status ?? (m.error_text === undefined ? 0 : 1); // the original's daemon sends no status
}

/** What comes in goes on, and so does its end. The next piece is read when the daemon's socket has taken the last. */
async function input(stdin: Input, connection: Connection, container_uuids: string[]): Promise<void> {
  const command = Command.CONTAINER_EXEC_INPUT;
  for (;;) {
    const bytes = await stdin.chunk();
    // The original takes exec_input only, and as far as a NUL; it needs the field to be there.
    const piece: Partial<IControllerToDaemon> =
      bytes && !bytes.includes(0)
        ? { exec_input: bytes }
        : { exec_input: new Uint8Array(0), exec_input_bytes: bytes ?? new Uint8Array(0) };
    await connection.send({ command, container_uuids, ...piece });
    if (!bytes) return;
  }
}
