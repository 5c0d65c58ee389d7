// The life of a container as a table: from each state, where it may go. Words and numbers are those of
// ContainerState in proto/container.proto; the original's internal SHUTTING_DOWN is SHUTDOWN on the wire.
export const MOVES = {
  STOPPED: ["STARTING", "ZOMBIE"],
  STARTING: ["BOOTING", "SETUP", "STOPPED", "ZOMBIE"],
  SETUP: ["FREEZING", "SHUTDOWN", "STOPPED"],
  BOOTING: ["RUNNING", "SHUTDOWN", "STOPPED", "REBOOTING"],
  RUNNING: ["FREEZING", "SHUTDOWN", "STOPPED", "REBOOTING"],
  FREEZING: ["FROZEN", "RUNNING", "SETUP", "SHUTDOWN", "STOPPED"],
  FROZEN: ["RUNNING", "SETUP", "SHUTDOWN", "STOPPED"],
  SHUTDOWN: ["STOPPED", "REBOOTING", "ZOMBIE"],
  REBOOTING: ["STARTING", "STOPPED"],
  ZOMBIE: ["STOPPED"],
} as const satisfies Record<string, readonly string[]>;

export type State = keyof typeof MOVES;

/** The state after the move, or an error that names both states. Moving to the same state is no move. */
export function move(container: string, from: State, to: State): State {
  const allowed: readonly State[] = MOVES[from];
  if (from !== to && !allowed.includes(to)) throw new Error(`${container} is ${from}: cannot become ${to}`);
  return to;
}

/** States in which a process of the container exists. */
export const isUp = (s: State): boolean => s !== "STOPPED" && s !== "ZOMBIE" && s !== "REBOOTING";
