// This host as the place of attacks, in hosted mode: containers of the product's own modules, or, where an attack is to
// be seen succeeding, ones composed without some of them.
import { expect } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import {
  type ControllerToDaemon,
  type DaemonToController,
  GuestOSMount,
  type IControllerToDaemon,
} from "../../proto/gen/proto.js";
import { exec } from "../../src/cmld/exec.ts";
import { Supervisor } from "../../src/cmld/modules/seccomp/supervisor.ts";
import { chain } from "../../src/sys/error.ts";
import { Cmld, Command } from "../host/daemon.ts";
import { product, type Recipe, UID_START, World } from "../host/world.ts";
import {
  ATTACKER,
  type Attack,
  type Ground,
  type Guest,
  type Inside,
  inside,
  PRELUDE,
  Refused,
  refusal,
  verdict,
  type Weak,
} from "./attack.ts";
import { Composed } from "./compose.ts";
import { fill, PROGRAM } from "./guest.ts";

const SLEEPS = ["/bin/sleep", "1000000"];
/** Each guest has ids of its own. */
const UID_STRIDE = 100_000;

export class Host implements AsyncDisposable {
  readonly world = World.open();
  readonly bait: string;
  readonly #images = new Set<string>();
  #cmld: Cmld | undefined;

  constructor() {
    this.bait = join(this.world.directory, "bait");
    mkdirSync(this.bait);
    chmodSync(this.bait, 0o777);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cmld?.[Symbol.asyncDispose]();
    await this.world[Symbol.asyncDispose]();
  }

  baited(): Promise<string[]> {
    return Promise.resolve(readdirSync(this.bait));
  }

  /** After an attack that was let succeed. */
  clean(): void {
    for (const name of readdirSync(this.bait)) rmSync(join(this.bait, name), { recursive: true });
  }

  recipe(guest: Guest, init: readonly string[] = guest.init ?? SLEEPS): Recipe {
    if (!this.#images.has(guest.name)) {
      this.world.image(guest.name, (root) => fill(guest, root, this.bait));
      this.#images.add(guest.name);
    }
    const { SHARED, SHARED_RW } = GuestOSMount.Type;
    const root = {
      mount_point: "/",
      image_file: guest.name,
      mount_type: guest.writable ? SHARED_RW : SHARED,
    };
    return {
      init,
      uidStart: UID_START + [...this.#images].indexOf(guest.name) * UID_STRIDE,
      mounts: [root, ...(guest.mounts ?? [])],
      config: { name: guest.name, ...guest.config },
      ...(guest.extra && { modules: [...product(), guest.extra] }),
    };
  }

  /** The product's containers, or weak ones. */
  ground(weak?: Weak): Ground {
    return {
      bait: this.bait,
      baited: () => this.baited(),
      start: (guest) => (weak ? this.#composed(guest, weak) : this.#start(guest)),
      guestos: "busybox",
      ask: (command, fields) => this.#ask(command, fields),
      memory: async () => {
        const rss = readFileSync(`/proc/${(await this.#daemon()).pid}/status`, "utf8");
        return Number(/^RssAnon:\s+(\d+)/m.exec(rss)![1]);
      },
      descriptors: async () => readdirSync("/proc/self/fd").length,
      halfFrames: (count) => this.#halfFrames(count),
      flood: (seconds) => this.#flood(seconds),
      executable: async () => Bun.hash(await Bun.file(process.execPath).bytes()).toString(16),
    };
  }

  async #start(guest: Guest): Promise<Inside> {
    const c = this.world.container(this.recipe(guest));
    try {
      await c.start({ setup: false });
    } catch (e) {
      throw new Refused(chain(e));
    }
    return {
      run: (script, how = {}) =>
        new Promise((resolve) => {
          let text = "";
          const { pid, pidfd } = c.process!;
          const target = {
            name: c.config.name,
            pid,
            pidfd,
            cgroup: join(c.group, "child"),
            uidStart: c.uidStart,
            grant: { time: false, modules: false },
            supervisor: Supervisor.of(c.uuid)!,
          };
          const { pty = false, argv = ["/bin/sh", "-c", script], ...more } = how;
          exec(
            target,
            { argv, env: ["PATH=/bin"], pty, ...more },
            {
              output(piece) {
                text += Buffer.from(piece).toString();
                return true;
              },
              writable: () => {},
              ended: ({ error }) => resolve(error === undefined ? text : `${text}held: refused: ${error}`),
            },
          );
        }),
      end: () => c.kill(),
    };
  }

  async #composed(guest: Guest, weak: Weak): Promise<Inside> {
    const c = await this.#begin(guest, this.recipe(guest), weak);
    return {
      run: async (script, how = {}) => {
        try {
          return await c.run(how.argv ?? ["/bin/sh", "-c", script], how);
        } catch (e) {
          return `held: refused: ${e instanceof Error ? e.message : e}`;
        }
      },
      end: () => c.end(),
    };
  }

  async #begin(guest: Guest, recipe: Recipe, weak: Weak): Promise<Composed> {
    try {
      return await Composed.begin(this.world, recipe, weak, guest.extra);
    } catch (e) {
      throw new Refused(chain(e));
    }
  }

  /** A script as the container's init. */
  async #init(attack: Attack, weak: Weak): Promise<string> {
    const path = `PATH=$PATH:/usr/bin:/usr/sbin:${dirname(PROGRAM)}\n`; // for root of the host
    const init = ["/bin/sh", "-c", path + PRELUDE + attack.attempt];
    const { guest = ATTACKER } = attack;
    let c: Composed;
    try {
      c = await this.#begin(guest, this.recipe(guest, init), weak);
    } catch (e) {
      return refusal(e);
    }
    return verdict(await c.text());
  }

  async #halfFrames(count: number): Promise<AsyncDisposable> {
    const cmld = await this.#daemon();
    const clients = await Promise.all(Array.from({ length: count }, () => cmld.client()));
    for (const { socket } of clients) socket.write(Buffer.alloc(2));
    return {
      async [Symbol.asyncDispose]() {
        for (const client of clients) client[Symbol.dispose]();
      },
    };
  }

  async #flood(seconds: number): Promise<void> {
    const cmld = await this.#daemon();
    using client = await cmld.client();
    const container_uuids = [await cmld.create("flood")];
    expect(await client.say(Command.CONTAINER_START, { container_uuids })).toBe("CONTAINER_START_OK");
    using deaf = await cmld.client();
    deaf.send(Command.CONTAINER_EXEC_CMD, { container_uuids, exec_command: "yes", exec_pty: false });
    await deaf.next();
    deaf.socket.pause();
    await Bun.sleep(seconds * 1000); // nothing may come of it
    expect(await client.say(Command.REMOVE_CONTAINER, { container_uuids })).toBe("CMD_OK");
  }

  async #daemon(): Promise<Cmld> {
    this.#cmld ??= await Cmld.begin();
    return this.#cmld;
  }

  async #ask(
    command: ControllerToDaemon.Command,
    fields: Partial<IControllerToDaemon> = {},
  ): Promise<DaemonToController> {
    using client = await (await this.#daemon()).client();
    return await client.ask(command, fields);
  }

  /** How an attack ends in the product's containers. */
  async held(attack: Attack): Promise<string> {
    const { attempt, guest = ATTACKER } = attack;
    const ground = this.ground();
    if (typeof attempt === "function") return verdict(await attempt(ground));
    return await inside(ground, guest, attempt);
  }

  /** … in ones that are composed here; `weak`: of less than the product is. */
  async composed(attack: Attack, weak: Weak): Promise<string> {
    const { attempt } = attack;
    if (typeof attempt === "function") return verdict(await attempt(this.ground(weak)));
    return await this.#init(attack, weak);
  }
}
