// Who made a call, as /proc says. What is read here counts only while the notification is valid: the pid may be somebody
// else's otherwise. Nothing here waits.
import { readFileSync, readlinkSync } from "node:fs";
import { CAPABILITIES, type Capability } from "../caps.ts";

export interface Caller {
  /** The thread, and the process. */
  readonly pid: number;
  readonly process: number;
  /** Of the host, as file systems see them. */
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly umask: number;
  /** Its user namespace, as /proc names it. */
  readonly namespace: string;
  /** The effective set, which counts in that namespace. */
  readonly capabilities: bigint;
}

export const namespaceOf = (pid: number): string => readlinkSync(`/proc/${pid}/ns/user`);

/** proc_pid_status(5). */
export function readCaller(pid: number, status: string, namespace: string): Caller {
  const field = (name: string): string[] => {
    const found = new RegExp(`^${name}:[ \\t]*(.*)$`, "m").exec(status);
    if (!found) throw new Error(`/proc/${pid}/status has no ${name}`);
    return found[1]!.split(/\s+/).filter((word) => word !== "");
  };
  const FILE_SYSTEM = 3; // real, effective, saved, file system
  return {
    pid,
    process: Number(field("Tgid")[0]),
    uid: Number(field("Uid")[FILE_SYSTEM]),
    gid: Number(field("Gid")[FILE_SYSTEM]),
    groups: field("Groups").map(Number),
    umask: Number.parseInt(field("Umask")[0]!, 8),
    namespace,
    capabilities: BigInt(`0x${field("CapEff")[0]}`),
  };
}

/** Throws if there is no such process. */
export const callerOf = (pid: number): Caller =>
  readCaller(pid, readFileSync(`/proc/${pid}/status`, "latin1"), namespaceOf(pid));

export const hasCapability = (c: Caller, name: Capability): boolean =>
  ((c.capabilities >> BigInt(CAPABILITIES.indexOf(name))) & 1n) === 1n;
