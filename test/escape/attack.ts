// Attacks that must fail, and what they are made of. The rows are those of SPECIFICATION.md.
//
// To add an attack: put an Attack into a file of attacks/ (a new file is named in attacks.ts). It is then a test of its
// own on this host (host.test.ts) and in the machine (machine.test.ts), by `make test-escape` and `make test`:
//
// - It stands where the attacker would: a script, run by a shell of root in a container of busybox and `attack`
//   (attack.c), which ends with `held WHY` or `won WHAT`; or a function that starts containers, runs commands in them
//   and asks cmld through the Ground, and returns such a line. `held` means that the attack failed.
// - `guest` is another image or configuration than the plain one; in the machine each is a GuestOS and a container.
// - `proof` says how it is shown that the test can fail: the parts of the product without which the attack must succeed
//   (Weak: the container is composed here without them, on the host), a function that does it in its own way, or a
//   sentence why it cannot be shown.
//
// Whatever an attack does, the bait (a folder that everybody may write to, given to no container) must stay empty.
import type {
  ControllerToDaemon,
  DaemonToController,
  IContainerConfig,
  IControllerToDaemon,
} from "../../proto/gen/proto.js";
import type { Module } from "../../src/cmld/module.ts";
import type { Fd } from "../../src/sys/fd.ts";
import { type Op, show } from "../../src/sys/op.ts";
import type { Mounts, World } from "../host/world.ts";

export interface Attack {
  /** Of SPECIFICATION.md. */
  readonly row: number;
  readonly name: string;
  readonly guest?: Guest;
  /** Others that the attempt starts. */
  readonly guests?: readonly Guest[];
  readonly attempt: string | ((g: Ground) => Promise<string>);
  readonly proof: Weak | ((w: World) => Promise<string>) | string;
  /** Absent: both. */
  readonly only?: "host" | "machine";
}

/** The attempt itself shows both: that it fails, and that it does not where there is no limit. */
export const SHOWN = "shown by the attempt";

/** A container as an attacker may have made it. */
export interface Guest {
  /** Of its image, and of its container. */
  readonly name: string;
  /** Change the tree of busybox and `attack`. */
  readonly fill?: (root: string, bait: string) => void;
  /** The root folder can be written to, and forgets. */
  readonly writable?: boolean;
  /** After the root. */
  readonly mounts?: Mounts;
  readonly config?: Partial<IContainerConfig>;
  /** A module of the test's own, on this host only. */
  readonly extra?: Module;
  /** In the machine: without root hash, so that the image is hashed at its first start, and no dm-verity is made. */
  readonly hashed?: boolean;
  /** Its init; otherwise it sleeps. */
  readonly init?: readonly string[];
}

export const ATTACKER: Guest = { name: "attacker", writable: true };

/** Where attacks happen. */
export interface Ground {
  /** A folder of the host's that everybody may write to and no container is given. */
  readonly bait: string;
  /** What is in it. */
  baited(): Promise<string[]>;
  /** Start a container; rejects with Refused if cmld refuses. */
  start(guest: Guest): Promise<Inside>;
  /** A GuestOS that this cmld has. */
  readonly guestos: string;
  /** Ask cmld as its owner. */
  ask(
    command: ControllerToDaemon.Command,
    fields?: Partial<IControllerToDaemon>,
  ): Promise<DaemonToController>;
  /** Where there is a core0. */
  readonly core0?: Core0;
  /** Memory of cmld's own, in KiB. */
  memory(): Promise<number>;
  /** For so many seconds a command in a container writes what its client does not read. */
  flood(seconds: number): Promise<void>;
  /** Descriptors of whoever serves the containers' sockets. */
  descriptors(): Promise<number>;
  /** Connections to the control socket, each with half a message; on this host only. */
  halfFrames?(count: number): Promise<AsyncDisposable>;
  /** The bytes of cmld's executable, in short. */
  executable(): Promise<string>;
}

/** The control socket as core0 sees it. */
export interface Core0 {
  ask(command: ControllerToDaemon.Command, fields: Partial<IControllerToDaemon>): Promise<DaemonToController>;
  /** Every file that cmld keeps, logs aside. */
  files(): Promise<string[]>;
}
/** In a file below keys/, which nobody is ever told. */
export const SECRET = "cml-test-secret";

/** A running container. */
export interface Inside {
  /** `control run`: what a shell's script says, standard error too. */
  run(script: string, how?: How): Promise<string>;
  end(): Promise<void>;
}

export interface How {
  readonly user?: string;
  readonly cwd?: string;
  readonly pty?: boolean;
  /** The command, instead of a shell. */
  readonly argv?: readonly string[];
}

/** What is missing where the attack must succeed. */
export interface Weak {
  readonly modules?: (product: readonly Module[]) => readonly Module[];
  /** What becomes of the printed program of a start. */
  readonly program?: (ops: readonly Op[]) => readonly Op[];
  /** … of `control run`, in the container whose init is `pid`. */
  readonly exec?: (ops: readonly Op[], pid: number, how: How) => readonly Op[];
  /** Whose its user namespace is; otherwise the container's root's. */
  readonly owner?: number;
  /** How the end of such a command is waited for. */
  readonly collect?: (pidfd: Fd) => Promise<unknown>;
}

/** Without some modules. */
export const lacking = (...names: readonly string[]): Weak => ({
  modules: (all) => all.filter((m) => !names.includes(m.name)),
});

/** No container at all: root of the host, with nothing taken away. For calls with harmless arguments only. */
export const BARE: Weak = { modules: () => [] };

/** Without the calls that print so. */
export const without =
  (...calls: readonly RegExp[]) =>
  (ops: readonly Op[]): readonly Op[] => {
    const kept = ops.filter((op) => !calls.some((call) => call.test(show(op))));
    if (kept.length === ops.length) throw new Error(`no call of the program is like ${calls}`);
    return kept;
  };

/** For scripts. */
export const PRELUDE = `held() { echo "held: $*"; exit; }
won() { echo "won: $*"; exit; }
`;

/** The line that counts, the last one that says how it ended; none is a broken test. */
export function verdict(said: string): string {
  const last = said.split(/\r?\n/).findLast((line) => /^(held|won)\b/.test(line));
  if (last === undefined) throw new Error(`the attack did not say how it ended:\n${said}`);
  return last;
}

/** The start of a container was refused, and why. */
export class Refused extends Error {}

/** A start that is refused has held; anything else is a broken test. */
export function refusal(e: unknown): string {
  if (e instanceof Refused) return `held: refused: ${e.message}`;
  throw e;
}

/** Start one, run one script in it, end it; a start that is refused has held. */
export async function inside(g: Ground, guest: Guest, script: string, how: How = {}): Promise<string> {
  let c: Inside;
  try {
    c = await g.start(guest);
  } catch (e) {
    return refusal(e);
  }
  try {
    return verdict(await c.run(PRELUDE + script, how));
  } finally {
    await c.end();
  }
}
