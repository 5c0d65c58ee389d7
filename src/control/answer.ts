// What a command has of the world: its arguments, a connection, and how to show an answer. What the daemon refused is
// said in one line on standard error, and the exit status is 1.
import { ContainerState, ControllerToDaemon, DaemonToController } from "../../proto/gen/proto.js";
import { parseUuid } from "../lib/uuid.ts";
import { out } from "../sys/output.ts";
import type { Given } from "./arguments.ts";
import { Connection } from "./client.ts";
import { type Colours, colours, json, type Manner, named, say, text } from "./print.ts";

const { Code, Response } = DaemonToController;

export interface Container {
  readonly uuid: string;
  readonly name: string;
}

/** Answers that say that what was asked for is done, or has begun. */
const DONE = new Set([
  Response.CONTAINER_START_OK,
  Response.CONTAINER_STOP_OK,
  Response.CONTAINER_CHANGE_PIN_SUCCESSFUL,
  Response.DEVICE_CERT_OK,
  Response.GUESTOS_MGR_INSTALL_COMPLETED,
  Response.GUESTOS_MGR_REGISTER_CA_OK,
  Response.CMD_OK,
]);

export function isOk(m: DaemonToController): boolean {
  if (m.code === Code.RESPONSE) return m.response !== undefined && DONE.has(m.response);
  // The original says no by leaving out what was asked for.
  if (m.code === Code.CONTAINER_CONFIG && m.container_configs.length === 0) return false;
  if (m.code === Code.DEVICE_CSR && m.device_csr === undefined) return false;
  return m.error_text === undefined;
}

/** "start web: ": what stands before a line. The line may begin with the same words, or name the same file. */
export function titled(title: string, line: string): string {
  const [command = "", subject = ""] = title.slice(0, -2).split(/ (.*)/s);
  if (line.startsWith(title)) return line;
  if (subject !== "" && line.startsWith(`${subject}: `)) return `${command} ${line}`;
  return subject.includes("/") && line.includes(subject) ? `${command}: ${line}` : title + line;
}

export class Call {
  constructor(
    /** "start web": stands before every message. */
    readonly title: string,
    readonly given: Given,
    readonly socket: string,
    readonly manner: Manner,
  ) {}

  connect(): Promise<Connection> {
    return Connection.open(this.socket);
  }

  /** A line for people on standard error. */
  note(line: string): void {
    say(`control: ${titled(`${this.title}: `, line)}`);
  }

  /** Print an answer; `person` makes what somebody at a terminal sees of one that is no refusal. */
  async show(m: DaemonToController, person: (c: Colours) => string): Promise<number> {
    const ok = isOk(m);
    if (this.manner === "json") await out(json(m));
    else if (this.manner === "text") await out(text(m));
    else if (ok) await out(person(await colours()));
    if (!ok) return this.#no(m);
    if (m.error_text !== undefined) this.note(m.error_text); // done, but for a part of it
    return 0;
  }

  /** The refusal of a request whose answers are not printed as they come. */
  async refused(m: DaemonToController): Promise<number> {
    if (this.manner === "json") await out(json(m));
    return this.#no(m);
  }
  #no(m: DaemonToController): number {
    this.note(reason(m));
    return 1;
  }
}

/** Why an answer is a refusal, in one line. */
export function reason(m: DaemonToController): string {
  const word = m.response === undefined ? Code[m.code] : Response[m.response];
  const known = word ?? `answer ${m.response ?? m.code}`;
  return m.error_text === undefined ? known : `${m.error_text} (${known})`;
}

/**
 * The containers that the words name: a uuid in any of its forms, or a name, of which the first one counts. One
 * request, as the original's client makes it.
 */
export async function find(c: Connection, words: readonly string[], units = false): Promise<Container[]> {
  const m = await c.ask({
    command: ControllerToDaemon.Command.GET_CONTAINER_STATUS,
    ...(units && { system_services: true }),
  });
  if (m.code !== Code.CONTAINER_STATUS) throw new Error(reason(m));
  return words.map((word) => {
    const uuid = parseUuid(word);
    const all = m.container_status.filter((s) => (uuid ? s.uuid.toLowerCase() === uuid : s.name === word));
    const [found] = all;
    if (!found) {
      const which = words.length > 1 ? ` (${named(word)})` : "";
      throw new Error(`Container with provided uuid/name does not exist!${which}`);
    }
    if (all.length > 1)
      say(`control: ${all.length} containers are named ${named(word)}: the first is taken, ${found.uuid}`);
    return { uuid: found.uuid, name: found.name };
  });
}

const STATE_PAINT: Partial<Record<ContainerState, keyof Colours>> = {
  [ContainerState.RUNNING]: "good",
  [ContainerState.STOPPED]: "quiet",
  [ContainerState.FROZEN]: "cold",
  [ContainerState.ZOMBIE]: "bad",
};

/** "running", in green. */
export function stateWord(state: ContainerState, c: Colours): string {
  const word = ContainerState[state]?.toLowerCase().replace("shutdown", "stopping") ?? `state ${state}`;
  return c[STATE_PAINT[state] ?? "busy"](word);
}
