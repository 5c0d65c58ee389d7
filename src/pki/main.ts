// `cml pki`: keys and certificates for developers. A product's keys live elsewhere, in a smartcard or an HSM.
import { constants } from "node:os";
import { out } from "../sys/output.ts";
import { type Run, runTool } from "../tool/commands.ts";
import { steps } from "./development.ts";
import { COMMANDS, SUMMARY } from "./table.ts";

const run: Run<typeof COMMANDS> = {
  async init(args) {
    const dir = String(args.dir);
    const all = steps(dir, String(args.key), (line) => console.error(`pki: ${line}`));
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
      process.on(signal, () => {
        all.return(false); // no keys are left behind
        process.exit(128 + constants.signals[signal]);
      });
    let one = all.next();
    for (; !one.done; one = all.next()) await new Promise(setImmediate); // signals are heard
    const made = one.value;
    await out(`${made ? dir : `${dir}: it is there already, nothing changed`}\n`);
    return 0;
  },
};

export const main = (rawArgs: string[]): Promise<number> =>
  runTool({ program: "pki", summary: SUMMARY, commands: COMMANDS, run }, rawArgs);
