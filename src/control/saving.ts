// Recovery keys and backups at the terminal: a recovery key is shown once; a backup goes to a file that nobody else may
// read, and is there whole or not at all.
import {
  accessSync,
  closeSync,
  fsyncSync,
  constants as modes,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { constants } from "node:os";
import { basename, dirname, join } from "node:path";
import { renderUnicodeCompact } from "uqr";
import { ControllerToDaemon, DaemonToController } from "../../proto/gen/proto.js";
import { fromWords, words } from "../lib/words.ts";
import { out } from "../sys/output.ts";
import { type Call, type Container, isOk } from "./answer.ts";
import type { Connection } from "./client.ts";
import { named } from "./print.ts";
import { FATAL, Input } from "./terminal.ts";

const { Command } = ControllerToDaemon;
const { Code } = DaemonToController;
/** Light modules around a QR code (ISO/IEC 18004, 6.3.8). */
const QUIET_ZONE = 4;
/** Bytes of a backup in one message. */
const PIECE = 256 * 1024;

export async function recoveryKey(call: Call, connection: Connection, container: Container): Promise<number> {
  const m = await connection.next();
  if (m.code !== Code.EXPORT_DATA || !m.export_data) return call.show(m, () => "");
  const text = words(m.export_data);
  m.export_data.fill(0);
  if (call.manner !== "person") {
    await out(`${text}\n`);
    return 0;
  }
  const code = renderUnicodeCompact(text, { border: QUIET_ZONE });
  const fits = code.indexOf("\n") <= (process.stdout.columns || Number.POSITIVE_INFINITY);
  const how = fits
    ? "Write it down or photograph it"
    : "Write it down (a code does not fit on this terminal)";
  await out(
    `recovery key of ${named(container.name)}:\n\n    ${text}\n\n${fits ? `${code}\n\n` : ""}${how}, and keep it away from the device: it is shown only now.\n`,
  );
  return 0;
}

/** The recovery key that somebody types. */
export async function typed(call: Call): Promise<Uint8Array> {
  await using input = new Input(call.manner === "json");
  using line = await input.secret("Recovery key: ");
  return line.lend((bytes) => fromWords(Buffer.from(bytes).toString("latin1")));
}

/** Before anybody is asked for anything: a backup takes the place of a file, and of no folder or device. */
export function checkTarget(path: string): void {
  accessSync(dirname(path), modes.W_OK);
  if (statSync(path, { throwIfNoEntry: false })?.isFile() === false)
    throw new Error(`${path}: not a regular file`);
}

export async function save(call: Call, connection: Connection, path: string): Promise<number> {
  // A name of its own: whatever is there already is neither in its way nor written to.
  const fresh = join(dirname(path), `.${basename(path)}.${process.pid}.new`);
  for (const signal of FATAL) // before it is there: a signal between the two would leave it
    process.on(signal, () => {
      rmSync(fresh, { force: true });
      process.exit(128 + constants.signals[signal]);
    });
  const fd = openSync(fresh, "wx", 0o600);
  let bytes = 0;
  try {
    for (;;) {
      const m = await connection.next();
      if (m.code === Code.EXPORT_DATA && m.export_data) {
        const piece = m.export_data;
        for (let at = 0; at < piece.length; ) at += writeSync(fd, piece, at);
        bytes += piece.length;
        continue;
      }
      if (isOk(m)) {
        fsyncSync(fd);
        renameSync(fresh, path);
      }
      return await call.show(m, () => `${path}: ${bytes} bytes\n`);
    }
  } finally {
    closeSync(fd);
    rmSync(fresh, { force: true });
  }
}

export async function restore(call: Call, connection: Connection, path: string): Promise<number> {
  const fd = openSync(path, "r"); // before anybody is asked
  try {
    const key = await typed(call);
    let container_start_params: { key: Uint8Array } | undefined = { key };
    const piece = Buffer.alloc(PIECE);
    for (;;) {
      const n = readSync(fd, piece);
      await connection.send({
        command: Command.IMPORT,
        import_data: piece.subarray(0, n),
        ...(container_start_params && { container_start_params }),
      });
      container_start_params = undefined;
      if (n === 0) break;
    }
    key.fill(0);
    const m = await connection.next();
    return await call.show(m, () => `restored as ${m.container_uuids[0]}\n`);
  } finally {
    closeSync(fd);
  }
}
