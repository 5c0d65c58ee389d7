// A container that is composed here, from a list of modules and a program that need not be the product's: to show what
// an attack does where something is missing. It starts as src/cmld/container.ts starts one.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Container } from "../../src/cmld/container.ts";
import { program as execProgram, type User } from "../../src/cmld/exec.ts";
import { Ledger } from "../../src/cmld/ledger.ts";
import type { Module, Process, Start } from "../../src/cmld/module.ts";
import { childGroupOf } from "../../src/cmld/modules/cgroups.ts";
import { program } from "../../src/cmld/program.ts";
import { collected, launch } from "../../src/run/launch.ts";
import {
  AT_FDCWD,
  O_DIRECTORY,
  O_RDONLY,
  O_WRONLY,
  openat,
  read,
  SOCK_STREAM,
  signal,
} from "../../src/sys/calls.ts";
import { Fd, pair, pipe } from "../../src/sys/fd.ts";
import { mem } from "../../src/sys/mem.ts";
import { now } from "../../src/sys/now.ts";
import { readable } from "../../src/sys/poll.ts";
import { kill, SIGKILL } from "../../src/sys/process.ts";
import { product, type Recipe, Said, type World } from "../host/world.ts";
import type { How, Weak } from "./attack.ts";

const ROOT: User = { uid: 0, gid: 0, groups: [], name: "root", home: "/" };

export class Composed {
  private constructor(
    readonly process: Process,
    readonly said: Said,
    private readonly start: Start,
    private readonly ledger: Ledger,
    private readonly weak: Weak,
  ) {}

  static async begin(world: World, recipe: Recipe, weak: Weak, extra?: Module): Promise<Composed> {
    const modules = weak.modules?.(product()) ?? product();
    const container = world.container(recipe);
    const { start: s, ledger } = await startOf(world, container);
    const said = new Said();
    const all = [...modules, ...(extra ? [extra] : []), said.module];
    try {
      for (const m of all) await m.prepare?.(s);
      mkdirSync(childGroupOf(s), { recursive: true }); // without the module that makes it
      const [ours, theirs] = pair(SOCK_STREAM);
      using gate = ours;
      using far = theirs;
      using group = new Fd(now(openat(AT_FDCWD, childGroupOf(s), O_RDONLY | O_DIRECTORY)));
      const flags = all.reduce((sum, m) => sum | (m.namespaces?.(s) ?? 0n), 0n);
      const child = launch(
        (report) => {
          const ops = program(s, all, { ours: gate.n, theirs: far.n }, report);
          return weak.program?.(ops) ?? ops;
        },
        flags,
        group.n,
        undefined,
        weak.owner ?? s.uidStart,
      );
      const execed = child.started();
      execed.catch(() => {}); // judged below
      try {
        far.close();
        for (const m of all) await m.attach?.(s, child);
        now(signal(gate.n));
        await readable(gate);
        if (now(read(gate.n, mem(1))) !== 1) await execed;
        for (const m of all) await m.ready?.(s, child);
        now(signal(gate.n));
        await execed;
        for (const m of all) await m.started?.(s, child);
      } catch (e) {
        kill(child.pidfd, SIGKILL);
        throw e;
      }
      return new Composed(child, said, s, ledger, weak);
    } catch (e) {
      said.close();
      await ledger.release();
      throw e;
    }
  }

  /** `control run` with the weak program, without its care for slow readers. */
  async run(argv: readonly string[], how: How = {}): Promise<string> {
    const group = join(childGroupOf(this.start), "cgroup.procs");
    using to = new Fd(now(openat(AT_FDCWD, group, O_WRONLY)));
    const [input, output] = [pipe(), pipe()];
    const stdio = { input: input.read.n, output: output.write.n };
    const target = {
      name: this.start.name,
      ...this.process,
      cgroup: childGroupOf(this.start),
      uidStart: this.start.uidStart,
      grant: { time: false, modules: false },
    };
    const user = how.user === undefined ? ROOT : { ...ROOT, uid: Number(how.user), gid: Number(how.user) };
    const plan = { user, argv, env: ["PATH=/bin"], cwd: how.cwd ?? "/", stdio };
    const child = launch(
      (report) => {
        const ops = execProgram(target, plan, to.n, report);
        return this.weak.exec?.(ops, this.process.pid, how) ?? ops;
      },
      0n,
      -1,
      this.process.pidfd,
    );
    const execed = child.started();
    execed.catch(() => {}); // judged below
    for (const fd of [input.read, input.write, output.write]) fd.close();
    using end = output.read;
    let text = "";
    for await (const chunk of Bun.file(end.n).stream()) text += Buffer.from(chunk).toString();
    await (this.weak.collect ?? collected)(child.pidfd);
    child.pidfd.close();
    await execed;
    return text;
  }

  /** Everything that its init has said, when it has ended by itself. */
  async text(): Promise<string> {
    const text = await this.said.text();
    await this.end();
    return text;
  }

  async end(): Promise<void> {
    kill(this.process.pidfd, SIGKILL);
    await collected(this.process.pidfd);
    await this.ledger.release();
    this.process.pidfd.close();
  }
}

async function startOf(world: World, c: Container): Promise<{ start: Start; ledger: Ledger }> {
  const os = c.around.bind(c.config);
  const ledger = await Ledger.open(join(world.host.run, "ledger"), {
    uuid: c.uuid,
    guestos: os.config.name,
    guestosVersion: os.config.version,
    uidStart: c.uidStart,
  });
  const start: Start = {
    uuid: c.uuid,
    name: c.config.name,
    isC0: false,
    setup: false,
    config: c.config,
    guestos: os.config,
    osDir: os.directory,
    imageDir: c.imageDir,
    host: world.host,
    uidStart: c.uidStart,
    owned: ledger,
    key: undefined,
    keep: () => {},
    kept: () => undefined,
    forget: () => {},
    booted: () => {},
    end: () => {},
    log: (line) => void world.log.push(line),
  };
  return { start, ledger };
}
