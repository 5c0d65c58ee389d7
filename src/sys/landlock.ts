// Landlock (landlock(7)): a process gives up rights to files, networks and signals, for itself and for all that it will
// start, whoever it is and whatever it sees. It needs no right to do so, and nobody gives them back.
import { AT_FDCWD, close, dup3, O_CLOEXEC, O_PATH, openat } from "./calls.ts";
import { Struct } from "./mem.ts";
import { attempt } from "./now.ts";
import { type Data, type Op, Reg } from "./op.ts";

// linux/landlock.h
const [CREATE_RULESET_VERSION, RULE_PATH_BENEATH] = [1, 1];
const RIGHTS = [
  ...["execute", "writeFile", "readFile", "readDir", "removeDir", "removeFile"],
  ...["makeChar", "makeDir", "makeReg", "makeSock", "makeFifo", "makeBlock", "makeSym"],
  ...["refer", "truncate", "ioctlDev"],
] as const;
/** How many of them an ABI knows: from 2 on refer, from 3 truncate, from 5 ioctlDev. */
const KNOWN = [0, 13, 14, 15, 15, 16] as const;
const bits = (...names: readonly (typeof RIGHTS)[number][]): number =>
  names.reduce((sum, name) => sum | (1 << RIGHTS.indexOf(name)), 0);
/** Rights that a rule for a file may have; others are EINVAL there. */
const OF_FILES = bits("execute", "writeFile", "readFile", "truncate", "ioctlDev");
const [BIND_TCP, CONNECT_TCP] = [1, 2];
const [ABSTRACT_UNIX_SOCKET, SIGNAL] = [1, 2];

/** What may be done with a file, or with a folder and all that is beneath. */
export const READ = bits("readFile", "readDir");
export const RUN = READ | bits("execute");
export const USE = bits("readFile", "writeFile", "truncate");
export const CHANGE =
  USE |
  READ |
  bits("removeDir", "removeFile", "makeDir", "makeReg", "makeSock", "makeFifo", "makeSym", "refer");

export interface Place {
  readonly path: string;
  readonly folder: boolean;
  readonly may: number;
}

export interface Fence {
  /** Of nothing else any file can be opened, nothing made or removed. Of a path that is not there, neither. */
  readonly places: readonly Place[];
  /** Whether it may connect by TCP (ABI 4); it may never listen. */
  readonly connects: boolean;
}

/** Which version of the interface the kernel has; 0: none, or it is switched off. */
export const landlockAbi = (): number =>
  Math.max(attempt({ call: "landlock_create_ruleset", args: [null, 0, CREATE_RULESET_VERSION] }), 0);

const [RULESET, PATH] = [new Reg(0), new Reg(1)];
/** A rule names its place by a number that we know; standard input is set afterwards. */
const AT = 0;

/** Give up everything else. Standard input is lost. Mounting ends with it, too, and signals to others (ABI 6). */
export function landlock(fence: Fence, abi: number): Op[] {
  const handled = (1 << (KNOWN[abi] ?? RIGHTS.length)) - 1;
  const network = abi < 4 ? 0 : BIND_TCP | (fence.connects ? 0 : CONNECT_TCP);
  const scope = abi < 6 ? 0 : ABSTRACT_UNIX_SOCKET | SIGNAL;
  const attributes = new Struct(24).u64(handled).u64(network).u64(scope).bytes;
  // A kernel that knows less takes no larger struct.
  const size = abi < 4 ? 8 : abi < 6 ? 16 : 24;
  const text = `{fs=${hex(handled)}, net=${hex(network)}, scope=${hex(scope)}}`;
  const ruleset: Data = { data: attributes, text };
  return [
    { call: "landlock_create_ruleset", args: [ruleset, size, 0], save: RULESET },
    ...fence.places.flatMap(({ path, folder, may }): Op[] => {
      const allowed = may & handled & (folder ? handled : OF_FILES);
      const rule = new Struct(12).u64(allowed).i32(AT).bytes;
      return [
        openat(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, PATH),
        dup3(PATH, AT),
        close(PATH),
        {
          call: "landlock_add_rule",
          args: [RULESET, RULE_PATH_BENEATH, { data: rule, text: `{may=${hex(allowed)}, at=${AT}}` }, 0],
        },
      ];
    }),
    { call: "landlock_restrict_self", args: [RULESET, 0] },
    close(RULESET),
  ];
}

const hex = (n: number): string => `0x${n.toString(16)}`;
