// Every failure of the kernel becomes one SysError: what we tried, on what, and the errno by name. Callers add
// their own few words with `cause`; only the edge (a socket, a terminal, PID 1) prints.
import { constants } from "node:os";

const NAMES = new Map(Object.entries(constants.errno).map(([name, n]) => [n as number, name]));

/** Errno values we decide on: asm-generic/errno-base.h, errno.h. */
export const {
  EPERM,
  ENOENT,
  ESRCH,
  EINTR,
  EIO,
  ENXIO,
  EBADF,
  ECHILD,
  EAGAIN,
  ENOMEM,
  EACCES,
  EBUSY,
  EEXIST,
} = constants.errno;
export const {
  ENODATA,
  ENODEV,
  ENOTDIR,
  EINVAL,
  ENOSPC,
  ENOSYS,
  EOPNOTSUPP,
  ENOTCONN,
  ECONNRESET,
  EPIPE,
  ENOBUFS,
  ELOOP,
  EXDEV,
  EROFS,
} = constants.errno;

/** "ENOENT" for 2; "errno 999" for a number that has no name. */
export const errnoName = (errno: number): string => NAMES.get(errno) ?? `errno ${errno}`;

export class SysError extends Error {
  override readonly name = "SysError";
  constructor(
    readonly errno: number,
    readonly what: string,
    /** Of a program: which of its calls failed, counted from 0. */
    readonly step?: number,
  ) {
    super(`${what}: ${errno === 0 ? "unexpected result" : errnoName(errno)}`);
  }
}

/** True if `e`, or what caused it, is the kernel's refusal with this errno. */
export function isErrno(e: unknown, errno: number): boolean {
  for (let at = e; at instanceof Error; at = at.cause) {
    if (at instanceof SysError && at.errno === errno) return true;
    if ("code" in at && at.code === NAMES.get(errno)) return true;
  }
  return false;
}

/** "start web: prepare volumes: mount(…): EBUSY": the chain, outermost first, on one line. */
export function chain(e: unknown): string {
  const text = !(e instanceof Error)
    ? String(e)
    : e.cause === undefined
      ? e.message
      : `${e.message}: ${chain(e.cause)}`;
  return text.replace(/\s*\n\s*/g, "; ");
}
