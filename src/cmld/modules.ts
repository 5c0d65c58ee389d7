// The modules of a container, in the order of their hooks, and why this order.
import type { Module } from "./module.ts";
import { caps } from "./modules/caps.ts";
import { cgroups } from "./modules/cgroups.ts";
import { console } from "./modules/console.ts";
import { devices } from "./modules/devices.ts";
import { fifos } from "./modules/fifos.ts";
import { hostname } from "./modules/hostname.ts";
import { hotplug } from "./modules/hotplug.ts";
import { limits } from "./modules/limits.ts";
import { masks } from "./modules/masks.ts";
import { names } from "./modules/names.ts";
import { network } from "./modules/network.ts";
import { seccomp } from "./modules/seccomp.ts";
import { service } from "./modules/service.ts";
import { time } from "./modules/time.ts";
import { users } from "./modules/users.ts";
import { volumes } from "./modules/volumes.ts";
import { xorg } from "./modules/xorg.ts";

export const modules: readonly Module[] = [
  users, // first: every later attach() may need the ids mapped, every later child() root
  cgroups, // the group exists before the clone, which goes straight into it
  devices, // the group's program, before there is a child in it; volumes makes the nodes
  limits,
  hostname,
  network, // before the container has a file tree: what fails here has mounted nothing
  console,
  volumes, // pivots: from here on paths are the container's
  fifos, // in the /dev that volumes has made
  masks, // over what volumes has mounted
  xorg, // over what masks leaves of /sys
  names, // in the container's own tree
  hotplug, // when the tree is there
  service, // binds in the container's /run
  time, // needs /proc of the container
  caps,
  seccomp, // last: what comes after it must pass it
];
