// What cmld does in a container's tree when a device comes or goes. The devices are zram disks of this host.
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { hotplug } from "../../../src/cmld/devices/hotplug.ts";
import type { Attack } from "../attack.ts";

const ZRAM = "/sys/class/zram-control";
const ZRAM_MAJOR = 253;
const plug = (): string => `zram${readFileSync(`${ZRAM}/hot_add`, "utf8").trim()}`;
const unplug = (name: string): void => writeFileSync(`${ZRAM}/hot_remove`, name.slice("zram".length));

/** With the hot-plug at work, for the length of `work`. */
async function plugging(work: () => Promise<string>): Promise<string> {
  hotplug.begin(
    () => [],
    () => {},
  );
  try {
    return await work();
  } finally {
    hotplug.end();
  }
}

const GREEDY = {
  name: "greedy",
  writable: true,
  config: { allow_dev: [`b ${ZRAM_MAJOR}:* rwm`] },
};

export const devices: readonly Attack[] = [
  {
    row: 26,
    name: "links below /dev, where a node will be made and removed",
    guest: GREEDY,
    only: "host",
    attempt: (g) =>
      plugging(async () => {
        const c = await g.start(GREEDY);
        try {
          const name = plug();
          unplug(name);
          await hotplug.idle();
          await c.run(`ln -s ${g.bait}/node /dev/${name}; ls -la /dev`);
          if (plug() !== name) throw new Error("zram chose another number");
          await hotplug.idle();
          const made = await g.baited();
          // And the way back: what lies there now must not be removed either.
          await c.run(`rm -f /dev/${name}; ln -s ${g.bait} /dev/${name}`);
          unplug(name);
          await hotplug.idle();
          return made.length > 0 ? `won: ${made}` : "held: nothing was made outside";
        } finally {
          await c.end();
        }
      }),
    // What acting on a path does, for want of a node's number to choose: a file is made where the link leads.
    proof: async (w) => {
      const c = w.container({ init: ["/bin/sleep", "1000000"], config: { loopback_only: true } });
      await c.start({ setup: false });
      try {
        const outside = join(w.directory, "followed");
        const path = `/proc/${c.pid}/root/dev/zram9`;
        symlinkSync(outside, path);
        writeFileSync(path, "");
        return readFileSync(outside, "utf8") === "" ? "won: the link was followed" : "held";
      } finally {
        await c.kill();
      }
    },
  },
];
