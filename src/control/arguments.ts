// A command line, judged by the table's rows: what a row does not name is refused, and what stands behind a command
// that is to run in a container is nobody's but that command's.
//
// Why not citty's own parser: it takes unknown options in silence, cannot tell `--key` from `--key=K`, and would look
// for options in the words of `run`. citty prints the usage (usage.ts).

/** What a word names; completions go by it. */
export type Kind = "container" | "file" | "directory" | "word" | "program" | "shell" | "command";

export interface Argument {
  readonly name: string;
  readonly kind: Kind;
  readonly description: string;
  readonly optional?: true;
  /** This one and all that follow. */
  readonly many?: true;
}

export interface Option {
  readonly name: string;
  readonly short?: string;
  /** What its value is called; absent: it has none. */
  readonly value?: string;
  /** `--key` and `--key=K`, `-k` and `-kK`: the value only if attached. */
  readonly attached?: true;
  /** May be given several times. */
  readonly many?: true;
  readonly description: string;
}

/** What of a row the parser looks at. */
export interface Shape {
  readonly name: string;
  readonly arguments: readonly Argument[];
  readonly options: readonly Option[];
  /** The original ignores what is too much here, and scripts depend on it. */
  readonly lenient?: true;
}

/** Options of the client itself, before the command; the long ones behind it as well. */
export const GLOBAL: readonly Option[] = [
  {
    name: "socket",
    short: "s",
    value: "FILE",
    description: "control socket of the daemon (/run/socket/cml-control)",
  },
  { name: "json", description: "print every answer as one line of JSON" },
  { name: "help", short: "h", description: "print the usage" },
];

/** Wrong usage: the client prints it with the usage, and exits with 255. */
export class Usage extends Error {}

export class Given {
  readonly #words = new Map<string, string[]>();
  readonly #options = new Map<string, (string | true)[]>();
  /** What was ignored, for a warning: names, never values. */
  readonly ignored: string[] = [];

  /** A required argument. */
  word(name: string): string {
    const word = this.#words.get(name)?.[0];
    if (word === undefined) throw new Usage(`${name} is missing`);
    return word;
  }
  words(name: string): readonly string[] {
    return this.#words.get(name) ?? [];
  }
  has(option: string): boolean {
    return this.#options.has(option);
  }
  /** True: given without a value. */
  option(name: string): string | true | undefined {
    return this.#options.get(name)?.at(-1);
  }
  value(name: string): string | undefined {
    const value = this.option(name);
    return value === true ? undefined : value;
  }
  values(name: string): string[] {
    return (this.#options.get(name) ?? []).filter((v) => v !== true);
  }

  add(name: string, word: string): void {
    this.#words.set(name, [...this.words(name), word]);
  }
  /** Takes `args[0]` as an option, with its value; returns how many words that were, 0 if it is none of `known`. */
  take(known: readonly Option[], args: readonly string[]): number {
    const first = args[0]!;
    const long = first.startsWith("--");
    const equals = long ? first.indexOf("=") : -1;
    const name = long ? first.slice(2, equals < 0 ? undefined : equals) : first[1];
    const option = known.find((o) => (long ? o.name : o.short) === name);
    if (!option) return 0;
    const inside = long
      ? equals < 0
        ? undefined
        : first.slice(equals + 1)
      : first.length > 2
        ? first.slice(2)
        : undefined;
    if (!option.value) {
      if (inside !== undefined && long) throw new Usage(`--${option.name} has no value`);
      this.#set(option, true);
      // Several short options in one word.
      if (inside !== undefined && this.take(known, [`-${inside}`, ...args.slice(1)]) === 0)
        throw new Usage(`-${inside[0]}: no such option`);
      return 1;
    }
    if (inside !== undefined || option.attached) {
      this.#set(option, inside ?? true);
      return 1;
    }
    if (args.length < 2) throw new Usage(`--${option.name}: ${option.value} is missing`);
    this.#set(option, args[1]!);
    return 2;
  }
  #set(option: Option, value: string | true): void {
    this.#options.set(option.name, [...(option.many ? (this.#options.get(option.name) ?? []) : []), value]);
  }
}

export interface Line<S extends Shape> {
  /** Absent: no command was given. */
  readonly command?: S;
  readonly given: Given;
}

/** Throws a Usage; `found` is told the command as soon as it is known, for the usage that is printed then. */
export function parse<S extends Shape>(
  args: readonly string[],
  commands: readonly S[],
  found: (command: S) => void = () => {},
): Line<S> {
  const given = new Given();
  let at = 0;
  while (at < args.length && args[at]!.startsWith("-") && args[at] !== "-") {
    const taken = given.take(GLOBAL, args.slice(at));
    if (taken === 0) throw new Usage(`${name(args[at]!)}: no such option`);
    at += taken;
  }
  const word = args[at++];
  if (word === undefined) return { given };
  const command = commands.find((c) => c.name === word.toLowerCase());
  if (!command) throw new Usage(`${JSON.stringify(word)}: no such command`);
  found(command);

  const known = [
    ...command.options,
    ...GLOBAL.map(({ short, ...o }) => (short === "h" ? { ...o, short } : o)),
  ];
  const rest = args.slice(at);
  let next = 0; // of the command's arguments
  let onlyWords = false;
  while (rest.length > 0) {
    const here = rest[0]!;
    const argument = command.arguments[next];
    if (argument?.kind === "program") {
      if (here === "--") rest.shift(); // as people write it for other programs
      for (const w of rest.splice(0)) given.add(argument.name, w);
    } else if (!onlyWords && here === "--") {
      onlyWords = true;
      rest.shift();
    } else if (!onlyWords && here.startsWith("-") && here !== "-") {
      const taken = given.take(known, rest);
      if (taken === 0 && !command.lenient) throw new Usage(`${name(here)}: no such option`);
      if (taken === 0) given.ignored.push(name(here));
      rest.splice(0, Math.max(taken, 1));
    } else if (argument) {
      given.add(argument.name, here);
      if (!argument.many) next++;
      rest.shift();
    } else {
      if (!command.lenient) throw new Usage(`${JSON.stringify(here)} is too much`);
      given.ignored.push("an argument");
      rest.shift();
    }
  }
  const missing = command.arguments.find((a) => !a.optional && given.words(a.name).length === 0);
  if (missing && !given.has("help")) throw new Usage(`${missing.name.toUpperCase()} is missing`);
  return { command, given };
}

/** An option without its value, which may be a secret. */
const name = (option: string): string => option.replace(/=.*/s, "").replace(/^(-[^-]).*/s, "$1");
