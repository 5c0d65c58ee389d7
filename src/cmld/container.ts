// One container: its state, its hooks in order, release in reverse.

import type { Ended } from "../run/launch.ts";
import type { ContainerConfig, GuestOsConfig } from "./config.ts";
import type { State } from "./state.ts";

/** What a client may ask of one container; every method rejects with a sentence. */
export interface ContainerLife {
  readonly uuid: string;
  readonly config: ContainerConfig;
  /** undefined: its GuestOS is not installed. */
  readonly guestos: GuestOsConfig | undefined;
  readonly state: State;
  /** Seconds since 1970. */
  readonly created: number;
  /** Seconds since its last start, 0 if it does not run. */
  readonly uptime: number;
  /** pid of its init in our pid namespace, while it is up. */
  readonly pid: number | undefined;
  /** How its init ended last time. */
  readonly exit: Ended | undefined;
  /** Resolves once execve has succeeded; then BOOTING or RUNNING. */
  start(options: { setup: boolean }): Promise<void>;
  /** Resolves once stopping has begun. */
  stop(): Promise<void>;
  /** Resolves once it is STOPPED. */
  kill(): Promise<void>;
  freeze(): Promise<void>;
  unfreeze(): Promise<void>;
  /** The program a start would run, one system call a line, without running it. */
  explain(): Promise<string[]>;
}
