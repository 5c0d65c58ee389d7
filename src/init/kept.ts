// Descriptors that outlive a crash of PID 1: those without close-on-exec when it is executed again.
import { fcntl } from "../sys/calls.ts";
import type { Fd } from "../sys/fd.ts";
import { attempt, now } from "../sys/now.ts";

const [F_GETFD, F_SETFD] = [1, 2]; // asm-generic/fcntl.h

/** Let the descriptor stay open when init is executed again. */
export const keepOpen = (fd: Fd): void => void now(fcntl(fd.n, F_SETFD, 0));
/** True if `n` is open. Whether it stays so says nothing: at its start the runtime sets close-on-exec on all it finds. */
export const isOpen = (n: number): boolean => attempt(fcntl(n, F_GETFD, 0)) >= 0;
