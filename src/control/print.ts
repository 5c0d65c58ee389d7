// Answers on standard output: for a program (a pipe, a file) in the text format with the words that the original
// prints; as JSON where asked for; for a person as a table or a sentence. Everything that a container or a file could
// have put into an answer is made harmless before it reaches a terminal.
import { fstatSync, writeSync } from "node:fs";
import { DaemonToController } from "../../proto/gen/proto.js";
import { harmless } from "../lib/harmless.ts";
import { print as asText } from "../lib/text.ts";

export type Manner = "text" | "json" | "person";

/** Extensions of the protocol begin here; none of them belongs to an answer as the original prints it. */
const OURS = 1000;

/**
 * Whether somebody looks at it. The runtime's own process.stdout knows as well, but to load it takes longer than all
 * the rest of a short command.
 */
export async function isTerminal(fd: number): Promise<boolean> {
  try {
    return fstatSync(fd).isCharacterDevice() && (await import("node:tty")).isatty(fd);
  } catch {
    return false; // it is closed
  }
}

/** A line on standard error, for people. */
export function say(line: string): void {
  try {
    writeSync(2, `${harmless(line).replaceAll("\n", "; ")}\n`);
  } catch {
    // nobody listens; the exit status says it too
  }
}

/** As the original prints it: without what we added to its answers. */
export function text(m: DaemonToController): string {
  if (m.code >= OURS) return asText(DaemonToController, m);
  const theirs: Record<string, unknown> = { ...m };
  for (const f of DaemonToController.schema.fields) if (f.id >= OURS) delete theirs[f.name];
  return asText(DaemonToController, theirs);
}

export const json = (m: DaemonToController): string => `${JSON.stringify(DaemonToController.plain(m))}\n`;

// --- for a person ----------------------------------------------------------------

/** A name in one word: as it is if it is a proper one, else in quotes. */
export const named = (name: string): string =>
  /^[A-Za-z0-9._-]{1,63}$/.test(name) ? name : harmless(JSON.stringify(name));

type Paint = (s: string) => string;
export interface Colours {
  readonly head: Paint;
  readonly good: Paint;
  readonly busy: Paint;
  readonly cold: Paint;
  readonly bad: Paint;
  readonly quiet: Paint;
}

export async function colours(): Promise<Colours> {
  const { colors } = await import("consola/utils"); // none if NO_COLOR is set, or on a dumb terminal
  return {
    head: (s) => colors.bold(s),
    good: (s) => colors.green(s),
    busy: (s) => colors.yellow(s),
    cold: (s) => colors.cyan(s),
    bad: (s) => colors.red(s),
    quiet: (s) => colors.dim(s),
  };
}

/** Names and states are always there. */
const LEAST = 2;
const BETWEEN = 2;

/**
 * Columns as wide as their widest word; colours do not count. Those at the right that the terminal has no room for are
 * left out, and a mark says so: a line that breaks in two is harder to read, and a pipe has everything.
 */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  c: Colours,
  room = process.stdout.columns || Number.POSITIVE_INFINITY,
): string {
  const widths = head.map((name, i) =>
    Math.max(...[name, ...rows.map((r) => r[i] ?? "")].map((s) => Bun.stringWidth(s))),
  );
  const more = "…";
  let shown = head.length;
  const width = (): number =>
    widths.slice(0, shown).reduce((sum, w) => sum + w + BETWEEN, -BETWEEN) +
    (shown < head.length ? BETWEEN + more.length : 0);
  while (shown > LEAST && width() > room) shown--;
  const line = (row: readonly string[]): string =>
    row
      .slice(0, shown)
      .map((cell, i) => cell + " ".repeat(widths[i]! - Bun.stringWidth(cell)))
      .join(" ".repeat(BETWEEN));
  const top =
    line(head.map((h) => c.head(h))) + (shown < head.length ? " ".repeat(BETWEEN) + c.quiet(more) : "");
  return [top, ...rows.map(line)].map((l) => `${l.trimEnd()}\n`).join("");
}

/** 3725 → "1h 2m". */
export function duration(seconds: number): string {
  const [d, h, m, s] = [
    Math.floor(seconds / 86400),
    Math.floor(seconds / 3600) % 24,
    Math.floor(seconds / 60) % 60,
    Math.floor(seconds) % 60,
  ];
  if (d > 0) return `${d}d ${h}h`;
  if (h > 0) return `${h}h ${m}m`;
  return m > 0 ? `${m}m ${s}s` : `${s}s`;
}

/** 1536 → "1.5 KiB". */
export function size(bytes: number): string {
  if (bytes >= 2 ** 64) return "unknown";
  const unit = bytes < 1024 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), 4);
  const n = bytes / 1024 ** unit;
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}
