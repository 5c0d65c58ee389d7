// hostname: the container's name is its host name, before anything in it runs; the service protocol says the same.
// A name from the time before there was a rule may be longer than the kernel takes, or hold what /etc/hosts cannot.
import { CLONE_NEWIPC, CLONE_NEWUTS, sethostname } from "../../sys/calls.ts";
import { plainName } from "../config.ts";
import type { Module } from "../module.ts";

export const hostname: Module = {
  name: "hostname",
  namespaces: () => CLONE_NEWUTS | CLONE_NEWIPC,
  child: (s) => [sethostname(plainName(s.config.name))],
};
