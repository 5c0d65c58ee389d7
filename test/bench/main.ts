// `make bench`, first part: ours and the peers, alternating in one run, so that what the machine does meanwhile hits
// both.
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { believe, identity, signed } from "../../initramfs/pki.ts";
import {
  ContainerConfig,
  ContainerState,
  ContainerTokenType,
  ContainerType,
  ControllerToDaemon,
  DaemonToController,
  DeviceConfig,
  GuestOSConfig,
  GuestOSMount,
} from "../../proto/gen/proto.js";
import { Connection } from "../../src/control/client.ts";
import { print } from "../../src/lib/text.ts";
import { newUuid } from "../../src/lib/uuid.ts";
import { bundle, runPeer, runPeerWithLink } from "./peers.ts";
import { keep, median, report } from "./report.ts";

/** The runtime's settings that stage0 and the systemd unit give every daemon. */
const RUNTIME = { BUN_JSC_useDFGJIT: "0", BUN_JSC_useConcurrentJIT: "0", BUN_JSC_forceRAMSize: "67108864" };
const WARM = 1000;
const SAMPLES = 50;
const CROWD = 50;
const REQUESTS = 20_000;
const work = mkdtempSync(join(tmpdir(), "cml-bench-"));
chmodSync(work, 0o755); // the containers' ids pass through it
const socket = join(work, "control.sock");
const C = ControllerToDaemon.Command;

/** A root file system with one static program. */
function rootfs(directory: string): string {
  for (const d of ["bin", "dev", "proc", "sys", "run", "tmp", "etc"])
    mkdirSync(join(directory, d), { recursive: true });
  writeFileSync(join(directory, "bin/busybox"), readFileSync("/bin/busybox"), { mode: 0o755 });
  symlinkSync("busybox", join(directory, "bin/true"));
  return directory;
}

function must(argv: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(argv, { stdout: "ignore", stderr: "pipe" });
  if (exitCode !== 0) throw new Error(`${argv.join(" ")}: ${stderr.toString().trim()}`);
}

/** A data folder with one GuestOS whose init is `init`. */
function guest(base: string, name: string, root: string, init: string[]): void {
  const os = join(base, "operatingsystems", `${name}-1`);
  mkdirSync(os, { recursive: true });
  must(["mkfs.erofs", join(os, "root.img"), root]);
  const image = readFileSync(join(os, "root.img"));
  const config = {
    name,
    hardware: process.arch === "x64" ? "x86" : "arm",
    version: 1,
    mounts: [
      {
        image_file: "root",
        mount_point: "/",
        fs_type: "erofs",
        mount_type: GuestOSMount.Type.SHARED,
        image_size: image.length,
        image_sha2_256: new Bun.CryptoHasher("sha256").update(image).digest("hex"),
      },
    ],
    init_path: init[0]!,
    init_param: init.slice(1),
    description: { en: "benchmark" },
  };
  writeFileSync(`${os}.conf`, print(GuestOSConfig, config));
  signed(`${os}.conf`);
}

function container(base: string, name: string, guest_os: string, loopback_only: boolean): string {
  const uuid = newUuid();
  const config = {
    name,
    guest_os,
    guestos_version: 1,
    color: 0,
    type: ContainerType.CONTAINER,
    token_type: ContainerTokenType.NONE,
    ...(loopback_only && { loopback_only }),
  };
  mkdirSync(join(base, "containers"), { recursive: true });
  writeFileSync(join(base, "containers", `${uuid}.conf`), print(ContainerConfig, config));
  return uuid;
}

const resident = (pid: number): number =>
  Number(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8").match(/^Pss:\s+(\d+) kB/m)![1]) / 1024;

/** Start, and wait until it has stopped and everything is released, which is what the event says. */
async function cycle(
  control: Connection,
  events: Connection,
  uuid: string,
): Promise<{ all: number; toInit: number }> {
  const began = Bun.nanoseconds();
  await control.send({ command: C.CONTAINER_START, container_uuids: [uuid] });
  let toInit = 0;
  const started = control.next().then((answer) => {
    toInit = (Bun.nanoseconds() - began) / 1e6;
    if (answer.response !== DaemonToController.Response.CONTAINER_START_OK)
      throw new Error(`start: ${answer.error_text ?? answer.response}`);
  });
  for (;;) {
    const { event } = await events.next();
    if (event?.uuid === uuid && event.state === ContainerState.STOPPED) break;
  }
  const all = (Bun.nanoseconds() - began) / 1e6;
  await started;
  return { all, toInit };
}

async function untilListening(): Promise<Connection> {
  for (;;) {
    try {
      return await Connection.open(socket);
    } catch {
      await Bun.sleep(20); // nobody tells who is not connected yet
    }
  }
}

async function host(): Promise<void> {
  const root = rootfs(join(work, "root"));
  const base = join(work, "base");
  guest(base, "true", root, ["/bin/true"]);
  guest(base, "sleep", root, ["/bin/busybox", "sleep", "100000"]);
  writeFileSync(
    join(base, "device.conf"),
    print(DeviceConfig, { hostedmode: true, signed_configs: false, tpm_enabled: false }),
  );
  believe(base);
  identity(base);
  const bare = container(base, "bare", "true", true);
  const veth = container(base, "veth", "true", false);
  const crowd = Array.from({ length: CROWD }, (_, i) => container(base, `crowd${i}`, "sleep", true));
  for (let i = 0; i < 3; i++) container(base, `idle${i}`, "sleep", true);
  bundle(join(work, "bundle"), root, ["/bin/true"]);
  const netns = `bench${process.pid}`;
  bundle(join(work, "full"), root, ["/bin/true"], netns);

  const daemon = Bun.spawn(
    ["out/cml", "cmld", base, "--run", join(work, "run"), "--logs", join(work, "logs"), "--socket", socket],
    {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", ...RUNTIME },
    },
  );
  try {
    using control = await untilListening();
    using events = await Connection.open(socket);
    await events.send({ command: C.EVENTS });
    if (process.env.CML_BENCH_PRELOAD) process.env.LD_PRELOAD = process.env.CML_BENCH_PRELOAD; // for the peers alone

    for (let i = 0; i < 5; i++) await cycle(control, events, bare);
    const times = {
      ours: [] as number[],
      init: [] as number[],
      veth: [] as number[],
      crun: [] as number[],
      runc: [] as number[],
      full: [] as number[],
    };
    for (let i = 0; i < SAMPLES; i++) {
      const one = await cycle(control, events, bare);
      times.ours.push(one.all);
      times.init.push(one.toInit);
      times.crun.push(runPeer("crun", join(work, "bundle"), `bench-crun-${i}`));
      times.runc.push(runPeer("runc", join(work, "bundle"), `bench-runc-${i}`));
      times.veth.push((await cycle(control, events, veth)).all);
      times.full.push(runPeerWithLink("crun", join(work, "full"), `bench-full-${i}`, netns));
    }
    report("start.ms", median(times.ours), "ms", SAMPLES);
    report("start.crun_ms", median(times.crun), "ms", SAMPLES);
    report("start.runc_ms", median(times.runc), "ms", SAMPLES);
    report("start.vs_crun", median(times.ours) / median(times.crun), "ratio", SAMPLES);
    report("start.vs_runc", median(times.ours) / median(times.runc), "ratio", SAMPLES);
    report("start.with_veth_ms", median(times.veth), "ms", SAMPLES);
    report("start.full_crun_ms", median(times.full), "ms", SAMPLES);
    report("start.full_vs_crun", median(times.veth) / median(times.full), "ratio", SAMPLES);
    report("start.to_init_ms", median(times.init), "ms", SAMPLES);

    for (const uuid of crowd) {
      const answer = await control.ask({ command: C.CONTAINER_START, container_uuids: [uuid] });
      if (answer.response !== DaemonToController.Response.CONTAINER_START_OK)
        throw new Error(`crowd: ${answer.error_text}`);
    }
    const crowded: number[] = [];
    for (let i = 0; i < SAMPLES; i++) crowded.push((await cycle(control, events, bare)).all);
    report("start.crowded_ms", median(crowded), "ms", SAMPLES);

    for (let i = 0; i < WARM; i++) await control.ask({ command: C.GET_CONTAINER_STATUS });
    const before = resident(daemon.pid);
    const latencies: number[] = [];
    for (let i = 0; i < REQUESTS; i++) {
      const began = Bun.nanoseconds();
      const answer = await control.ask({ command: C.GET_CONTAINER_STATUS });
      latencies.push((Bun.nanoseconds() - began) / 1e6);
      if (answer.container_status.length !== CROWD + 5)
        throw new Error(`list ${i}: ${answer.container_status.length} containers`);
    }
    report("rpc.list_ms", median(latencies), "ms", REQUESTS);
    report("rpc.growth_mb", resident(daemon.pid) - before, "MB", REQUESTS);
  } finally {
    daemon.kill("SIGTERM");
    await daemon.exited;
  }
}

try {
  await host();
  keep();
} finally {
  if (existsSync(work)) rmSync(work, { recursive: true, force: true });
}
