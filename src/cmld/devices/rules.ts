// Which devices a container may use: the syntax of a rule, what a list of them comes to, who stands in whose way. Pure;
// modules/devices.ts puts it into practice.
//
// A container's devices are a list of statements, "allow" or "deny" a rule, the newest first in force: for each kind of
// access to a device the newest statement that speaks of it decides, and what none speaks of is denied. accessOf() says
// so in TypeScript, program() in BPF.
import * as bpf from "../../sys/ebpf.ts";

export class BadRule extends Error {}

/** Kinds of access as bits: linux/bpf.h, BPF_DEVCG_ACC_*. */
export const [MKNOD, READ, WRITE] = [1, 2, 4];
const ALL = MKNOD | READ | WRITE;
const LETTERS: readonly (readonly [string, number])[] = [
  ["r", READ],
  ["w", WRITE],
  ["m", MKNOD],
];

/** linux/kdev_t.h: 12 bits and 20 bits. */
const [MAJOR_MAX, MINOR_MAX] = [4095, 1_048_575];
/** Statements about one container. */
export const STATEMENTS_MAX = 1024;

export interface Device {
  /** block or character. */
  readonly kind: "b" | "c";
  readonly major: number;
  readonly minor: number;
}

export interface DeviceRule {
  /** "a": both. */
  readonly kind: "a" | "b" | "c";
  readonly major: number;
  /** undefined: any. */
  readonly minor: number | undefined;
  /** MKNOD, READ, WRITE. */
  readonly access: number;
}

const quote = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);

/** A rule, and whether it says which access it means. */
function read(text: string): { rule: DeviceRule; letters: boolean } {
  const bad = (reason: string): never => {
    throw new BadRule(`device rule ${quote(text)} ${reason}`);
  };
  const found = /^([abc])(?:[ \t]+(\*|\d{1,10}):(\*|\d{1,10})(?:[ \t]+([rwm]{1,3}))?)?[ \t]*$/.exec(text);
  if (!found || (found[1] !== "a" && found[2] === undefined)) return bad('is not like "c 4:1 rwm"');
  const [, kind, major = "*", minor = "*", letters] = found;
  if (major === "*") return bad("names every device there is: it needs a major number");
  const number = (digits: string, max: number): number =>
    Number(digits) > max ? bad(`says ${digits}, more than ${max}`) : Number(digits);
  return {
    rule: {
      kind: kind as DeviceRule["kind"],
      major: number(major, MAJOR_MAX),
      minor: minor === "*" ? undefined : number(minor, MINOR_MAX),
      access: letters ? LETTERS.reduce((bits, [l, bit]) => bits | (letters.includes(l) ? bit : 0), 0) : ALL,
    },
    letters: letters !== undefined,
  };
}

/** "c 4:1 rwm", "b 8:* r", "a 4:1": the syntax of cgroup v1's devices.allow; without letters all are meant. A rule must
 * name a major number. */
export const parseDeviceRule = (text: string): DeviceRule => read(text).rule;

/** What dev_access wants: a rule with letters allows just that, one without takes everything away. */
export function parseDeviceAccess(text: string): { rule: DeviceRule; allow: boolean } {
  const { rule, letters } = read(text);
  return { rule, allow: letters };
}

/** As it would be written. */
export const showRule = (r: DeviceRule): string =>
  `${r.kind} ${r.major}:${r.minor ?? "*"} ${LETTERS.map(([l, bit]) => (r.access & bit ? l : "")).join("")}`;

/** One device, all access to it. */
export const ruleOf = (d: Device): DeviceRule => ({ ...d, access: ALL });

/** Every device that is in `b` is in `a`. */
const includes = (a: DeviceRule, b: DeviceRule): boolean =>
  (a.kind === "a" || a.kind === b.kind) &&
  a.major === b.major &&
  (a.minor === undefined || a.minor === b.minor);

/** All that `b` speaks of, `a` speaks of as well. */
export const covers = (a: DeviceRule, b: DeviceRule): boolean =>
  includes(a, b) && (a.access & b.access) === b.access;

/** There is a device that both speak of, whatever the access: who only reads a device uses it all the same. */
export const intersects = (a: DeviceRule, b: DeviceRule): boolean =>
  (a.kind === "a" || b.kind === "a" || a.kind === b.kind) &&
  a.major === b.major &&
  (a.minor === undefined || b.minor === undefined || a.minor === b.minor);

/** Who is behind a statement: what everybody has, the configuration, a client, the hot-plug. */
export type Origin = "default" | "configuration" | "control" | "hotplug";

export interface Statement {
  readonly allow: boolean;
  readonly rule: DeviceRule;
  /** Nobody else may have it. */
  readonly assigned?: boolean;
  readonly by: Origin;
}

const named = (text: string): DeviceRule => parseDeviceRule(`c ${text} rwm`);

/** What every container may use: c_cgroups_dev's list; Documentation/admin-guide/devices.txt. */
export const DEFAULT_DEVICES: readonly (readonly [numbers: string, what: string])[] = [
  ["0:0", "whiteout of an overlay"],
  ["1:3", "/dev/null"],
  ["1:5", "/dev/zero"],
  ["1:7", "/dev/full"],
  ["1:8", "/dev/random"],
  ["1:9", "/dev/urandom"],
  ["5:0", "/dev/tty"],
  ["5:2", "/dev/ptmx"],
  ["10:183", "/dev/hwrng"],
  ["10:200", "/dev/net/tun"],
  ["10:229", "/dev/fuse"],
  ["136:*", "/dev/pts/N"],
];
export const DEFAULT: readonly Statement[] = DEFAULT_DEVICES.map(([numbers]) => ({
  allow: true,
  rule: named(numbers),
  by: "default",
}));

/** The list with one more statement, and without what can't have a say any more. */
export function amend(list: readonly Statement[], added: Statement): Statement[] {
  const kept = list.filter(
    (s) =>
      !covers(added.rule, s.rule) ||
      // What the hot-plug takes back must leave what others have granted.
      (added.allow && s.allow && s.by !== added.by),
  );
  const idle = !added.allow && !kept.some((s) => s.allow && intersects(s.rule, added.rule));
  if (!idle) kept.push(added);
  if (kept.length > STATEMENTS_MAX)
    throw new BadRule(`device rule ${quote(showRule(added.rule))}: more than ${STATEMENTS_MAX} of them`);
  return kept;
}

/** The list without what the hot-plug has granted of a rule's devices. */
export const withoutHotplug = (list: readonly Statement[], rule: DeviceRule): Statement[] =>
  list.filter((s) => s.by !== "hotplug" || !covers(rule, s.rule));

const matches = (r: DeviceRule, d: Device): boolean =>
  (r.kind === "a" || r.kind === d.kind) &&
  r.major === d.major &&
  (r.minor === undefined || r.minor === d.minor);

/** What a list grants on a device. */
export function accessOf(list: readonly Statement[], device: Device): number {
  let [granted, undecided] = [0, ALL];
  for (let i = list.length - 1; i >= 0 && undecided !== 0; i--) {
    const { allow, rule } = list[i]!;
    if (!matches(rule, device)) continue;
    if (allow) granted |= rule.access & undecided;
    undecided &= ~rule.access;
  }
  return granted;
}

/** The same as a program for the kernel's device controller, which asks with struct bpf_cgroup_dev_ctx: the wanted
 * access and the type, major, minor. It is a table, major and then minor number, with a mask of access at each place:
 * the verifier tries every path through a program, and here they never meet again. */
export function program(list: readonly Statement[]): bpf.Instruction[] {
  const [RESULT, CONTEXT, TYPE, WANTED, MAJOR, MINOR] = [0, 1, 2, 3, 4, 5];
  const BLOCK = 1; // linux/bpf.h, BPF_DEVCG_DEV_*
  const end = (verdict: 0 | 1): bpf.Instruction[] => [bpf.set(RESULT, verdict), bpf.exit];
  const within = (mask: number): bpf.Instruction[] =>
    mask === 0 ? end(0) : [bpf.and(WANTED, ~mask & ALL), bpf.ifNotEqual(WANTED, 0, 2), ...end(1), ...end(0)];
  const leaf = ([block, character]: readonly [number, number]): bpf.Instruction[] => {
    const [yes, no] = [within(block), within(character)];
    return block === character ? yes : [bpf.ifNotEqual(TYPE, BLOCK, yes.length), ...yes, ...no];
  };

  const code: bpf.Instruction[] = [
    bpf.load32(TYPE, CONTEXT, 0),
    bpf.move(WANTED, TYPE),
    bpf.shiftRight(WANTED, 16),
    bpf.and(TYPE, 0xffff),
    bpf.load32(MAJOR, CONTEXT, 4),
    bpf.load32(MINOR, CONTEXT, 8),
    bpf.ifNotEqual(WANTED, 0, 2),
    ...end(0),
  ];
  for (const [major, about] of Map.groupBy(list, (s) => s.rule.major)) {
    const masks = (minor: number) =>
      [accessOf(about, { kind: "b", major, minor }), accessOf(about, { kind: "c", major, minor })] as const;
    const others = masks(-1); // minors that no rule names
    const body: bpf.Instruction[] = [];
    for (const minor of new Set(about.flatMap((s) => s.rule.minor ?? []))) {
      const own = masks(minor);
      if (own[0] === others[0] && own[1] === others[1]) continue;
      const verdict = leaf(own);
      body.push(bpf.ifNotEqual(MINOR, minor, verdict.length), ...verdict);
    }
    body.push(...leaf(others));
    code.push(bpf.ifNotEqual(MAJOR, major, body.length), ...body);
  }
  code.push(...end(0));
  return code;
}

// --- who stands in whose way -----------------------------------------------------------

/** What a configuration wants, field by field. */
export interface Claim {
  /** "assign_dev[0]" */
  readonly field: string;
  readonly rule: DeviceRule;
  readonly assigned: boolean;
}

export const claimsOf = (c: {
  readonly allow_dev: readonly string[];
  readonly assign_dev: readonly string[];
}): Claim[] => [
  ...c.allow_dev.map((text, i) => ({
    field: `allow_dev[${i}]`,
    rule: parseDeviceRule(text),
    assigned: false,
  })),
  ...c.assign_dev.map((text, i) => ({
    field: `assign_dev[${i}]`,
    rule: parseDeviceRule(text),
    assigned: true,
  })),
];

/** A container as the others see it: all that it has been allowed or assigned, and what its configuration wants. */
export interface Holder {
  readonly uuid: string;
  readonly name: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly claims: readonly Pick<Claim, "rule" | "assigned">[];
}

/** Why a container may not have a device, or undefined: somebody else has been assigned it, or it would be assigned and
 * somebody else has it. */
export function conflict(
  uuid: string,
  claim: Pick<Claim, "rule" | "assigned">,
  holders: Iterable<Holder>,
): string | undefined {
  for (const h of holders) {
    if (h.uuid === uuid) continue;
    for (const theirs of h.claims)
      if ((claim.assigned || theirs.assigned) && intersects(claim.rule, theirs.rule))
        return (
          `device rule ${quote(showRule(claim.rule))}: ${h.name} is ${theirs.assigned ? "assigned" : "allowed"} ` +
          quote(showRule(theirs.rule))
        );
  }
  return undefined;
}
