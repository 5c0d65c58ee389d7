// `make hosted`: cmld in hosted mode in the foreground on this machine, with a container to try. Everything lies in
// out/hosted, /run/cml-hosted and the control group of that name; Ctrl-C ends it, and nothing of it stays.
import { mkdirSync, realpathSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Connection } from "../src/control/client.ts";
import { delegate, make, remove, where } from "../src/sys/cgroup.ts";
import { chain } from "../src/sys/error.ts";
import { seed } from "./seed.ts";

const FOLDER = "out/hosted";
/** Not below FOLDER: the ids of a container must pass through it, which they may not where a home folder is private. */
const RUN = "/run/cml-hosted";
const GROUP = "cml-hosted";
const EXECUTABLE = "out/cml";

async function main(): Promise<number> {
  const group = join(where().mount, GROUP);
  const folder = join(realpathSync("."), FOLDER);
  const [base, logs, socket] = ["base", "logs", "control"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  seed(base, {
    guests: ["busybox-1"],
    containers: [{ name: "demo", guest_os: "busybox" }],
    device: { hostedmode: true },
  });
  delegate(where().mount);
  make(group);

  const places = ["--base", base, "--logs", logs, "--socket", socket, "--run", RUN, "--cgroup", `/${GROUP}`];
  // In a session of its own, so that Ctrl-C reaches it once, through us; it ends when we are killed.
  const cmld = Bun.spawn(["setpriv", "--pdeathsig", "TERM", EXECUTABLE, "cmld", ...places], {
    stdio: ["ignore", "inherit", "inherit"],
    detached: true,
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => cmld.kill(signal));
  process.on("SIGHUP", () => cmld.kill("SIGTERM"));

  while (cmld.exitCode === null) {
    try {
      (await Connection.open(socket))[Symbol.dispose]();
      break;
    } catch {
      await Bun.sleep(20); // nothing tells when it listens
    }
  }
  if (cmld.exitCode === null) {
    const started = Bun.spawn([EXECUTABLE, "control", "--socket", socket, "start", "demo", "--wait"], {
      stdio: ["ignore", "ignore", "inherit"],
    });
    if ((await started.exited) === 0)
      console.log(`
The container "demo" runs. In another terminal, as root:

  alias control="${join(realpathSync("."), EXECUTABLE)} control --socket ${socket}"
  control list
  control run demo                  # a shell inside; \`exit\` leaves it
  control stop demo
  control start demo --explain      # the system calls of a start

Ctrl-C here stops everything.
`);
  }
  const status = await cmld.exited;
  await remove(group);
  for (const path of [RUN, folder]) rmSync(path, { recursive: true, force: true });
  return status;
}

try {
  process.exit(await main());
} catch (e) {
  console.error(`hosted: ${chain(e)}`);
  process.exit(1);
}
