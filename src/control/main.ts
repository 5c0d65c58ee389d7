// The client of cmld's control socket. Exit status: 0 done, 1 refused, 255 wrong usage, and with `run` the command's.
import { chain } from "../sys/error.ts";
import { isUnread, out, UNREAD } from "../sys/output.ts";
import { Call, titled } from "./answer.ts";
import { parse, Usage } from "./arguments.ts";
import { SOCKET } from "./client.ts";
import { COMMANDS, type Row } from "./commands.ts";
import { isTerminal, say } from "./print.ts";

const [OK, REFUSED, USAGE] = [0, 1, 255];

/** "ENOENT: no such file or directory, open '/a'", as the runtime says it of a file, in a person's words; the path stands before
 * them unless it was said already. */
const plainly = (line: string): string =>
  line.replace(/\bE[A-Z0-9]+: ([a-z -]+), \w+(?: '(.*)')?$/, (_, words: string, path?: string) =>
    path === undefined || line.includes(`${path}: `) ? words : `${path}: ${words}`,
  );

export async function main(args: string[]): Promise<number> {
  let row: Row | undefined;
  let title = "";
  try {
    const { command, given } = parse(args, COMMANDS, (found) => {
      row = found;
      title = `${found.name}: `;
    });
    if (!command || given.has("help")) {
      const { usage } = await import("./usage.ts");
      await out(await usage(command));
      return given.has("help") ? OK : USAGE;
    }
    const [first] = command.arguments.flatMap((a) => given.words(a.name));
    title = `${first === undefined ? command.name : `${command.name} ${first}`}: `;
    const manner = given.has("json") ? "json" : (await isTerminal(1)) ? "person" : "text";
    const call = new Call(title.slice(0, -2), given, given.value("socket") ?? SOCKET, manner);
    for (const what of given.ignored) call.note(`${what} is ignored`);
    return await command.act(call);
  } catch (e) {
    if (isUnread(e)) return UNREAD;
    if (e instanceof Usage && !row && (await isTerminal(1))) {
      say(`control: ${chain(e)}; "control help" lists what there is`); // the list would push it off the screen
      return USAGE;
    }
    if (e instanceof Usage) {
      const { usage } = await import("./usage.ts");
      await out(await usage(row));
    }
    say(`control: ${titled(title, plainly(chain(e)))}`);
    return e instanceof Usage ? USAGE : REFUSED;
  }
}
