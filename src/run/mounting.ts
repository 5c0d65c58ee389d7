// Mount a file system that may keep us waiting (a journal to replay, on an encrypted volume): done by a child, from which
// the mount, attached nowhere, comes as a descriptor.
import {
  dup3,
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_STRING,
  fsconfig,
  fsmount,
  fsopen,
  pidfdGetfd,
  signal,
  wait,
} from "../sys/calls.ts";
import { SysError } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { options } from "../sys/mounts.ts";
import { now } from "../sys/now.ts";
import { type Op, Reg, show } from "../sys/op.ts";
import { Hand } from "./hand.ts";

const [FS, MOUNT] = [new Reg(0), new Reg(1)];
/** Where the child keeps the mount for us. */
const LEFT = 100;

export async function mountBeside(
  type: string,
  source: string,
  data: string,
  attributes: number,
): Promise<Fd> {
  const ops: Op[] = [
    fsopen(type, FS),
    fsconfig(FS, FSCONFIG_SET_STRING, "source", source),
    ...options(FS, data),
    fsconfig(FS, FSCONFIG_CMD_CREATE, null),
    fsmount(FS, attributes, MOUNT),
    dup3(MOUNT, LEFT),
  ];
  using hand = new Hand([], (talk) => [...ops, signal(talk), wait(talk)]);
  if (await hand.heard()) {
    const mount = new Fd(now(pidfdGetfd(hand.pidfd, LEFT)));
    hand.go();
    await hand.gone; // with its copy: whoever closes the mount may want the device next
    return mount;
  }
  const outcome = await hand.outcome();
  const what = `mounting ${type} from ${source}`;
  const step = "status" in outcome ? undefined : ops[outcome.step];
  if ("status" in outcome || !step) throw new Error(`${what}: not done in time`);
  throw new SysError(outcome.errno, `${what}: ${show(step)}`);
}
