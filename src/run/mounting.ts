// Mount a file system that may keep us waiting (a journal to replay, on an encrypted volume; a verity device that is made for
// it): done by a child, from which the mount, attached nowhere, comes as a descriptor.
import { rmSync } from "node:fs";
import { AT_FDCWD, dup3, O_RDONLY, O_RDWR, openat, pidfdGetfd, signal, wait } from "../sys/calls.ts";
import * as dm from "../sys/dm.ts";
import { SysError } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { mountAsFd, mountSteps } from "../sys/mounts.ts";
import { now } from "../sys/now.ts";
import { type Op, Reg, show } from "../sys/op.ts";
import { Hand } from "./hand.ts";
import { type Created, node } from "./mapper.ts";

const [FS, MOUNT, CONTROL, DEVICE] = [new Reg(0), new Reg(1), new Reg(2), new Reg(3)];
/** Where the child keeps the mount for us, and the device. */
const [LEFT, LEFT_DEVICE] = [100, 101];

export interface FileSystem {
  readonly type: string;
  /** Options, "a,b=c". */
  readonly data: string;
  /** Of the mount: MOUNT_ATTR_. */
  readonly attributes: number;
}

const steps = ({ type, data, attributes }: FileSystem, source: string): Op[] => [
  ...mountSteps(type, data, attributes, FS, MOUNT, source),
  dup3(MOUNT, LEFT),
];

/** Mount what is on a device, here and now. */
export const mountHere = (device: Fd, { type, data, attributes }: FileSystem): Fd =>
  mountAsFd(type, `/proc/self/fd/${device.n}`, data, attributes);

/** What a child that did all of it has left where it was told to, and which is then gone with its copies, or is going. */
async function left(
  ops: readonly Op[],
  places: readonly number[],
  what: string,
  end: "gone" | "going",
): Promise<Fd[]> {
  using hand = new Hand([], (talk) => [...ops, signal(talk), wait(talk)]);
  if (await hand.heard()) {
    const taken = places.map((place) => new Fd(now(pidfdGetfd(hand.pidfd, place))));
    hand.go();
    if (end === "gone") await hand.gone;
    return taken;
  }
  const outcome = await hand.outcome();
  const step = "status" in outcome ? undefined : ops[outcome.step];
  if ("status" in outcome || !step) throw new Error(`${what}: not done in time`);
  throw new SysError(outcome.errno, `${what}: ${show(step)}`, outcome.step);
}

export async function mountBeside(
  type: string,
  source: string,
  data: string,
  attributes: number,
): Promise<Fd> {
  const ops = steps({ type, data, attributes }, source);
  // Whoever closes the mount may want the device next.
  const [mount] = await left(ops, [LEFT], `mounting ${type} from ${source}`, "gone");
  return mount!;
}

/** Put its table into a device that has been created, open it, and mount what is on it, by one child. Its node is there for this
 * alone. Whoever fails removes the device. */
export async function mountMapped(d: Created, fs: FileSystem): Promise<{ device: Fd; mount: Fd }> {
  const requests = [dm.load(d.name, d.targets, d), dm.resume(d.name)];
  const first = [
    openat(AT_FDCWD, dm.CONTROL, O_RDWR, 0, CONTROL),
    ...requests.map((r) => dm.toKernel(CONTROL, r)),
  ];
  const path = node(d.name, d.number);
  const ops = [
    ...first,
    openat(AT_FDCWD, path, O_RDONLY, 0, DEVICE),
    dup3(DEVICE, LEFT_DEVICE),
    ...steps(fs, `/proc/self/fd/${LEFT_DEVICE}`),
  ];
  try {
    const what = `mounting ${fs.type} from ${d.name}`;
    const [mount, device] = await left(ops, [LEFT, LEFT_DEVICE], what, "going");
    return { device: device!, mount: mount! };
  } catch (e) {
    const request = e instanceof SysError && e.step !== undefined && requests[e.step - 1];
    throw request ? dm.refusal(request, (e as SysError).errno) : e;
  } finally {
    rmSync(path, { force: true });
  }
}
