// Completion scripts for bash, zsh and fish, made from the table of commands. Names of containers are asked of the
// daemon when they are wanted; whoever may not ask it gets none.

import { out } from "../sys/output.ts";
import type { Call } from "./answer.ts";
import { type Argument, GLOBAL, type Kind, type Option, Usage } from "./arguments.ts";
import { COMMANDS } from "./commands.ts";

/** How a script learns the names of containers. */
const NAMES = "control list --quiet 2>/dev/null";

/** Behind the command, where -s may be another option. */
const BEHIND: readonly Option[] = GLOBAL.filter((o) => o.name !== "socket");
const WORDS = COMMANDS.map((c) => c.name).join(" ");

/** Options whose value is the next word. */
const takesWord = (o: Option): boolean => o.value !== undefined && !o.attached;

const SHELLS: Record<string, () => string> = { bash, zsh, fish };

export async function completion(call: Call): Promise<number> {
  const shell = call.given.word("shell");
  const script = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined;
  if (!script) throw new Usage(`${JSON.stringify(shell)} is none of ${Object.keys(SHELLS).join(" ")}`);
  await out(script());
  return 0;
}

// --- bash ---------------------------------------------------------------------------

const BASH: Record<Kind, string> = {
  container: `-W "$(${NAMES})"`,
  file: "-f",
  directory: "-d",
  program: "-c",
  shell: '-W "bash zsh fish"',
  command: `-W "${WORDS}"`,
  word: '-W ""',
};

export function bash(): string {
  const long = (options: readonly Option[]): string => options.map((o) => `--${o.name}`).join(" ");
  const withValue = [
    ...GLOBAL.filter(takesWord).flatMap((o) => [`:-${o.short}`, `:--${o.name}`]),
    ...COMMANDS.flatMap((c) =>
      c.options
        .filter(takesWord)
        .flatMap((o) => [...(o.short ? [`${c.name}:-${o.short}`] : []), `${c.name}:--${o.name}`]),
    ),
  ];
  const places = COMMANDS.flatMap((c) =>
    c.arguments.map((a, i) => `    ${c.name}:${a.many ? "*" : i}) compgen ${BASH[a.kind]} -- "$word" ;;\n`),
  );
  return `# bash completion of control; written by: control completion bash
_control_words() {
  local word=$1 command=$2 place=$3
  case $command:$place in
    :*) compgen -W "${WORDS}" -- "$word" ;;
${places.join("")}  esac
}
_control_options() {
  case $1 in
    '') echo "${long(GLOBAL)}" ;;
${COMMANDS.map((c) => `    ${c.name}) echo "${long([...c.options, ...BEHIND])}" ;;\n`).join("")}  esac
}
_control() {
  local word=\${COMP_WORDS[COMP_CWORD]} command= place=0 i
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [[ \${COMP_WORDS[i + 1]} == "=" ]]; then
      ((i += 2))
      continue
    fi
    case $command:\${COMP_WORDS[i]} in
      ${withValue.join(" | ")}) ((i++)) ;;
      *:-*) ;;
      :*) command=\${COMP_WORDS[i],,} ;;
      *) ((place++)) ;;
    esac
  done
  if [[ $word == -* && $command:$place != run:[1-9]* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_control_options "$command")" -- "$word")
  else
    mapfile -t COMPREPLY < <(_control_words "$word" "$command" "$place")
  fi
}
complete -F _control control cml-control
`;
}

// --- zsh ----------------------------------------------------------------------------

const ZSH: Record<Kind, string> = {
  container: "_control_containers",
  file: "_files",
  directory: "_files -/",
  program: "_command_names",
  shell: "(bash zsh fish)",
  command: `(${WORDS})`,
  word: " ",
};

export function zsh(): string {
  const plain = (s: string): string => s.replace(/['"[\]:\\`$]/g, "");
  const option = (o: Option): string => {
    const value = o.value ? `:${plain(o.value)}:${o.value === "FILE" ? "_files" : " "}` : "";
    const sign = o.attached ? "=-" : o.value ? "=" : "";
    const text = `[${plain(o.description)}]${value}`;
    const star = o.many ? "*" : "";
    return o.short
      ? `'${star}-${o.short}${o.attached ? "-" : o.value ? "+" : ""}${text}' '${star}--${o.name}${sign}${text}'`
      : `'${star}--${o.name}${sign}${text}'`;
  };
  const argument = (a: Argument, i: number): string =>
    a.kind === "program"
      ? `'*::${a.name}: _normal'`
      : `'${a.many ? "*" : i + 1}:${a.optional ? ":" : ""}${a.name}:${ZSH[a.kind]}'`;
  const rows = COMMANDS.map(
    (c) =>
      `        ${c.name}) _arguments ${[...[...c.options, ...BEHIND].map(option), ...c.arguments.map(argument)].join(" ")} ;;\n`,
  );
  return `#compdef control cml-control
# zsh completion of control; written by: control completion zsh
_control_containers() {
  local -a names
  names=(\${(f)"$(${NAMES})"})
  compadd -a names
}
_control() {
  local curcontext=$curcontext state line
  typeset -A opt_args
  _arguments -C ${GLOBAL.map(option).join(" ")} '1:command:->command' '*::argument:->argument'
  case $state in
    command)
      local -a commands
      commands=(
${COMMANDS.map((c) => `        '${c.name}:${plain(c.summary)}'\n`).join("")}      )
      _describe command commands
      ;;
    argument)
      case \${(L)words[1]} in
${rows.join("")}      esac
      ;;
  esac
}
_control "$@"
`;
}

// --- fish ---------------------------------------------------------------------------

const FISH: Record<Kind, string> = {
  container: "-a '(__control_containers)'",
  file: "-F",
  directory: "-a '(__fish_complete_directories)'",
  program: "-a '(__fish_complete_command)'",
  shell: "-a 'bash zsh fish'",
  command: `-a '${WORDS}'`,
  word: "",
};

export function fish(): string {
  const text = (s: string): string => `'${s.replace(/[\\']/g, "\\$&")}'`;
  const option = (o: Option): string =>
    `${o.short ? ` -s ${o.short}` : ""} -l ${o.name}${takesWord(o) ? " -r" : ""} -d ${text(o.description)}`;
  const rows = COMMANDS.flatMap((c) => {
    const lead = `complete -c control -n '__fish_seen_subcommand_from ${c.name}'`;
    const kinds = [...new Set(c.arguments.map((a) => a.kind))].map((k) => FISH[k]).filter((k) => k !== "");
    return [
      `complete -c control -n __fish_use_subcommand -a ${c.name} -d ${text(c.summary)}`,
      ...[...c.options, ...BEHIND].map((o) => lead + option(o)),
      ...kinds.map((k) => `${lead} ${k}`),
    ];
  });
  return `# fish completion of control; written by: control completion fish
function __control_containers
    ${NAMES}
end
complete -c control -f
${GLOBAL.map((o) => `complete -c control -n __fish_use_subcommand${option(o)}`).join("\n")}
${rows.join("\n")}
complete -c cml-control -w control
`;
}
