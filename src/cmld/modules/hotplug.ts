// hotplug: the container gets the devices that are there for it, and those that come (../devices/hotplug.ts). It joins when its
// tree is complete and its init does not run yet: what is to be kept from it is kept from the start.
import { hotplug as room } from "../devices/hotplug.ts";
import { type Module, Slot } from "../module.ts";

const joined = new Slot<true>();

export const hotplug: Module = {
  name: "hotplug",
  async ready(s, p) {
    joined.set(s, true);
    await room.join(s, p, false);
  },
  async started(s, p) {
    if (!joined.get(s)) await room.join(s, p, true);
  },
};
