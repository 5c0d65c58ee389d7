// User namespaces that nobody lives in: they say how the ids of a mount are mapped (mount_setattr(2)).
import { writeFileSync } from "node:fs";
import { AT_FDCWD, CLONE_NEWUSER, close, exit, O_RDONLY, openat, wait } from "../sys/calls.ts";
import { Fd, pipe } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { kill, SIGKILL } from "../sys/process.ts";
import { beside } from "./launch.ts";

/** A user namespace whose ids from 0 on are `count` ids of the host from `first` on, for mounts to be mapped by. */
export async function idsFrom(first: number, count: number): Promise<Fd> {
  const gate = pipe();
  using read = gate.read;
  using write = gate.write;
  const child = beside([close(write.n), wait(read.n), exit(0)], CLONE_NEWUSER);
  using pidfd = child.pidfd;
  const told = child.started().catch(() => {});
  try {
    for (const map of ["uid_map", "gid_map"])
      writeFileSync(`/proc/${child.pid}/${map}`, `0 ${first} ${count}\n`);
    return new Fd(now(openat(AT_FDCWD, `/proc/${child.pid}/ns/user`, O_RDONLY)));
  } finally {
    kill(pidfd, SIGKILL);
    await child.over;
    await told;
  }
}
