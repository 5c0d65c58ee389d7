// `cml container`: what a developer does with container configurations before a device gets them.
import { ContainerConfig } from "../../proto/gen/proto.js";
import { parse } from "../lib/text.ts";
import { out } from "../sys/output.ts";
import { type Run, runTool } from "../tool/commands.ts";
import { bytesOf, sign, signer } from "./sign.ts";
import { CONTAINER_COMMANDS, CONTAINER_SUMMARY } from "./table.ts";

const run: Run<typeof CONTAINER_COMMANDS> = {
  async sign(args, many) {
    const conf = String(args.conf);
    const source = await bytesOf(conf);
    try {
      parse(ContainerConfig, source);
    } catch (cause) {
      throw new Error(conf, { cause });
    }
    for (const path of await sign(conf, signer(args, many), source)) await out(`${path}\n`);
    return 0;
  },
};

export const main = (rawArgs: string[]): Promise<number> =>
  runTool({ program: "container", summary: CONTAINER_SUMMARY, commands: CONTAINER_COMMANDS, run }, rawArgs);
