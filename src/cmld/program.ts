// The life of a container's first process up to its execve, as one list. `gate` is a socket pair; parent and child
// wait for each other at it, twice.
import {
  AT_FDCWD,
  close,
  closeAllBut,
  execve,
  O_PATH,
  openat2,
  RESOLVE_NO_MAGICLINKS,
  setsid,
  signal,
  umask,
  wait,
} from "../sys/calls.ts";
import { ENOENT } from "../sys/error.ts";
import type { Op } from "../sys/op.ts";
import type { Module, Start } from "./module.ts";

/** What runs if the guest has no file at its init_path. */
export const CSERVICE = "/sbin/cservice";

/** `report` is the descriptor through which a failure is told. */
export function program(
  s: Start,
  modules: readonly Module[],
  gate: { ours: number; theirs: number },
  report: number,
): Op[] {
  const argv = [s.guestos.init_path, ...s.guestos.init_param];
  const env = [...s.guestos.init_env, ...s.config.init_env, ...modules.flatMap((m) => m.env?.(s) ?? [])];
  return [
    close(gate.ours), // the child's copy: so that our death ends its waiting
    setsid(), // the container's init is in no session or group of cmld's
    wait(gate.theirs), // one: attach() hooks run now
    ...modules.flatMap((m) => m.child?.(s) ?? []),
    signal(gate.theirs),
    wait(gate.theirs), // two: ready() hooks run now
    umask(0o022),
    ...modules.flatMap((m) => m.last?.(s) ?? []),
    ...closeAllBut([report]), // the image says what the paths below are: a link to an open descriptor, perhaps
    { ...openat2(AT_FDCWD, s.guestos.init_path, O_PATH, RESOLVE_NO_MAGICLINKS), allow: ENOENT }, // or to our executable
    { ...execve(s.guestos.init_path, argv, env), allow: ENOENT },
    execve(CSERVICE, argv, env),
  ];
}
