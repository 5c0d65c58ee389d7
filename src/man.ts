// The manual pages, made from what the programs are made from: the tables of commands, and the .proto files with their
// comments. `make man` runs it: man.ts FOLDER. Written with the man(7) macros; same input, same bytes.
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import type { ArgsDef } from "citty";
import protobuf from "protobufjs";
import { WITHOUT_EFFECT } from "./cmld/pending.ts";
import { GLOBAL, type Option } from "./control/arguments.ts";
import { COMMANDS, type Row } from "./control/commands.ts";
import { CONTAINER_COMMANDS, CONTAINER_SUMMARY, COMMANDS as GUESTOS, SUMMARY } from "./guestos/table.ts";
import { COMMANDS as PKI_COMMANDS, SUMMARY as PKI_SUMMARY } from "./pki/table.ts";
import type { Commands } from "./tool/commands.ts";

// --- roff ------------------------------------------------------------------------

/** Text as it stands: nothing in it is a request, and a hyphen can be copied. */
const text = (s: string): string =>
  s
    .replace(/\\/g, "\\e")
    .replace(/-/g, "\\-")
    .replace(/^([.'])/gm, "\\&$1")
    .replace(/…/g, "...")
    .replace(/[^\x00-\x7f]/g, (c) => `\\[u${c.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}]`);
const bold = (s: string): string => `\\fB${text(s)}\\fR`;
const italic = (s: string): string => `\\fI${text(s)}\\fR`;
const paragraphs = (...all: string[]): string => all.map((p) => `.PP\n${p}\n`).join("");
const section = (title: string, body: string): string => `.SH ${title}\n${body}`;
const item = (head: string, body: string): string => `.TP\n${head}\n${body}\n`;
const example = (code: string): string => `.PP\n.RS 4\n.nf\n${text(code.trim())}\n.fi\n.RE\n`;

function page(name: string, volume: number, summary: string, ...sections: string[]): string {
  const title = `.TH ${name.toUpperCase().replaceAll("-", "\\-")} ${volume} "" "cml" ""`;
  return [title, section("NAME", `${text(name)} \\- ${text(summary)}\n`), ...sections].join("\n");
}

const seeAlso = (...pages: string[]): string =>
  section(
    "SEE ALSO",
    `${pages
      .map((p) => p.replace(/^(.*)(\(\d\))$/, (_, name, volume) => `${bold(name)}${volume}`))
      .join(", ")}\n`,
  );

// --- control(1) ---------------------------------------------------------------------

const optionHead = (o: Option): string => {
  const value = o.value ? italic(o.value) : "";
  const long = `${bold(`--${o.name}`)}${o.value ? (o.attached ? `[=${value}]` : `=${value}`) : ""}`;
  const short = o.short
    ? `${bold(`-${o.short}`)}${o.value ? (o.attached ? `[${value}]` : ` ${value}`) : ""}, `
    : "";
  return short + long;
};

const synopsis = (row: Row): string =>
  [
    bold(row.name),
    ...(row.options.length > 0 ? ["[" + italic("options") + "]"] : []),
    ...row.arguments.map((a) => {
      const word = italic(a.name) + (a.many ? " ..." : "");
      return a.optional ? `[${word}]` : word;
    }),
  ].join(" ");

const options = (all: readonly Option[]): string =>
  all.map((o) => item(optionHead(o), sentence(o.description))).join("");

const sentence = (s: string): string => text(`${s[0]!.toUpperCase()}${s.slice(1)}.`);

const row = (r: Row): string =>
  `.SS ${synopsis(r)}\n${sentence(r.summary)}${r.details ? `\n${text(r.details)}` : ""}\n` +
  r.arguments.map((a) => item(italic(a.name), sentence(a.description))).join("") +
  options(r.options);

const control = (): string =>
  page(
    "control",
    1,
    "manage containers",
    section(
      "SYNOPSIS",
      `${bold("control")} [${italic("options")}] ${italic("command")} [${italic("arguments")}]\n`,
    ),
    section(
      "DESCRIPTION",
      paragraphs(
        text(
          "The client of cmld, the manager of containers. On a terminal it prints tables and sentences; into a pipe or a file it prints every answer in protobuf text format, with the words that the original's client prints; with --json, one line of JSON. What the daemon refused is said in one line on standard error.",
        ),
        text(
          "A container is named by its name or its uuid. Upper and lower case of a command are the same. Where the original's client ignores surplus arguments, so does this one, with a warning.",
        ),
      ),
    ),
    section("OPTIONS", options(GLOBAL)),
    section("COMMANDS", COMMANDS.map(row).join("")),
    section(
      "EXIT STATUS",
      item(bold("0"), "Done, or begun where an end is not waited for.") +
        item(bold("1"), "Refused by the daemon, or it could not be asked.") +
        item(bold("255"), "Wrong usage.") +
        paragraphs(
          `${bold("run")}: the status of the command, or 128 and the number of the signal that ended it.`,
        ),
    ),
    section("FILES", item(text("/run/socket/cml-control"), "The control socket, in the host and in core0.")),
    section(
      "EXAMPLES",
      example(`control create web.conf
control start --wait web
control run web /bin/sh
control list --json | jq -r '.container_status[].name'
control logs -f web`),
    ),
    seeAlso("cml(8)", "cml-guestos(1)", "container.conf(5)", "device.conf(5)"),
  );

// --- cml-guestos(1), cml-container(1), cml-pki(1) ------------------------------------------

function toolPage(
  program: string,
  summary: string,
  table: Commands,
  statuses: string,
  see: string[],
): string {
  const commands = table.map(([word, help, args]) => {
    const all = Object.entries(args as ArgsDef);
    const places = all.filter(([, a]) => a.type === "positional");
    const items = all.map(([name, a]) => {
      const hint = a.valueHint ? `=${italic(a.valueHint.replace(/\.\.\.$/, ""))}` : "";
      const alias = "alias" in a && a.alias ? `${bold(`-${[a.alias].flat()[0]}`)}, ` : "";
      const negative = a.type === "boolean" && a.default === true ? "no-" : "";
      const head = a.type === "positional" ? italic(name) : `${alias}${bold(`--${negative}${name}`)}${hint}`;
      const notes = [
        a.valueHint?.endsWith("...") ? "May be given more than once." : "",
        typeof a.default === "string" ? `(default ${a.default})` : "",
        a.type !== "positional" && a.required === true ? "Required." : "",
      ].filter(Boolean);
      const does = negative ? `do not ${a.description}` : a.description;
      return item(head, [sentence(does ?? ""), ...notes.map(text)].join(" "));
    });
    return `.SS ${text(word)} ${places.map(([name]) => text(name)).join(" ")}\n${sentence(help)}\n${items.join("")}`;
  });
  return page(
    `cml-${program}`,
    1,
    summary,
    section("SYNOPSIS", `${bold(`cml ${program}`)} ${italic("command")} [${italic("arguments")}]\n`),
    section("COMMANDS", commands.join("")),
    section("EXIT STATUS", statuses),
    seeAlso(...see),
  );
}

const MADE =
  item(bold("0"), "Made, or nothing wrong with it.") + item(bold("1"), "Not made, or something wrong.");

const tools = (): Record<string, string> => ({
  "cml-guestos.1": toolPage(
    "guestos",
    SUMMARY,
    GUESTOS,
    MADE +
      item(
        bold("verify"),
        "0: the signature is good, and so are the images; 1: refused, the reason is said; 2: wrong arguments, or a file that can't be read.",
      ),
    ["cml(8)", "cml-container(1)", "cml-pki(1)", "control(1)"],
  ),
  "cml-container.1": toolPage("container", CONTAINER_SUMMARY, CONTAINER_COMMANDS, MADE, [
    "cml(8)",
    "cml-pki(1)",
    "container.conf(5)",
  ]),
  "cml-pki.1": toolPage("pki", PKI_SUMMARY, PKI_COMMANDS, MADE, [
    "cml(8)",
    "cml-guestos(1)",
    "cml-container(1)",
  ]),
});

// --- cml(8) -------------------------------------------------------------------------------

const cml = (): string =>
  page(
    "cml",
    8,
    "the container management layer, in one executable",
    section("SYNOPSIS", `${bold("cml")} ${italic("program")} [${italic("arguments")}]\n`),
    section(
      "DESCRIPTION",
      paragraphs(
        text(
          "One executable that is several programs; the name by which it is called selects one, or its first argument.",
        ),
      ) +
        item(
          bold("init"),
          "Process 1 of a device: mounts, starts the daemons and starts them again, reaps, shuts down.",
        ) +
        item(
          bold("cmld"),
          text(
            "The manager of containers; its first argument is its data folder. On a device init starts it; in hosted mode, on an ordinary Linux system, systemd does.",
          ),
        ) +
        item(`${bold("control")}, ${bold("cml-control")}`, "Its client, see \\fBcontrol\\fR(1).") +
        item(bold("guestos"), "Makes guest operating systems, see \\fBcml\\-guestos\\fR(1).") +
        item(bold("container"), "Signs container configurations, see \\fBcml\\-container\\fR(1).") +
        item(bold("pki"), "Makes a development PKI, see \\fBcml\\-pki\\fR(1)."),
    ),
    section(
      "FILES",
      item(
        text("/data/cml/, hosted /var/lib/cml/"),
        text("Data: operatingsystems/, containers/, keys/, tokens/."),
      ) +
        item(
          text("/data/cml/device.conf, hosted /etc/cml/device.conf"),
          "The device, see \\fBdevice.conf\\fR(5).",
        ) +
        item(
          text("/data/logs/, hosted /var/log/cml/"),
          text("Logs of the daemons and of the consoles of containers."),
        ) +
        item(text("/run/socket/cml-control"), "The control socket."),
    ),
    seeAlso("control(1)", "cml-guestos(1)", "container.conf(5)", "device.conf(5)"),
  );

// --- *.conf(5) -------------------------------------------------------------------------------

const TYPES: Record<string, string> = { bool: "true or false", string: "string", bytes: "string" };

/** A message's fields, and those of the messages in it. */
function fields(type: protobuf.Type): string {
  const idle: ReadonlySet<string> = new Map(Object.entries(WITHOUT_EFFECT)).get(type.name) ?? new Set();
  const nested = new Set<protobuf.Type>();
  const items = type.fieldsArray
    .toSorted((a, b) => a.id - b.id)
    .map((f) => {
      if (f.resolvedType instanceof protobuf.Type) nested.add(f.resolvedType);
      const kind =
        f.resolvedType instanceof protobuf.Enum
          ? Object.keys(f.resolvedType.values).join(", ")
          : f.resolvedType
            ? `{ ${f.resolvedType.name} }`
            : (TYPES[f.type] ?? "number");
      const notes = [
        f.repeated ? "any number of times" : "",
        f.options?.default === undefined
          ? f.required && f.type === "string"
            ? "required"
            : ""
          : `default ${typeof f.options.default === "string" && f.type === "string" ? JSON.stringify(f.options.default) : f.options.default}`,
        f.id >= 1000 ? "not known to the original" : "",
        idle.has(f.name) ? "no effect yet, which the log says" : "",
      ].filter(Boolean);
      const rest = notes.length > 0 ? ` (${notes.join("; ")})` : "";
      const comment = f.comment ? text(f.comment.replace(/\s*\n\s*/g, " ")) : "";
      return item(`${bold(f.name)}: ${text(kind)}${text(rest)}`, comment || "\\&");
    });
  return `.SS ${type.name}\n${items.join("")}${[...nested].map(fields).join("")}`;
}

const FORMAT = [
  "Protocol buffer text format: a field is a line like name: value, or name { fields }. A string stands in single or double quotes with the usual escapes, a number is decimal or hexadecimal, # begins a comment. A field that may be there any number of times is written again for each value, or as a list in brackets.",
  "Whatever is wrong is refused, with line, column and field. Required numbers may be missing, as for the original.",
];

const configuration = (
  root: protobuf.Root,
  name: string,
  message: string,
  summary: string,
  about: string[],
  code: string,
): string =>
  page(
    name,
    5,
    summary,
    section("DESCRIPTION", paragraphs(...[...about, ...FORMAT].map(text))),
    section("FIELDS", fields(root.lookupType(message))),
    section("EXAMPLE", example(code)),
    seeAlso("cml(8)", "control(1)", name === "device.conf" ? "container.conf(5)" : "device.conf(5)"),
  );

// --- all -------------------------------------------------------------------------------------

/** File name → page. */
export function pages(): Record<string, string> {
  const folder = `${import.meta.dir}/../proto`;
  const root = new protobuf.Root();
  root.resolvePath = (_from, to) => (to.startsWith("/") ? to : `${folder}/${to}`);
  const files = readdirSync(folder).filter((f) => f.endsWith(".proto"));
  root.loadSync(files.sort(), { keepCase: true, alternateCommentMode: true }).resolveAll();
  return {
    "cml.8": cml(),
    "control.1": control(),
    ...tools(),
    "container.conf.5": configuration(
      root,
      "container.conf",
      "ContainerConfig",
      "configuration of a container",
      [
        "Given to control create and control update_config; kept as containers/UUID.conf in the data folder. Unsigned configurations are written there in a canonical form, with what was chosen for them: version of the guest operating system, MAC addresses.",
      ],
      `# a web server on a network of its own
name: "web"
guest_os: "debian"
color: 0x2080ffff
token_type: NONE
ram_limit: 512          # MiB
init_env: "MODE=live"
image_sizes { image_name: "data" image_size: 2048 }
vnet_configs { if_name: "eth0" configure: true }`,
    ),
    "device.conf.5": configuration(
      root,
      "device.conf",
      "DeviceConfig",
      "configuration of a device",
      ["Without it, or with something wrong in it, cmld does not start."],
      `# an ordinary Linux system, for development
hostedmode: true
tpm_enabled: false
signed_configs: false`,
    ),
  };
}

if (import.meta.main) {
  const folder = process.argv[2] ?? "out/man";
  mkdirSync(folder, { recursive: true });
  for (const [name, text] of Object.entries(pages())) writeFileSync(`${folder}/${name}`, text);
}
