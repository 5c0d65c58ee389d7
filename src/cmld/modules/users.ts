// users: root in the container is an unprivileged range outside.
//
// The maps are written by the parent while the child waits at the gate: a process may not map more than its own
// id itself (user_namespaces(7)).
import { writeFileSync } from "node:fs";
import { CLONE_NEWUSER, setgroups, setresgid, setresuid } from "../../sys/calls.ts";
import { ID_RANGE } from "../containers.ts";
import type { Module } from "../module.ts";

export const users: Module = {
  name: "users",
  namespaces: () => CLONE_NEWUSER,
  attach(s, p) {
    const map = `0 ${s.uidStart} ${ID_RANGE}\n`;
    writeFileSync(`/proc/${p.pid}/uid_map`, map);
    writeFileSync(`/proc/${p.pid}/gid_map`, map);
  },
  child: () => [setresgid(0), setresuid(0), setgroups()],
};
