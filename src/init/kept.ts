// Descriptors that outlive a crash of PID 1: those without close-on-exec.
import { fcntl } from "../sys/calls.ts";
import type { Fd } from "../sys/fd.ts";
import { attempt, now } from "../sys/now.ts";

const [F_GETFD, F_SETFD, FD_CLOEXEC] = [1, 2, 1]; // asm-generic/fcntl.h

/** Let the descriptor stay open when init is executed again. */
export const keepOpen = (fd: Fd): void => void now(fcntl(fd.n, F_SETFD, 0));
/** True if `n` is open and stays open across execve: one of those that we kept. */
export function isKept(n: number): boolean {
  const flags = attempt(fcntl(n, F_GETFD, 0));
  return flags >= 0 && (flags & FD_CLOEXEC) === 0;
}
