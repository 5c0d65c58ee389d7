// The machine as the place of attacks: the product's ramdisk in QEMU, with a GuestOS and a container for each guest that
// an attack names. One machine serves all of them.
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { signed } from "../../initramfs/pki.ts";
import { CORE0, type SeedContainer, seed } from "../../initramfs/seed.ts";
import {
  ControllerToDaemon,
  DaemonToController,
  type IControllerToDaemon,
  type IGuestOSMount,
} from "../../proto/gen/proto.js";
import { build, HARDWARE } from "../../src/guestos/image.ts";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { Vm } from "../machine/qemu.ts";
import { without } from "../machine/sleeper.ts";
import {
  ATTACKER,
  type Attack,
  type Ground,
  type Guest,
  type How,
  type Inside,
  inside,
  PRELUDE,
  Refused,
  SECRET,
  verdict,
} from "./attack.ts";
import { fill } from "./guest.ts";

const BAIT = "/data/bait";
const CONTROL_SOCKET = "/run/socket/cml-control";
/** What cmld keeps. */
const KEPT = ["", "containers", "operatingsystems", "keys", "tokens", "shared"].map((d) => `/data/cml/${d}`);
const DISK_MIB = 512;
const IDLE = ["/bin/sleep", "1000000"];

export class Machine implements AsyncDisposable {
  readonly vm: Vm;
  #cmld = 0;
  private constructor(
    readonly folder: string,
    disk: string,
    counted: boolean,
  ) {
    this.vm = Vm.boot({ memory: 768, disks: [disk], counted });
  }

  /** Boot one with everything that the attacks need, up to core0. `add` puts more into what will be /data. */
  static async boot(
    guests: readonly Guest[],
    { counted = false, add = (_data: string) => {} } = {},
  ): Promise<Machine> {
    const folder = mkdtempSync(join(tmpdir(), "escape-"));
    try {
      const from = join(folder, "guests");
      mkdirSync(from);
      for (const name of ["core0-1", "core0-1.conf", "core0-1.sig", "core0-1.cert"])
        symlinkSync(resolve("out/guests", name), join(from, name));
      for (const guest of guests) await guestOs(guest, from, folder);
      const data = join(folder, "data");
      const containers = guests.map(
        ({ name, config }): SeedContainer => ({ name, guest_os: name, ...(config as object) }),
      );
      seed(join(data, "cml"), {
        from,
        guests: ["core0-1", ...guests.map(({ name }) => `${name}-1`)],
        containers: [CORE0, ...containers],
      });
      writeFileSync(join(data, "cml/keys/secret"), SECRET);
      mkdirSync(join(data, "bait"));
      chmodSync(join(data, "bait"), 0o777);
      add(data);
      const file = join(folder, "disk.img");
      disk(file, DISK_MIB, data);
      rmSync(data, { recursive: true });
      const machine = new Machine(folder, file, counted);
      await machine.vm.sees("core0: BOOTING → RUNNING");
      machine.#cmld = Number(/init: cmld: started, pid (\d+)/.exec(machine.vm.said)![1]);
      return machine;
    } catch (e) {
      rmSync(folder, { recursive: true });
      throw e;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.vm[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true });
  }

  /** cmld is the one that the machine has booted with. */
  async unharmed(): Promise<boolean> {
    return (await this.vm.ask("list", { path: "/proc" })).includes(String(this.#cmld));
  }

  async control(...argv: string[]): Promise<{ status: number | null; text: string }> {
    const { status, stdout, stderr } = await this.vm.ask("run", { argv: ["/usr/sbin/control", ...argv] });
    return { status, text: stdout + stderr };
  }

  readonly ground: Ground = {
    bait: BAIT,
    baited: () => this.vm.ask("list", { path: BAIT }),
    start: (guest) => this.#start(guest),
    guestos: ATTACKER.name,
    ask: (command, fields) => this.ask(CONTROL_SOCKET, command, fields),
    memory: async () => {
      const status = await this.vm.ask("read", { path: `/proc/${this.#cmld}/status` });
      return Number(/^RssAnon:\s+(\d+)/m.exec(status)![1]);
    },
    core0: {
      ask: async (command, fields) => this.ask(await this.#core0(), command, fields),
      files: async () => (await Promise.all(KEPT.map((path) => this.vm.ask("list", { path })))).flat(),
    },
    descriptors: async () => (await this.vm.ask("list", { path: `/proc/${this.#cmld}/fd` })).length,
    flood: (seconds) => this.#flood(seconds),
    executable: () => this.vm.ask("hash", { path: `/proc/${this.#cmld}/exe` }),
  };

  /** core0's socket, as core0's init sees it. */
  async #core0(): Promise<string> {
    const path = `/sys/fs/cgroup/cml/containers/${C0}/child/cgroup.procs`;
    const pid = (await this.vm.ask("read", { path })).split("\n")[0];
    return `/proc/${pid}/root${CONTROL_SOCKET}`;
  }

  /** By core0's client, whose output nobody reads. */
  async #flood(seconds: number): Promise<void> {
    const c = await this.#start(ATTACKER);
    await this.control(
      "run",
      "--no-tty",
      "core0",
      "sh",
      "-c",
      `control run --no-tty ${ATTACKER.name} yes | sleep ${seconds}`,
    );
    await c.end();
  }

  async #start(guest: Guest): Promise<Inside> {
    const { status, text } = await this.control("start", guest.name);
    if (status !== 0 && (!text.includes("CONTAINER_START") || text.includes("EEXIST")))
      throw new Error(`${guest.name}: ${text}`); // it is not there, or runs already
    if (status !== 0) throw new Refused(text.trim().replace(/\s+/g, " "));
    return {
      run: async (script, how = {}) => {
        const { text } = await this.control(...words(guest, script, how));
        return /^control: run \S+: child: /.test(text) ? `held: refused: ${text}` : text;
      },
      end: async () => {
        const { status } = await this.control("stop", guest.name);
        if (status === 0) await this.vm.sees(`${guest.name}: SHUTDOWN → STOPPED`);
      },
    };
  }

  /** One request on a socket of cmld's. */
  async ask(
    socket: string,
    command: ControllerToDaemon.Command,
    fields: Partial<IControllerToDaemon> = {},
  ): Promise<DaemonToController> {
    const send = Buffer.from(frame(ControllerToDaemon.encode({ command, ...fields }))).toString("base64");
    const { received } = await this.vm.ask("exchange", { socket, send, frames: 1 });
    const [message] = new Unframer().push(Buffer.from(received, "base64"));
    if (!message) throw new Error("cmld has closed the connection");
    return DaemonToController.decode(message);
  }

  /** How an attack ends here. */
  async held(attack: Attack): Promise<string> {
    const { attempt, guest = ATTACKER } = attack;
    if (typeof attempt === "function") {
      await this.#attacker?.end(); // it may be started by the attempt
      this.#attacker = undefined;
      return verdict(await attempt(this.ground));
    }
    if (guest === ATTACKER) {
      // Its container stays up from one attack to the next.
      this.#attacker ??= await this.#start(guest);
      return verdict(await this.#attacker.run(PRELUDE + attempt));
    }
    return await inside(this.ground, guest, attempt);
  }
  #attacker: Inside | undefined;
}

function words(guest: Guest, script: string, { user, cwd, pty, argv }: How): string[] {
  return [
    "run",
    ...(user === undefined ? [] : ["--user", user]),
    ...(cwd === undefined ? [] : ["--workdir", cwd]),
    ...(pty ? [] : ["--no-tty"]),
    guest.name,
    ...(argv ?? ["/bin/sh", "-c", script]),
  ];
}

async function guestOs(guest: Guest, out: string, folder: string): Promise<void> {
  const tree = mkdtempSync(join(folder, "tree-"));
  chmodSync(tree, 0o755);
  fill(guest, tree, BAIT);
  const [path, ...init_param] = guest.init ?? IDLE;
  await build({
    name: guest.name,
    version: 1,
    date: 1793491200, // 2026-11-01
    hardware: HARDWARE.x86_64!,
    from: tree,
    out,
    fs: "erofs",
    root: guest.writable ? "shared_rw" : "shared",
    compress: true,
    allRoot: true,
    force: true,
    config: {
      init_path: path!,
      init_param,
      init_env: ["PATH=/bin"],
      mounts: (guest.mounts ?? []).map((m) => ({ def_size: 16, ...m })) as IGuestOSMount[],
      description: { en: "attacker" },
    },
  });
  const conf = join(out, `${guest.name}-1.conf`);
  if (guest.hashed) writeFileSync(conf, without("image_verity_sha256")(readFileSync(conf, "utf8")));
  signed(conf);
  rmSync(tree, { recursive: true });
}
