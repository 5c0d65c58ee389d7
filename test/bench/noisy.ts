// `make bench`: what a noisy neighbour costs the others, in QEMU: a host has no pids or memory controller in cgroup2. Times are
// the machine's own, which counts instructions.
import { measure, percentile } from "./noise.ts";
import { keep, report } from "./report.ts";

const REQUESTS = 1000;
const RUNS = 3;
const STARTS = 15;

const n = await measure({ requests: REQUESTS, runs: RUNS, starts: STARTS, counted: true });
report("noisy.quiet_list_p99_ms", percentile(n.quietList, 0.99), "ms", REQUESTS);
report("noisy.list_p99_ms", percentile(n.list, 0.99), "ms", REQUESTS);
report("noisy.quiet_start_ms", n.quietStart, "ms", STARTS);
report("noisy.start_ms", n.start, "ms", STARTS);
report("noisy.start_ratio", n.start / n.quietStart, "ratio", STARTS);
console.log(`meanwhile the kernel ended ${n.kills} processes of the noisy one for want of memory`);
keep();
process.exit(0);
