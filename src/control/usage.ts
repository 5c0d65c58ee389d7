// The usage of `control` and of each command, made from the table and printed by citty.
import { type ArgsDef, type CommandDef, defineCommand, renderUsage } from "citty";
import { GLOBAL, type Option } from "./arguments.ts";
import { COMMANDS, type Row } from "./commands.ts";
import { isTerminal } from "./print.ts";

const option = (o: Option): ArgsDef[string] => ({
  type: o.value ? "string" : "boolean",
  description: o.description,
  ...(o.short && { alias: o.short }),
  ...(o.value && { valueHint: o.value }),
});

const args = (row: Row): ArgsDef => ({
  ...Object.fromEntries(
    row.arguments.map((a) => [
      a.many ? `${a.name}…` : a.name,
      { type: "positional", description: a.description, required: !a.optional } as const,
    ]),
  ),
  ...Object.fromEntries(row.options.map((o) => [o.name, option(o)])),
});

const META = { name: "control", description: "control client of the container management layer" };

/** The table as citty knows commands. */
export const tree: CommandDef = defineCommand({
  meta: META,
  args: Object.fromEntries(GLOBAL.map((o) => [o.name, option(o)])),
  subCommands: Object.fromEntries(
    COMMANDS.map((row) => [
      row.name,
      defineCommand({ meta: { name: row.name, description: row.summary }, args: args(row) }),
    ]),
  ),
});

/** Of one command, or of all. Colours only on a terminal. */
export async function usage(row?: Row): Promise<string> {
  const command = row ? (tree.subCommands as Record<string, CommandDef>)[row.name]! : tree;
  const rendered = (await renderUsage(command, row ? tree : undefined))
    .replace(COMMANDS.map((c) => c.name).join("|"), "COMMAND …")
    .replace(/ +$/gm, "");
  const all = `${rendered.trimEnd()}${row?.details ? `\n\n${row.details}` : ""}\n`;
  return (await isTerminal(1)) ? all : Bun.stripANSI(all);
}
