// `cml pki`: keys and certificates for developers. A product's keys live elsewhere, in a smartcard or an HSM.
import { type Run, runTool } from "../tool/commands.ts";
import { initialise } from "./development.ts";
import { COMMANDS, SUMMARY } from "./table.ts";

const run: Run<typeof COMMANDS> = {
  async init(args) {
    const dir = String(args.dir);
    const made = initialise(dir, String(args.key), (line) => console.error(`pki: ${line}`));
    console.log(made ? dir : `${dir}: it is there already, nothing changed`);
    return 0;
  },
};

export const main = (rawArgs: string[]): Promise<number> =>
  runTool({ program: "pki", summary: SUMMARY, commands: COMMANDS, run }, rawArgs);
