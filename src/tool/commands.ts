// The command line of the developer's tools (`cml guestos`, `cml container`, `cml pki`): one table of commands, from
// which parsing, --help and the manual pages are made.
import { type ArgDef, type ArgsDef, type CommandDef, defineCommand, renderUsage, runCommand } from "citty";
import { harmless } from "../lib/harmless.ts";
import { chain } from "../sys/error.ts";
import { isUnread, out, UNREAD } from "../sys/output.ts";

/** [word, one line of help, arguments]. `valueHint` of an option that may be given more than once ends in "...". */
export type Commands = readonly (readonly [word: string, help: string, args: ArgsDef])[];

/** What each command does, and the exit status it gives. `many` has the values of a repeated option, in order. */
export type Run<C extends Commands> = Record<
  C[number][0],
  (args: Values, many: (option: string) => string[]) => Promise<number>
>;
export type Values = Readonly<Record<string, unknown>>;

export interface Tool<C extends Commands> {
  readonly program: string;
  readonly summary: string;
  readonly commands: C;
  readonly run: Run<C>;
  /** Commands whose statuses differ from 255 for a wrong command line and 1 for whatever else fails. */
  readonly statuses?: Readonly<Record<string, { readonly usage: number; readonly failed: number }>>;
}

/** The command line is wrong. */
export class Usage extends Error {}

export function oneOf<T extends string>(what: string, value: unknown, allowed: readonly T[]): T {
  const found = allowed.find((one) => one === value);
  if (found === undefined) throw new Usage(`${what} ${value}: not one of ${allowed.join(" ")}`);
  return found;
}

export function whole(what: string, value: unknown, least: number, most: number): number {
  const n = /^[0-9]{1,16}$/.test(String(value)) ? Number(value) : Number.NaN;
  if (!(n >= least && n <= most))
    throw new Usage(`${what} ${value}: a whole number from ${least} to ${most}`);
  return n;
}

/** The values of an option that may be given more than once, in order: `--env A=1 --env=B=2`. */
function repeated(rawArgs: readonly string[], option: string): string[] {
  const values: string[] = [];
  for (let i = 0; i < rawArgs.length && rawArgs[i] !== "--"; i++) {
    const word = rawArgs[i]!;
    if (word === `--${option}`) values.push(rawArgs[++i] ?? "");
    else if (word.startsWith(`--${option}=`)) values.push(word.slice(option.length + 3));
  }
  return values;
}

/** citty passes over options that it doesn't know and words that it doesn't want; neither is passed over here. */
function known(rawArgs: readonly string[], args: ArgsDef): void {
  const names = new Map<string, ArgDef>();
  for (const [name, def] of Object.entries(args)) {
    const alias = "alias" in def ? (def.alias ?? []) : [];
    for (const one of [name, alias].flat()) names.set(one, def);
  }
  let wanted = Object.values(args).filter((def) => def.type === "positional").length;
  const word = (words: string) => {
    if (--wanted < 0) throw new Usage(`${words}: one word too many`);
  };
  for (let i = 0; i < rawArgs.length; i++) {
    if (rawArgs[i] === "--") {
      rawArgs.slice(i + 1).forEach(word);
      break;
    }
    if (!/^-./.test(rawArgs[i]!)) {
      word(rawArgs[i]!);
      continue;
    }
    const [, name = "", value] = /^--?([a-z-]+)(=.*)?$/s.exec(rawArgs[i]!) ?? [];
    const def = names.get(name) ?? names.get(name.replace(/^no-/, ""));
    if (!def) throw new Usage(`${rawArgs[i]}: no such option`);
    if (def.type === "string" && value === undefined) i++;
  }
}

export async function runTool<C extends Commands>(tool: Tool<C>, rawArgs: string[]): Promise<number> {
  let status = 0;
  const root: CommandDef = defineCommand({
    meta: { name: `cml ${tool.program}`, description: tool.summary },
    subCommands: Object.fromEntries(
      tool.commands.map(([name, description, args]) => [
        name,
        defineCommand({
          meta: { name, description },
          args,
          async run({ args: values, rawArgs: words }) {
            known(words, args);
            status = await tool.run[name as C[number][0]](values, (option) => repeated(words, option));
          },
        }),
      ]),
    ),
  });
  const sub = tool.commands.find(([name]) => name === rawArgs[0]);
  const statuses = tool.statuses?.[rawArgs[0]!] ?? { usage: 255, failed: 1 };
  try {
    if (rawArgs.length === 0 || rawArgs.includes("--help") || rawArgs.includes("-h")) {
      const command = sub
        ? defineCommand({ meta: { name: sub[0], description: sub[1] }, args: sub[2] })
        : root;
      const usage = await renderUsage(command, sub ? root : undefined);
      await out(`${process.stdout.isTTY ? usage : Bun.stripANSI(usage)}\n`);
      return rawArgs.length ? 0 : 255;
    }
    await runCommand(root, { rawArgs });
    return status;
  } catch (e) {
    if (isUnread(e)) return UNREAD;
    console.error(`${tool.program}: ${harmless(chain(e))}`);
    return e instanceof Usage || (e as Error).name === "CLIError" ? statuses.usage : statuses.failed;
  }
}
