// time: the container's uptime starts at 0 (time_namespaces(7)).
//
// The child makes the namespace for its children and waits; the parent writes the offsets, which is possible only
// while nobody is in it; then the child enters it.
import { readFileSync, writeFileSync } from "node:fs";
import { CLONE_NEWTIME, close, openat, setns, unshare } from "../../sys/calls.ts";
import { Reg } from "../../sys/op.ts";
import type { Module } from "../module.ts";

const TIME = new Reg(0);

/** Whole seconds since boot: what /proc/uptime counts. */
const bootSeconds = (): number => Math.floor(Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]));

export const time: Module = {
  name: "time",
  child: () => [unshare(CLONE_NEWTIME)],
  ready(_s, p) {
    const seconds = bootSeconds();
    writeFileSync(`/proc/${p.pid}/timens_offsets`, `monotonic -${seconds} 0\nboottime -${seconds} 0\n`);
  },
  last: () => [
    openat(-100, "/proc/self/ns/time_for_children", 0, 0, TIME),
    setns(TIME, CLONE_NEWTIME),
    close(TIME),
  ],
};
