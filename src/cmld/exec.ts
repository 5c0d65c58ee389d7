// A further process in a running container: `control run`. It is born in the container's pid namespace and cgroup,
// joins the other namespaces, and gets the container's filter and capabilities; of the host it sees nothing but the
// two or three descriptors of its standard input and output.
import type { Ended } from "../run/launch.ts";
import type { Fd } from "../sys/fd.ts";

/** The container. */
export interface Target {
  readonly name: string;
  /** Its init. */
  readonly pid: number;
  readonly pidfd: Fd;
  /** The directory of the container's own cgroup: the one that its init was started in. */
  readonly cgroup: string;
  readonly uidStart: number;
}

export interface Request {
  /** The command, looked up in PATH inside the container unless it has a slash, and its arguments. */
  readonly argv: readonly string[];
  /** With a terminal of the container; without: two pipes. */
  readonly pty: boolean;
  /** "name", "1000", "name:group", "1000:1000"; absent: root. */
  readonly user?: string;
  /** Absent: the user's home for a user, else /. */
  readonly cwd?: string;
  /** NAME=value, over the defaults (PATH, HOME, USER, TERM). */
  readonly env: readonly string[];
  readonly rows?: number;
  readonly cols?: number;
}

/** How it ended. With `error`, the command did not run: `status` is what a shell would say, 126 or 127. */
export interface Result extends Ended {
  readonly error?: string;
}

/** Whoever asked. */
export interface Client {
  /** Bytes of the terminal, or of standard output and error. False: no more until Session.resume(). */
  output(bytes: Uint8Array): boolean;
  /** After Session.input() returned false: more can be taken. */
  writable(): void;
  /** Once, after all output; the session is over. Not called after hangup(). */
  ended(result: Result): void;
}

export interface Session {
  /** False: kept, but send nothing more until Client.writable(). Ends the session if more than INPUT_MAX is waiting. */
  input(bytes: Uint8Array): boolean;
  /** End of input. */
  endInput(): void;
  resize(rows: number, cols: number): void;
  /** The client takes output again. */
  resume(): void;
  /** The client is gone: SIGHUP, and after HANGUP_MS SIGKILL for whatever is left in the foreground. */
  hangup(): void;
}

/** Bytes of input that a command may leave unread. */
export const INPUT_MAX = 1024 * 1024;

/** What a further process needs to be started; throws a sentence if the request cannot be. */
export type Exec = (target: Target, request: Request, client: Client) => Session;
