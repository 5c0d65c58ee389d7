// limits: what a container's init must not inherit from cmld: its protection from the kernel's OOM killer, its many
// descriptors (programs that use select(2) break above 1024), its limit on core files. core0 keeps some of the
// protection: it is the way in, and its end is the machine's.
import { writeFileSync } from "node:fs";
import { prlimit, RLIMIT_CORE, RLIMIT_NOFILE } from "../../sys/calls.ts";
import { EACCES, isErrno } from "../../sys/error.ts";
import { mem } from "../../sys/mem.ts";
import { now } from "../../sys/now.ts";
import type { Op } from "../../sys/op.ts";
import type { Module } from "../module.ts";

/** As the kernel gives them to the first process (linux/fs.h, INR_OPEN_CUR); the hard one as systemd gives it. */
const [FILES_SOFT, FILES_HARD] = [1024, 524_288];

function limitsOf(resource: number): { soft: bigint; hard: bigint } {
  const into = mem(16);
  now({ call: "prlimit64", args: [0, resource, null, into] });
  const view = new DataView(into.buffer);
  return { soft: view.getBigUint64(0, true), hard: view.getBigUint64(8, true) };
}

const least = (a: bigint, b: bigint): bigint => (a < b ? a : b);

/** Of cmld itself: as many descriptors as it may have, no core files (they would hold what clients sent). */
export function ownLimits(): void {
  const { hard } = limitsOf(RLIMIT_NOFILE);
  now(prlimit(RLIMIT_NOFILE, hard, hard));
  now(prlimit(RLIMIT_CORE, 0, limitsOf(RLIMIT_CORE).hard));
}

const inherited = { files: limitsOf(RLIMIT_NOFILE).hard, core: limitsOf(RLIMIT_CORE).hard };

/** Core files only for whoever asks for them: they would be written by the rules of the host. */
export function limitOps(): Op[] {
  const { files, core } = inherited;
  return [
    prlimit(RLIMIT_NOFILE, least(BigInt(FILES_SOFT), files), least(BigInt(FILES_HARD), files)),
    prlimit(RLIMIT_CORE, 0, core),
  ];
}

/** When all containers together are out of memory, core0 is the last to be chosen (proc_pid_oom_score_adj(5)). */
const CORE0_SCORE = -800;

export const limits: Module = {
  name: "limits",
  attach(s, p) {
    const score = (n: number) => writeFileSync(`/proc/${p.pid}/oom_score_adj`, String(n));
    try {
      score(s.isC0 ? CORE0_SCORE : 0);
    } catch (e) {
      if (!s.isC0 || !isErrno(e, EACCES)) throw e;
      s.host.warnOnce(
        "core0 is protected from want of memory no more than others: CAP_SYS_RESOURCE is missing",
      );
      score(0);
    }
  },
  last: () => limitOps(),
};
