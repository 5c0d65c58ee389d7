// hostname: the container's name is its host name, before anything in it runs; the service protocol says the same.
import { CLONE_NEWIPC, CLONE_NEWUTS, sethostname } from "../../sys/calls.ts";
import type { Module } from "../module.ts";

export const hostname: Module = {
  name: "hostname",
  namespaces: () => CLONE_NEWUTS | CLONE_NEWIPC,
  child: (s) => [sethostname(s.name)],
};
