// The guests that `make guests` builds, as containers: each comes up in its own way, is what it should be inside, and
// stops when it is asked, well before anybody loses patience.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync, readlinkSync } from "node:fs";
import { join, resolve } from "node:path";
import { ContainerTokenType, ContainerType, GuestOSConfig } from "../../proto/gen/proto.js";
import { checkContainer, checkGuestOs } from "../../src/cmld/config.ts";
import { Container } from "../../src/cmld/container.ts";
import { modules } from "../../src/cmld/modules.ts";
import type { State } from "../../src/cmld/state.ts";
import { parse } from "../../src/lib/text.ts";
import { UID_START, World } from "./world.ts";

const BOOT_MS = 30_000; // of the machine that runs the tests, not of a container's

let world: World;
beforeAll(() => {
  world = World.open();
});
afterAll(async () => await world[Symbol.asyncDispose]());

class Guest implements AsyncDisposable {
  readonly states: State[] = [];
  readonly container: Container;
  #changed: () => void = () => {};

  constructor(name: string) {
    const directory = resolve(`out/guests/${name}-1`);
    const config = checkGuestOs(parse(GuestOSConfig, readFileSync(`${directory}.conf`)));
    const uuid = crypto.randomUUID();
    this.container = new Container(
      uuid,
      checkContainer(
        {
          name,
          guest_os: name,
          color: 0,
          type: ContainerType.CONTAINER,
          token_type: ContainerTokenType.NONE,
        } as never,
        { device: world.host.device, provisioned: false, loaded: false },
      ),
      0,
      UID_START,
      join(world.directory, "containers", uuid),
      {
        host: world.host,
        modules,
        bind: () => ({ config, directory }),
        keep: (key, fd) => void world.kept.set(key, fd),
        kept: (key) => world.kept.get(key),
        forget: (key) => void world.kept.delete(key),
        exitOf: async () => undefined,
        changed: (_c, _from, to) => {
          this.states.push(to);
          this.#changed();
        },
        log: (line) => void world.log.push(line),
      },
    );
  }

  /** Wait until it has reached a state. */
  async reaches(state: State): Promise<void> {
    while (!this.states.includes(state)) {
      if (this.states.includes("STOPPED")) throw new Error(`${this.states}: ${world.log.join("\n")}`);
      await new Promise<void>((done) => {
        this.#changed = done;
      });
    }
  }

  /** Start it and wait for RUNNING. */
  async up(): Promise<void> {
    await this.container.start({ setup: false });
    await this.reaches("RUNNING");
  }

  /** Ask it to stop; how long that took, in milliseconds. */
  async down(): Promise<number> {
    const start = performance.now();
    await this.container.stop();
    await this.container.whenStopped();
    return performance.now() - start;
  }

  /** What a command inside says on standard output. */
  run(...argv: string[]): string {
    const enter = [
      "nsenter",
      "-t",
      String(this.container.pid),
      "-U",
      "-m",
      "-u",
      "-i",
      "-n",
      "-p",
      "-C",
      "-S0",
      "-G0",
    ];
    const done = Bun.spawnSync([...enter, ...argv], {
      stderr: "inherit",
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    });
    return done.stdout.toString().trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.container.kill();
  }
}

test(
  "busybox: RUNNING at execve, powered off by its own signal",
  async () => {
    await using g = new Guest("busybox");
    await g.up();
    expect(readlinkSync(`/proc/${g.container.pid}/exe`)).toEndWith("/busybox");
    expect(await g.down()).toBeLessThan(10_000);
  },
  BOOT_MS,
);

test(
  "classic, in the original's form: the helper goes before init, and takes SHUTDOWN",
  async () => {
    await using g = new Guest("classic");
    await g.up();
    expect(g.states).toContain("BOOTING");
    expect(readlinkSync(`/proc/${g.container.pid}/exe`)).toEndWith("/busybox");
    expect(g.run("hostname")).toBe("classic");
    expect(g.run("cat", "/etc/hosts")).toContain("127.0.1.1\t classic");
    expect(g.run("cat", "/etc/resolv.conf")).toBe("nameserver 8.8.8.8");
    expect(await g.down()).toBeLessThan(10_000);
  },
  BOOT_MS,
);

test(
  "core0: nft and control are there, and the DHCP client waits for cards",
  async () => {
    await using g = new Guest("core0");
    await g.up();
    expect(g.run("nft", "--version")).toStartWith("nftables v1");
    expect(g.run("readlink", "/usr/sbin/control")).toBe("cml");
    // RUNNING is said when init has been executed, which then starts it.
    const there = "until pidof uevent; do sleep 0.1; done"; // until it runs; nothing tells
    expect(g.run("timeout", "10", "sh", "-c", there)).toMatch(/^\d+$/);
    expect(await g.down()).toBeLessThan(10_000);
  },
  BOOT_MS,
);

test(
  "debian: systemd says when it is up, nothing has failed, and it halts when asked",
  async () => {
    await using g = new Guest("debian");
    await g.up();
    expect(g.run("systemctl", "--failed", "--no-legend", "--plain")).toBe("");
    expect(g.run("systemctl", "is-system-running", "--wait")).toBe("running");
    expect(g.run("cat", "/etc/resolv.conf")).toBe("nameserver 8.8.8.8");
    expect(g.run("hostname")).toBe("debian");
    expect(await g.down()).toBeLessThan(10_000);
  },
  BOOT_MS,
);
