// Audit records from the daemon: those that are there, and with --follow those that come.
import { AuditRecord, ControllerToDaemon } from "../../proto/gen/proto.js";
import { harmless } from "../lib/harmless.ts";
import { print as asText } from "../lib/text.ts";
import { out } from "../sys/output.ts";
import { type Call, find, isOk } from "./answer.ts";
import { wanted } from "./logs.ts";
import { type Colours, colours } from "./print.ts";

const { Command } = ControllerToDaemon;

/** What stands after each record in a file (the original's form). */
const DASHES = "-----\n";
/** Entries that are of the record and not of what happened. */
const OWN = new Set(["sequence", "chain"]);

/** "2026-11-21T16:25:18Z failure container-start core0: error=…" */
function line(r: AuditRecord, c: Colours): string {
  const [outcome = "", , kind = "", ...name] = r.type.split(".");
  const failed = outcome.startsWith("F") || outcome === "RLE";
  const word = harmless(`${kind.toLowerCase()} ${name.join(".")}`);
  const time = new Date(r.timestamp * 1000);
  const when = Number.isNaN(time.getTime()) ? String(r.timestamp) : time.toISOString().replace(".000", "");
  const rest = r.meta
    .filter((m) => !OWN.has(m.key))
    .map((m) => `${m.key}=${/^[^\s"]+$/.test(m.value) ? m.value : JSON.stringify(m.value)}`);
  const about = r.subject_id === undefined ? [] : [r.subject_id];
  return `${c.quiet(when)} ${failed ? c.bad(harmless(outcome)) : c.good(harmless(outcome))} ${word}${[...about, ...rest].map((w) => ` ${harmless(w)}`).join("")}\n`;
}

export async function audit(call: Call): Promise<number> {
  using connection = await call.connect();
  const words = call.given.words("container");
  const found = words.length > 0 ? await find(connection, words) : [];
  await connection.send({
    command: Command.AUDIT,
    container_uuids: found.map((f) => f.uuid),
    ...wanted(call),
  });
  const c = await colours();
  const shown = (r: AuditRecord): string => {
    if (call.manner === "json") return `${JSON.stringify(AuditRecord.plain(r))}\n`;
    return call.manner === "person" ? line(r, c) : asText(AuditRecord, r) + DASHES;
  };
  for (;;) {
    const m = await connection.next();
    for (const r of m.audit_records) await out(shown(r));
    if (m.audit_records.length > 0) continue;
    return isOk(m) ? 0 : call.refused(m);
  }
}
