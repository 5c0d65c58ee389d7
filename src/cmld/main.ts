// cmld, the container manager: puts the parts together. Where everything lies follows from device.conf, which is
// looked for in the data folder of a device (/data/cml) and then of an ordinary host (/etc/cml), unless a folder is
// given; then everything is below it.
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { EXIT_POWER_OFF, EXIT_REBOOT } from "../lib/exit.ts";
import { passed } from "../run/gate.ts";
import { kernelAudit } from "../sys/audit.ts";
import { AT_FDCWD, O_DIRECTORY, O_RDONLY, openat, SOCK_SEQPACKET } from "../sys/calls.ts";
import { where } from "../sys/cgroup.ts";
import { chain, EAGAIN } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { Journal, type Log } from "../sys/journal.ts";
import { landlockAbi } from "../sys/landlock.ts";
import { bindAt, listens } from "../sys/listen.ts";
import { attempt, now } from "../sys/now.ts";
import { inherited, supervisor } from "../sys/supervisor.ts";
import { Auditor, limitOf } from "./audit/audit.ts";
import type { DeviceConfig } from "./config.ts";
import { subordinateIds } from "./containers.ts";
import { control } from "./control.ts";
import { type End, LOG_NAME, Manager, type Network } from "./daemon.ts";
import { loadDevice } from "./device.ts";
import { hotplug } from "./devices/hotplug.ts";
import { exec } from "./exec.ts";
import type { Ahead } from "./first.ts";
import { openHost } from "./host.ts";
import { modulesLoaded } from "./kernel.ts";
import { devicePassphrase } from "./keys/machine.ts";
import { doorway } from "./modules/doorway.ts";
import { ownLimits } from "./modules/limits.ts";
import { procviews } from "./modules/procviews.ts";
import { modules } from "./modules.ts";
import { assign, interfaces, leave, unassign, vnets } from "./network/router.ts";
import { withoutEffectHere } from "./pending.ts";
import { Views } from "./procviews.ts";
import { ScdClient } from "./scd.ts";
import type { ScdAhead } from "./scdroom.ts";
import { GUEST, serve, TRUSTED } from "./socket.ts";
import { openStore } from "./store.ts";

const USAGE = `usage: cmld [BASE] [options]

Manages containers until it gets SIGTERM or SIGINT, which stop them all; SIGHUP ends it and leaves them running for
the next cmld.

  BASE, --base DIR   data folder, with device.conf in it (default: /data/cml, else /var/lib/cml with /etc/cml)
  --config FILE      device.conf
  --logs DIR         log files (default: /data/logs, /var/log/cml, or BASE/logs)
  --run DIR          volatile state (default: /run/cml)
  --socket PATH      control socket (default: /run/socket/cml-control)
  --cgroup PATH      delegated group for the containers, seen from cgroup2's root (default: below cmld's own)
  --debug            log more
  -h, --help         print this
`;

/** Users of this group may talk to cmld in hosted mode. */
const GROUP = "cml-control";
const CONTROL = "cml-control"; // name of the socket that systemd hands over
const BACKLOG = 1024;

export interface Places {
  readonly base: string;
  readonly config: string;
  readonly logs: string;
  readonly run: string;
  readonly socket: string;
  readonly cgroup?: string;
}

/** Where things lie: what the caller says, else what belongs to the kind of machine. */
export function places(
  given: { base?: string; config?: string; logs?: string; run?: string; socket?: string; cgroup?: string },
  exists: (path: string) => boolean = existsSync,
): Places {
  const device = { base: "/data/cml", config: "/data/cml/device.conf", logs: "/data/logs" };
  const host = { base: "/var/lib/cml", config: "/etc/cml/device.conf", logs: "/var/log/cml" };
  let kind = exists(device.config) || !exists(host.config) ? device : host;
  if (given.base !== undefined) {
    const base = resolve(given.base);
    const usual = [device, host].find((k) => k.base === base);
    kind = usual ?? { base, config: join(base, "device.conf"), logs: join(base, "logs") };
  }
  const { cgroup, ...paths } = given;
  const named = Object.fromEntries(Object.entries(paths).map(([what, path]) => [what, resolve(path)]));
  return {
    run: "/run/cml",
    socket: "/run/socket/cml-control",
    ...kind,
    ...named,
    ...(cgroup !== undefined && { cgroup }),
    base: kind.base,
  };
}

/** What a cmld that was killed had just started may hold its locks and sockets until it has closed what it inherited. */
const LEFT_MS = 2000;
const RETRY_MS = 20;

/** False: somebody holds it on. */
async function freed(taken: () => boolean): Promise<boolean> {
  const until = performance.now() + LEFT_MS;
  while (taken()) {
    if (performance.now() > until) return false;
    await Bun.sleep(RETRY_MS); // nothing tells
  }
  return true;
}

/** One cmld per data folder and per volatile folder: two would start the same container. The locks end with the
 * process. */
async function lock(folder: string, mode: number): Promise<Fd> {
  mkdirSync(folder, { recursive: true, mode });
  const fd = new Fd(now(openat(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY)));
  const [LOCK_EX, LOCK_NB] = [2, 4]; // asm-generic/fcntl.h
  const taken = () => attempt({ call: "flock", args: [fd.n, LOCK_EX | LOCK_NB] }) === -EAGAIN;
  if (!(await freed(taken))) throw new Error(`another cmld uses ${folder}`);
  return fd;
}

function groupId(name: string): number | undefined {
  const found = new RegExp(`^${name}:[^:]*:(\\d+):`, "m").exec(readFileSync("/etc/group", "utf8"));
  return found ? Number(found[1]) : undefined;
}

/** The machine's own control socket: from systemd, or made here. */
async function controlSocket(path: string, hosted: boolean): Promise<Fd> {
  const given = inherited((name) => name === CONTROL || name === "unknown");
  const [mine, ...others] = [...(given.get(CONTROL) ?? []), ...(given.get("unknown") ?? [])];
  for (const fd of others) fd.close();
  if (mine) return mine;
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
  await freed(() => listens(path));
  const fd = bindAt(path, 0o700, BACKLOG);
  const group = hosted ? groupId(GROUP) : undefined;
  if (group !== undefined) {
    chownSync(path, 0, group);
    chmodSync(path, 0o660);
  }
  return fd;
}

function openJournal(logs: string, debug: boolean): Log {
  try {
    return new Journal({ name: LOG_NAME, directory: logs, console: 1, debug });
  } catch (e) {
    const log = new Journal({ name: LOG_NAME, console: 1, debug });
    log.error(`${logs}: ${chain(e)}: logging to the console alone`);
    return log;
  }
}

/** The original's place beside the data folder of a device; else in it. */
export const auditFolder = (base: string): string =>
  base === "/data/cml" ? "/data/audit" : join(base, "audit");

/** When the machine was started, as the original takes it from /proc/stat: seconds since 1970. */
const bootedAt = (): number => Number(/^btime ([0-9]+)$/m.exec(readFileSync("/proc/stat", "utf8"))?.[1] ?? 0);

/** How often the kernel is asked whether it has lost records. */
const LOST_MS = 30_000;

/** Hear of the kernel's records, if it lets us. On an ordinary host we only listen: its audit is not ours. */
function listenToKernel(audit: Auditor, device: DeviceConfig, log: Log): Disposable {
  const over = new DisposableStack();
  try {
    const kernel = over.use(
      kernelAudit(!device.hostedmode, {
        record: (r) => audit.kernel(r),
        lost: (count) => audit.lost(count),
      }),
    );
    const timer = setInterval(() => kernel.ask(), LOST_MS);
    over.defer(() => clearInterval(timer));
  } catch (e) {
    log.warn(`the kernel's audit records are not kept: ${chain(e)}`);
  }
  return over;
}

const network: Network = { interfaces, assign, unassign, vnets };

export async function main(args: string[], ahead?: Ahead): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      base: { type: "string" },
      config: { type: "string" },
      logs: { type: "string" },
      run: { type: "string" },
      socket: { type: "string" },
      cgroup: { type: "string" },
      debug: { type: "boolean" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  ownLimits();
  const { debug, help: _, base = positionals[0], ...given } = values;
  if (positionals.length > 1) throw new Error(`${positionals[1]}: one data folder is enough`);
  if (process.getuid?.() !== 0) throw new Error("only root can make containers");
  try {
    if (ahead) await passed(ahead.gate);
    ahead?.gate.close();
    return await run(places({ ...given, ...(base !== undefined && { base }) }), debug ?? false, ahead?.scd);
  } catch (e) {
    console.error(`cmld: ${chain(e)}`);
    process.exit(1); // watched descriptors would keep it
  }
}

const scdSocket = (at: Places): string => join(dirname(at.socket), "cml-scd_control");

async function run(at: Places, debug: boolean, scdAhead: ScdAhead | undefined): Promise<number> {
  process.umask(0o022);
  const environment = { ...process.env };
  const above = supervisor(); // what it takes out of our environment, programs that we start do not get
  const device = await loadDevice(at.config);
  using _run = await lock(at.run, 0o711);
  using _base = await lock(at.base, 0o755);
  const log = openJournal(at.logs, debug);
  process.on("uncaughtException", (e) => log.error(`unexpected: ${chain(e)}: ${e.stack ?? ""}`));
  process.on("unhandledRejection", (e) => log.error(`unexpected: ${chain(e)}`));

  if (!scdAhead) await freed(() => listens(scdSocket(at), SOCK_SEQPACKET));
  const scd = new ScdClient(
    {
      base: at.base,
      socket: scdSocket(at),
      passphrase: () => devicePassphrase(join(at.base, "keys")),
      ...(device.pkcs11_module !== "" && { pkcs11: device.pkcs11_module }),
      log: (line) => log.info(line),
    },
    scdAhead,
  );
  scd.begin(); // it takes longest, and every guest waits for its word

  for (const line of withoutEffectHere(device)) log.warn(`${at.config}: ${line}`);

  const { promise: over, resolve: end } = Promise.withResolvers<number>();
  let manager: Manager;
  const open = (listening: Fd, privileged: boolean) =>
    serve(listening, control(manager, privileged, privileged ? TRUSTED : GUEST));
  const audit =
    device.audit_size === 0
      ? undefined
      : await Auditor.open({
          directory: auditFolder(at.base),
          limit: limitOf(device.audit_size),
          owners: {
            known: (uuid) => manager.container(uuid) !== undefined,
            ofUid: (uid) => manager.ofUid(uid),
            groups: () => host.cgroup.slice(where().mount.length),
          },
          warn: (line) => log.warn(line),
        });
  const host = openHost({
    base: at.base,
    audit,
    run: at.run,
    logs: at.logs,
    ...(at.cgroup !== undefined && { cgroup: at.cgroup }),
    device,
    claims: () => manager.claims(),
    hash: (file, name, algorithm) => scd.hash(file, name, algorithm),
    warn: (line) => log.warn(line),
  });
  if (landlockAbi() === 0) log.warn("this kernel has no Landlock: scd and fetch are confined without it");
  const views = new Views(host, (line) => log.info(line));
  manager = new Manager({
    scd,
    host,
    device,
    modules: [...modules, procviews(views), doorway(open)],
    store: await openStore(environment, (line) => log.warn(line)),
    log,
    exec,
    network,
    taken: device.hostedmode ? await subordinateIds() : [],
    end: (how: End) => end(how === "reboot" ? EXIT_REBOOT : EXIT_POWER_OFF),
  });
  await manager.load();
  using _kernel = audit && listenToKernel(audit, device, log);
  audit?.record("SSA", "GENERIC", "boot-time", undefined, { pid: process.pid, booted: bootedAt() });
  await modulesLoaded("core"); // whoever looks at links has a socket to nf_tables as well
  hotplug.begin(
    () => manager.claimants(),
    (line) => log.warn(line),
    (usb) => manager.unplugged(usb),
  );

  using listening = await controlSocket(at.socket, device.hostedmode);
  using _server = open(listening, true);
  log.info(`listening on ${at.socket}`);

  const stop = (signal: string) => () => {
    log.info(`${signal}: stopping all containers`);
    manager.shutdown().then(
      () => {
        try {
          leave(host);
        } catch (e) {
          log.warn(`taking back what was done to the network: ${chain(e)}`);
        }
        end(0);
      },
      (e) => log.error(chain(e)),
    );
  };
  process.on("SIGTERM", stop("SIGTERM"));
  process.on("SIGINT", stop("SIGINT"));
  process.on("SIGHUP", () => {
    log.info("SIGHUP: leaving the containers to the next cmld");
    end(0);
  });

  above.notify("READY=1");
  if (above.watchdogMs !== undefined) setInterval(() => above.notify("WATCHDOG=1"), above.watchdogMs);
  const begun = manager.begin();
  void begun
    .then(() => modulesLoaded("guests"))
    .then(
      () => views.begin(), // after core0, which gets its own then
      () => {},
    );
  begun.catch((e) => {
    log.error(`core0 cannot be started: ${chain(e)}`);
    end(1);
  });
  const status = await over;
  await audit?.settled();
  log.info(`ending with status ${status}`);
  scd[Symbol.dispose](); // process.exit() skips what \`using\` would do
  process.exit(status);
}
