// A cmld of its own for a test, in hosted mode, in a temporary folder; and a client that speaks to it.
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { believe, identity, signed } from "../../initramfs/pki.ts";
import { ControllerToDaemon, DaemonToController, type IControllerToDaemon } from "../../proto/gen/proto.js";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { busyboxRoot } from "./world.ts";

export const { Command } = ControllerToDaemon;
export const { Code, Response } = DaemonToController;

/** The container whose token and wrapped key, as the original made them, lie in test/data; and its PIN. */
export const WEB = "f815386c-25b6-4a09-9ee4-4b65b977f167";
export const WEB_PIN = "newpin1";

/** In this data folder it is as after its first start. */
export function pairWeb(base: string): void {
  mkdirSync(join(base, "containers", WEB), { recursive: true });
  writeFileSync(join(base, "containers", WEB, "token_is_paired"), "");
  copyFileSync(`test/data/tokens/${WEB}.p12`, join(base, `tokens/${WEB}.p12`));
  copyFileSync(`test/data/tokens/${WEB}.key`, join(base, `keys/${WEB}.key`));
}

/** One connection: what was answered, in order. */
export class Client implements Disposable {
  readonly #answers: DaemonToController[] = [];
  #wake: (() => void) | undefined;
  closed = false;
  private constructor(readonly socket: Socket) {
    const unframer = new Unframer();
    socket.on("data", (chunk: Buffer) => {
      for (const m of unframer.push(chunk)) this.#answers.push(DaemonToController.decode(m));
      this.#wake?.();
    });
    socket.on("error", () => {});
    socket.on("close", () => {
      this.closed = true;
      this.#wake?.();
    });
  }
  static to(path: string): Promise<Client> {
    return new Promise((resolve, reject) => {
      const socket = connect({ path });
      socket.on("connect", () => resolve(new Client(socket)));
      socket.on("error", reject);
    });
  }
  send(command: ControllerToDaemon.Command, fields: Partial<IControllerToDaemon> = {}): void {
    this.socket.write(frame(ControllerToDaemon.encode({ command, ...fields })));
  }
  /** The next answer; throws if the daemon hangs up instead. */
  async next(): Promise<DaemonToController> {
    for (;;) {
      const answer = this.#answers.shift();
      if (answer) return answer;
      if (this.closed) throw new Error("the daemon has closed the connection");
      await new Promise<void>((wake) => (this.#wake = wake));
    }
  }
  async ask(
    command: ControllerToDaemon.Command,
    fields: Partial<IControllerToDaemon> = {},
  ): Promise<DaemonToController> {
    this.send(command, fields);
    return this.next();
  }
  /** "CMD_OK", or the code, with why if there is a reason. */
  async say(command: ControllerToDaemon.Command, fields: Partial<IControllerToDaemon> = {}): Promise<string> {
    const a = await this.ask(command, fields);
    const word = a.code === Code.RESPONSE ? Response[a.response!] : Code[a.code];
    return a.error_text === undefined ? word! : `${word}: ${a.error_text}`;
  }
  async whenClosed(): Promise<void> {
    while (!this.closed) await new Promise<void>((wake) => (this.#wake = wake));
  }
  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

/** A signed GuestOS "busybox" whose init runs `inittab`; `more`: lines of its configuration. */
export function installBusybox(
  folder: string,
  inittab: string,
  more = "",
  fill: (root: string) => void = () => {},
): void {
  const os = join(folder, "busybox-1");
  mkdirSync(os, { recursive: true });
  const root = mkdtempSync(join(tmpdir(), "root-"));
  chmodSync(root, 0o755);
  busyboxRoot(root);
  symlinkSync("../bin/busybox", join(root, "sbin/init"));
  writeFileSync(join(root, "etc/inittab"), inittab);
  mkdirSync(join(root, "usr/sbin"), { recursive: true });
  writeFileSync(join(root, "usr/sbin/cml"), ""); // where core0 gets the executable
  fill(root);
  const image = join(os, "root.img");
  const made = spawnSync("mksquashfs", [root, image, "-noappend", "-quiet", "-no-progress"]);
  if (made.status !== 0) throw new Error(`mksquashfs: ${made.stderr}`);
  rmSync(root, { recursive: true });
  const bytes = readFileSync(image);
  writeFileSync(
    `${os}.conf`,
    `name: "busybox"\nhardware: "x86"\nversion: 1\ninit_path: "/sbin/init"\ndescription { en: "busybox" }\n` +
      `mounts { image_file: "root" mount_point: "/" fs_type: "squashfs" mount_type: SHARED ` +
      `image_size: ${bytes.length} image_sha2_256: "${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}" }\n${more}`,
  );
  signed(`${os}.conf`);
}

export class Cmld implements AsyncDisposable {
  readonly socket: string;
  #process: Bun.Subprocess | undefined;
  private constructor(
    readonly folder: string,
    readonly argv: readonly string[],
    readonly env: Readonly<Record<string, string>>,
  ) {
    this.socket = join(folder, "socket");
  }

  /** A data folder with a GuestOS "busybox" whose init runs `inittab`. */
  static async begin(
    inittab = "::respawn:/bin/sleep 1000000\n",
    options: {
      /** Lines of the GuestOS' configuration. */
      readonly guestos?: string;
      /** Where its folder is made, if not in the usual one for temporary files. */
      readonly under?: string;
      readonly env?: Record<string, string>;
      /** Lines of device.conf, about signatures and more. */
      readonly device?: string;
      /** What else belongs into the data folder. */
      readonly prepare?: (base: string) => Promise<void>;
      /** What else is in the guest. */
      readonly fill?: (root: string) => void;
      /** A compiled one in place of the source. */
      readonly executable?: string;
    } = {},
  ): Promise<Cmld> {
    const { guestos = "", env = {}, under = tmpdir(), device = "signed_configs: false\n" } = options;
    const folder = mkdtempSync(join(under, "cmld-"));
    chmodSync(folder, 0o755); // the containers' ids pass through it
    installBusybox(join(folder, "base/operatingsystems"), inittab, guestos, options.fill);
    writeFileSync(join(folder, "base/device.conf"), `hostedmode: true\ntpm_enabled: false\n${device}`);
    believe(join(folder, "base"));
    identity(join(folder, "base"));
    await options.prepare?.(join(folder, "base"));
    const at = (name: string) => join(folder, name);
    const places = ["--base", at("base"), "--run", at("run"), "--logs", at("logs"), "--socket", at("socket")];
    const program =
      options.executable === undefined ? [process.execPath, "src/main.ts"] : [options.executable];
    const cmld = new Cmld(folder, [...program, "cmld", ...places], env);
    await cmld.start();
    return cmld;
  }

  get pid(): number {
    return this.#process!.pid;
  }

  /** Start the daemon (again); resolves when it listens. */
  async start(): Promise<void> {
    rmSync(this.socket, { force: true });
    const log = Bun.file(join(this.folder, "out"));
    this.#process = Bun.spawn([...this.argv], {
      stdin: "ignore",
      stdout: log,
      stderr: log,
      env: { ...globalThis.process.env, ...this.env },
    });
    const process = this.#process;
    for (;;) {
      try {
        (await Client.to(this.socket))[Symbol.dispose]();
        return;
      } catch {
        if (process.exitCode !== null || process.signalCode !== null)
          throw new Error(
            `cmld has ended with ${process.exitCode} ${process.signalCode}: ${await log.text()}`,
          );
        await Bun.sleep(5); // until it listens; nothing tells
      }
    }
  }

  client(): Promise<Client> {
    return Client.to(this.socket);
  }

  /** A container of the GuestOS, with no link to the machine, where other tests have theirs; its uuid. */
  async create(name: string, more = ""): Promise<string> {
    using c = await this.client();
    const text = `name: "${name}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\nloopback_only: true\n${more}`;
    const a = await c.ask(Command.CREATE_CONTAINER, { container_config_file: Buffer.from(text) });
    if (a.container_uuids.length !== 1) throw new Error(a.error_text);
    return a.container_uuids[0]!;
  }

  /** Send a signal and wait for the end; its exit status, or the signal it died of. */
  async end(signal: "SIGTERM" | "SIGHUP" | "SIGKILL"): Promise<number | string> {
    const process = this.#process!;
    process.kill(signal);
    const status = await process.exited;
    return process.signalCode ?? status;
  }

  /** A test that failed leaves none behind: they outlive a cmld that was killed. */
  #endContainers(): void {
    const ledgers = join(this.folder, "run/ledger");
    for (const name of existsSync(ledgers) ? readdirSync(ledgers) : []) {
      const group = /"kind":"cgroup","path":"([^"]+)"/.exec(readFileSync(join(ledgers, name), "utf8"))?.[1];
      if (group && existsSync(group)) writeFileSync(join(group, "cgroup.kill"), "1");
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { exitCode, signalCode } = this.#process ?? {};
    if (exitCode === null && !signalCode) await this.end("SIGTERM");
    this.#endContainers();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
