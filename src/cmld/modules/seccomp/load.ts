// finit_module, for containers with allow_module, on a kernel that loads signed modules only (sig_enforce): elsewhere the
// field does nothing, since whoever may choose code for the kernel owns the machine.
//
// What the container opened says which module it means, by the name of the file; what is loaded is the machine's own
// file of that name, and what modules.dep says that it needs, with no parameters. No byte of the container's file is
// read.
import { readFileSync, readlinkSync } from "node:fs";
import { release } from "node:os";
import { basename, join } from "node:path";
import { COMPRESSED, filesFor, insert, needsOf } from "../../../run/kmod.ts";
import { exit } from "../../../sys/calls.ts";
import { chain, EBADF, ENOENT, EPERM, isErrno } from "../../../sys/error.ts";
import type { Answer } from "../../../sys/notify.ts";
import { int, type Supervised } from "./supervised.ts";

/** The kernel refuses modules without a signature that it knows. */
export function signedModulesOnly(parameter = "/sys/module/module/parameters/sig_enforce"): boolean {
  try {
    return readFileSync(parameter, "latin1").startsWith("Y");
  } catch (e) {
    if (isErrno(e, ENOENT)) return false;
    throw e;
  }
}

/** "nf_tables" for "/lib/modules/6.1/kernel/net/nf-tables.ko.xz"; undefined: not the name of a module's file. */
export const moduleName = (path: string): string | undefined =>
  /^([A-Za-z0-9_-]{1,64})\.ko(?:\.(?:xz|gz|zst))?$/.exec(basename(path))?.[1]?.replaceAll("-", "_");

export async function finitModule(call: Supervised, folder = `/lib/modules/${release()}`): Promise<Answer> {
  const [fd, , flags] = call.args as [bigint, bigint, bigint];
  if (!call.may("SYS_MODULE") || (int(flags) & ~COMPRESSED) !== 0) return { error: EPERM };
  let meant: string;
  try {
    meant = readlinkSync(`/proc/${call.caller.pid}/fd/${int(fd)}`);
  } catch {
    return { error: EBADF };
  }
  const name = moduleName(meant);
  const allowed = call.container.modules.map((m) => m.replaceAll("-", "_"));
  if (name === undefined || !allowed.includes(name) || !call.valid()) return { error: EPERM };
  const needs = needsOf(readFileSync(join(folder, "modules.dep"), "utf8"));
  const files = filesFor(needs, [name], () => false);
  if (files.length === 0) return { error: ENOENT };
  const last = insert(join(folder, files.at(-1)!)).map((op) => ({ ...op, allow: 0 })); // EEXIST is an answer
  const ops = [...files.slice(0, -1).flatMap((f) => insert(join(folder, f))), ...last, exit(0)];
  try {
    const made = await call.do([], ops);
    if ("errno" in made) return { error: made.errno };
  } catch (e) {
    call.container.log(`module ${name}: ${chain(e)}`);
    return { error: EPERM };
  }
  call.container.log(`has loaded the module ${name}`);
  return { value: 0 };
}
