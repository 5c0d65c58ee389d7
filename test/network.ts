// A daemon's network for tests that have none.
import type { Network } from "../src/cmld/daemon.ts";

export const noNetwork: Network = {
  interfaces: () => ({ texts: [], table: [] }),
  assign: async () => {},
  unassign: async () => {},
  vnets: () => undefined,
};
