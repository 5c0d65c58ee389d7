// How often the tests repeat what must never go wrong. `make test` is the gate of every commit and has 35 minutes in
// all; `make soak` (CML_SOAK=1) runs the same tests with what the project promises.

const SOAK = process.env.CML_SOAK === "1";

const choose = <T>(test: T, soak: T): T => (SOAK ? soak : test);

export const counts = {
  /** Starts and stops of one container. */
  cyclesHosted: choose(100, 500),
  cyclesMachine: choose(5, 50),
  /** kill -9 of cmld; fatal signals to PID 1. */
  killsOfManager: choose(10, 100),
  crashesOfInit: choose(7, 20),
  /** Inputs of each fuzz target with the fixed seed; when soaking, as many more as fit into the seconds. */
  fuzzInputs: 30_000,
  fuzzSeconds: choose(0, 60),
  /** Paths resolved while somebody swaps links beneath. */
  symlinkResolutions: choose(10_000, 100_000),
  symlinkStarts: choose(20, 500),
  hotplug: choose(5, 100),
  auditEvents: choose(1_000, 10_000),
  auditKills: choose(1, 10),
  auditPowerCuts: choose(1, 5),
  /** Written sectors of a sealed volume that somebody changes. */
  tampered: choose(100, 1_000),
  /** Disks rebuilt from one log of writes. */
  powerCutPoints: choose(20, 200),
  /** The same for each thing that is done, where the log has several. */
  powerCutPointsEach: choose(6, 200),
  /** The machine itself loses its power while a volume is made. */
  realPowerCuts: choose(1, 4),
} as const;
