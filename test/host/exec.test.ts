// Commands in a running container: what they are given, what they are not, and whoever reads slowly or goes away.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { GuestOSMount } from "../../proto/gen/proto.js";
import type { Container } from "../../src/cmld/container.ts";
import {
  exec,
  INPUT_MAX,
  type Request,
  type Result,
  type Session,
  type Target,
} from "../../src/cmld/exec.ts";
import { Supervisor } from "../../src/cmld/modules/seccomp/supervisor.ts";
import { UID_START, until, World } from "./world.ts";

const EMPTY = GuestOSMount.Type.EMPTY;
let world: World;
let web: Container;
let target: Target;

const targetOf = (c: Container): Target => ({
  name: c.config.name,
  pid: c.process!.pid,
  pidfd: c.process!.pidfd,
  cgroup: join(c.group, "child"),
  uidStart: UID_START,
  grant: { time: false, modules: false },
  supervisor: Supervisor.of(c.uuid)!,
});

beforeAll(async () => {
  world = World.open();
  world.image("people", (root) => {
    writeFileSync(join(root, "passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n");
    writeFileSync(join(root, "group"), "root:x:0:\nweb:x:33:\nlogs:x:4:web,other\n");
  });
  web = world.container({
    init: ["/bin/sleep", "100000"],
    mounts: [
      { mount_point: "/" },
      { mount_point: "/etc", image_file: "people" },
      { mount_point: "/tmp", image_file: "tmp", fs_type: "tmpfs", mount_type: EMPTY },
    ],
  });
  await web.start({ setup: false });
  target = targetOf(web);
});
afterAll(async () => {
  await web.kill();
  await world[Symbol.asyncDispose]();
});

/** A client that keeps what it gets. */
class Reader {
  readonly #done = Promise.withResolvers<Result>();
  readonly ended = this.#done.promise;
  readonly session: Session;
  text = "";
  bytes = 0;
  over = false;
  room = true;
  /** Take no more after so many bytes. */
  patience = Number.POSITIVE_INFINITY;

  constructor(request: Partial<Request> & Pick<Request, "argv">, at = target) {
    this.session = exec(
      at,
      { pty: false, env: [], ...request },
      {
        output: (piece) => {
          this.bytes += piece.length;
          if (this.bytes < 1_000_000) this.text += Buffer.from(piece).toString();
          return this.bytes < this.patience;
        },
        writable: () => {
          this.room = true;
        },
        ended: (result) => {
          this.over = true;
          this.#done.resolve(result);
        },
      },
    );
  }
  until(look: () => boolean): Promise<void> {
    return until(() => (look() ? [] : [`${this.bytes} bytes: ${this.text.slice(-200)}`]));
  }
}

const sh = (script: string, more: Partial<Request> = {}, at = target): Reader =>
  new Reader({ argv: ["/bin/sh", "-c", script], ...more }, at);

async function said(script: string, more: Partial<Request> = {}): Promise<string> {
  const r = sh(script, more);
  expect(await r.ended).toEqual({ status: 0 });
  return r.text;
}

const field = (status: string, name: string): string =>
  status.match(new RegExp(`^${name}:\\s*(\\S+)`, "m"))![1]!;

test("the container's namespaces, group, filter, capabilities and limits", async () => {
  const ours = await said(
    "cat /proc/self/status; cd /proc/self/ns; for n in *; do readlink $n; done; cat /proc/self/cgroup",
  );
  const inits = await said("cat /proc/1/status; cd /proc/1/ns; for n in *; do readlink $n; done");
  for (const name of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs", "Groups"])
    expect([name, ours.match(new RegExp(`^${name}:.*`, "m"))?.[0]]).toEqual([
      name,
      inits.match(new RegExp(`^${name}:.*`, "m"))?.[0],
    ]);
  expect([field(ours, "CapInh"), field(ours, "CapAmb"), field(ours, "Seccomp")]).toEqual([
    "0000000000000000",
    "0000000000000000",
    "2",
  ]);
  const spaces = (text: string) => text.match(/^\w+:\[\d+\]$/gm);
  expect(spaces(ours)).toEqual(spaces(inits));
  expect(ours).toContain("0::/cmld-injected\n");
  expect(await said("ulimit -n; ulimit -c; cat /proc/self/oom_score_adj; umask")).toBe("1024\n0\n0\n0022\n");
});

test("no descriptor but three, no environment but what was said, / as its folder", async () => {
  for (const pty of [false, true]) {
    const text = await said("cd /proc/self/fd; echo *; cd /; pwd", { pty });
    expect(text.replaceAll("\r", "")).toBe("0 1 2 3\n/\n"); // 3: the shell reads the directory
  }
  const variables = async (more: Partial<Request>) => {
    const r = new Reader({ argv: ["busybox", "env"], ...more });
    expect(await r.ended).toEqual({ status: 0 });
    return r.text.trim().split(/\r?\n/).sort();
  };
  const PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  expect(await variables({})).toEqual(["HOME=/root", PATH, "USER=root"]);
  expect(await variables({ pty: true, env: ["PATH=/bin", "A=b=c"] })).toEqual([
    "A=b=c",
    "HOME=/root",
    "PATH=/bin",
    "TERM=xterm",
    "USER=root",
  ]);
  expect(await said("pwd", { cwd: "/tmp" })).toBe("/tmp\n");
});

test("users by name and number; nobody but root keeps a capability", async () => {
  expect(await said("id -u; id -g; id -G; pwd; echo $HOME $USER", { user: "web" })).toBe(
    "33\n33\n33 4\n/srv\n/srv web\n",
  );
  expect(await said("id -u; id -g; id -G; pwd", { user: "1000:logs" })).toBe("1000\n4\n4\n/\n");
  expect(field(await said("cat /proc/self/status", { user: "web" }), "CapEff")).toBe("0000000000000000");
  expect(await said("echo x > /dev/stdout; tty", { user: "web", pty: true })).toBe("x\r\n/dev/pts/0\r\n");
  expect(await said("echo x > /dev/stdout", { user: "web" })).toBe("x\n");
  expect(await sh("true", { user: "nobody" }).ended).toEqual({
    status: 126,
    error: 'user "nobody": not in the container\'s /etc/passwd',
  });
});

test("its end: status, signal, a command or a folder that is not there", async () => {
  expect(await sh("exit 42").ended).toEqual({ status: 42 });
  expect(await sh("kill -TERM $$").ended).toEqual({ signal: 15 });
  expect(await sh("kill -TERM $$", { pty: true }).ended).toEqual({ signal: 15 });
  expect(await new Reader({ argv: ["no-such-command"] }).ended).toEqual({
    status: 127,
    error: "no-such-command: no such command",
  });
  expect(await new Reader({ argv: ["/bin/no-such"] }).ended).toEqual({
    status: 127,
    error: "/bin/no-such: no such command",
  });
  expect(await new Reader({ argv: ["/etc/passwd"] }).ended).toMatchObject({ status: 126 });
  expect(await sh("true", { cwd: "/nowhere" }).ended).toMatchObject({ status: 127 });
  expect(await sh("true", { cwd: "/nowhere", pty: true }).ended).toMatchObject({ status: 127 });
  const own = await new Reader({ argv: ["/proc/self/exe", "x"] }).ended;
  expect(own).toMatchObject({ status: 126, error: expect.stringContaining("ELOOP") });
  expect(() => new Reader({ argv: [] })).toThrow("no command");
  expect(() => new Reader({ argv: ["a\0b"] })).toThrow("NUL");
  expect(() => new Reader({ argv: ["a"], env: ["x"] })).toThrow("not NAME=value");
  expect(() => new Reader({ argv: ["a", "b".repeat(2 ** 20)] })).toThrow("at most");
});

test("a terminal of the container: size, resize, Ctrl-C, Ctrl-D", async () => {
  const shell = new Reader({ argv: ["/bin/sh"], pty: true, rows: 33, cols: 99, env: ["PS1=$ "] });
  await shell.until(() => shell.text.includes("$ "));
  const type = async (line: string, answer: string) => {
    shell.text = "";
    shell.session.input(Buffer.from(line));
    await shell.until(() => shell.text.includes(answer));
  };
  await type("busybox stty size\n", "33 99\r\n");
  shell.session.resize(50, 120);
  await type("busybox stty size; tty\n", "50 120\r\n/dev/pts/");
  await type("echo x$((1+1)); sleep 1000; echo after\n", "x2\r\n");
  await until(() => (running().includes("sleep 1000") ? [] : ["no sleep"])); // in the foreground by its execve
  await type("\x03", "$ ");
  await type("echo $?\n", "130\r\n");
  shell.session.endInput();
  expect(await shell.ended).toEqual({ status: 0 });
  expect(shell.text).not.toContain("after");
});

test("input: all of it arrives, its end too; what nobody reads is bounded", async () => {
  const sum = sh("busybox md5sum");
  const piece = Buffer.alloc(50_000, "0123456789");
  const hash = new Bun.CryptoHasher("md5");
  for (let i = 0; i < 100; i++) {
    hash.update(piece);
    sum.room = sum.session.input(piece);
    await sum.until(() => sum.room);
  }
  sum.session.endInput();
  await sum.ended;
  expect(sum.text).toBe(`${hash.digest("hex")}  -\n`);

  const deaf = sh("sleep 1000");
  for (let sent = 0; sent < INPUT_MAX + 200_000; sent += piece.length) deaf.room = deaf.session.input(piece);
  expect(deaf.room).toBe(false);
  expect(await deaf.ended).toMatchObject({ error: expect.stringContaining("nobody reads") });
});

test("output is complete before the end, also for a reader that pauses", async () => {
  for (const pty of [false, true]) {
    const end = pty ? "\r\n" : "\n";
    const want = Array.from({ length: 40_000 }, (_, i) => `${i + 1}${end}`).join("");
    const eager = sh("busybox seq 1 40000", { pty });
    await eager.ended;
    expect([pty, eager.text === want]).toEqual([pty, true]);

    const lazy = sh("busybox seq 1 40000", { pty });
    lazy.patience = 1;
    while (!lazy.over) {
      const had = lazy.bytes;
      await Bun.sleep(lazy.bytes < 20_000 ? 1 : 0); // slower than the command
      if (lazy.bytes === had) lazy.session.resume();
    }
    expect([pty, lazy.text.length, lazy.text === want]).toEqual([pty, want.length, true]);

    // The command is long gone when the rest is read. Its words fit one page: all that a pipe holds where the user has
    // many (pipe(7), pipe-user-pages-soft).
    const late = sh("busybox seq 1 900", { pty });
    late.patience = 1;
    await late.until(() => late.bytes > 0);
    await nobody("seq");
    late.patience = Number.POSITIVE_INFINITY;
    late.session.resume();
    await late.ended;
    expect([pty, late.text === want.slice(0, late.text.length), late.text.split("\n").length]).toEqual([
      pty,
      true,
      901,
    ]);
  }
});

test("a reader that stands still costs no memory", async () => {
  for (const pty of [false, true]) {
    const flood = sh("busybox yes", { pty });
    flood.patience = 100_000;
    await flood.until(() => flood.bytes >= 100_000);
    Bun.gc(true);
    const before = process.memoryUsage.rss();
    const had = flood.bytes;
    await Bun.sleep(500); // nothing to wait for: nothing may happen
    expect(flood.bytes).toBe(had);
    expect(process.memoryUsage.rss() - before).toBeLessThan(4 * 2 ** 20);
    flood.patience = Number.POSITIVE_INFINITY;
    flood.session.resume();
    await flood.until(() => flood.bytes > 5_000_000);
    Bun.gc(true);
    expect(process.memoryUsage.rss() - before).toBeLessThan(32 * 2 ** 20);
    flood.session.hangup();
  }
  await nobody("yes");
});

const running = (): string[] =>
  readdirSync("/proc")
    .filter((n) => /^\d+$/.test(n))
    .flatMap((n) => {
      try {
        const group = readFileSync(`/proc/${n}/cgroup`, "utf8").match(/^0::(.*)$/m)![1]!;
        if (!group.includes(`${web.uuid}/child/cmld-injected`)) return [];
        const command = readFileSync(`/proc/${n}/cmdline`, "utf8").replaceAll("\0", " ").trim();
        return command === "" ? [] : [command]; // a zombie that its init does not reap
      } catch {
        return []; // it has just ended
      }
    });
const nobody = (word: string) => until(() => running().filter((c) => c.includes(word)));

test("a client that goes away takes its command with it, also one that ignores SIGHUP", async () => {
  for (const pty of [false, true]) {
    const polite = sh("trap 'echo bye > /tmp/hup; exit' HUP; echo up; while :; do sleep 0.01; done", { pty });
    await polite.until(() => polite.text.includes("up"));
    polite.session.hangup();
    await nobody("trap");
    expect([pty, await said("cat /tmp/hup; rm /tmp/hup")]).toEqual([pty, "bye\n"]);
    expect(polite.over).toBe(false);
  }
  const stubborn = sh("trap '' HUP; echo up; while :; do sleep 0.01; done");
  await stubborn.until(() => stubborn.text.includes("up"));
  stubborn.session.hangup();
  await nobody("trap");
}, 20_000);

test("many at once; none leaves a descriptor or a process here", async () => {
  const count = () => readdirSync("/proc/self/fd").length;
  const before = count();
  const all = Array.from({ length: 30 }, (_, i) => sh(`echo ${i}; exit ${i}`, { pty: i % 2 === 0 }));
  expect(await Promise.all(all.map((r) => r.ended))).toEqual(all.map((_, i) => ({ status: i })));
  expect(all.map((r) => Number(r.text))).toEqual(all.map((_, i) => i));
  await until(() => (count() > before ? [`${count()} descriptors, ${before} before`] : []));
  expect(running()).toEqual([]);
});

test("a child that lives on is not waited for, and cannot hold the end up", async () => {
  for (const pty of [false, true]) {
    const r = sh("busybox setsid sh -c 'busybox yes' & echo up", { pty });
    expect(await r.ended).toEqual({ status: 0 });
    r.session.hangup();
  }
  await said("busybox killall yes || true");
});

test("a frozen container: the client may go", async () => {
  await web.freeze();
  const waiting = sh("echo up", { pty: true });
  await Bun.sleep(20); // it is in the kernel's hands: nobody tells us that nothing happens
  expect(waiting.over).toBe(false);
  await web.unfreeze();
  expect(await waiting.ended).toEqual({ status: 0 });

  // It stands still with nothing of ours but what it needs: no socket, no lock, nobody's connection.
  await web.freeze();
  const given = sh("sleep 1000");
  const procs = join(target.cgroup, "cmld-injected/cgroup.procs");
  await until(() => (readFileSync(procs, "utf8") === "" ? ["nobody in the group"] : []));
  const held = readdirSync(`/proc/${readFileSync(procs, "utf8").trim()}/fd`);
  expect(held.length).toBeLessThanOrEqual(7); // three, the group, where to report a failure, the way of its listener
  given.session.hangup();
  await web.unfreeze();
  await nobody("sleep 1000");
}, 20_000);

test("the container's end is the end of its commands, and of new ones", async () => {
  const c = world.container({ init: ["/bin/sleep", "100000"], uidStart: UID_START });
  await c.start({ setup: false });
  const at = targetOf(c);
  const [one, two] = [sh("sleep 1000", {}, at), sh("echo up; sleep 1000", { pty: true }, at)];
  await two.until(() => two.text.includes("up"));
  await c.kill();
  expect(await Promise.all([one.ended, two.ended])).toEqual([{ signal: 9 }, { signal: 9 }]);
});

test("until its execve nobody in the container can look into the process", async () => {
  const spy = sh(
    "while :; do for p in /proc/[0-9]*; do ls -l $p/fd/ $p/cwd $p/exe; head -c 1 $p/environ $p/mem; done; done 2>/dev/null",
  );
  for (let i = 0; i < 40; i++) await sh("true", { pty: i % 2 === 0 }).ended;
  spy.session.hangup();
  expect(spy.bytes).toBeGreaterThan(1000);
  const seen = new Set(spy.text.match(/ -> .*/g)?.map((l) => l.slice(4).replace(/\d+/g, "N")));
  const own = // run/console/: where its init's words go
    /^(\/|\/bin\/busybox|\/dev\/(null|tty|pts\/N|pts\/ptmx)|pipe:\[N\]|\/proc(\/.*)?|.*\/run\/console\/[^/]+)$/;
  expect([...seen].filter((path) => !own.test(path))).toEqual([]);
});

test("a container whose /dev/pts is not a terminal's gets an error, and cmld goes on", async () => {
  const c = world.container({
    init: [
      "/bin/sh",
      "-c",
      "busybox mount -t tmpfs t /dev/pts; busybox mkfifo /dev/pts/ptmx; exec sleep 100000",
    ],
    uidStart: UID_START,
  });
  await c.start({ setup: false });
  const at = targetOf(c);
  await until(() =>
    readFileSync(`/proc/${at.pid}/cmdline`, "utf8").startsWith("sleep") ? [] : ["no sleep"],
  );
  expect(await sh("true", { pty: true }, at).ended).toMatchObject({
    status: 126,
    error: expect.stringContaining("ENOTTY"),
  });
  expect(await sh("true", {}, at).ended).toEqual({ status: 0 });
  await c.kill();
});
