// The guest's helper (ffi/cservice.c) as guests run it: in a pid, mount and host name space of its own, with a root
// that holds busybox and nothing else. The other end of its socket is played here, byte by byte, so that this test
// does not depend on cmld's own reading of the protocol.
import { afterEach, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { Reader, Writer } from "protobufjs";

const [SHUTDOWN, NAME, DNS, NOTIFY, RECORD] = [1, 17, 18, 19, 20]; // c_service.proto, to the guest
const [BOOTED, NAME_REQ, DNS_REQ, ACK] = [1, 18, 19, 21]; // from the guest

const frame = (message: Uint8Array): Uint8Array => {
  const out = new Uint8Array(4 + message.length);
  new DataView(out.buffer).setUint32(0, message.length);
  out.set(message, 4);
  return out;
};
const code = (n: number) => Writer.create().uint32(8).uint32(n);
const name = (text: string) => code(NAME).uint32(106).string(text).finish();
const dns = (text: string) => code(DNS).uint32(114).string(text).finish();

/** Wait until `look` gives something; the test's own limit ends it. */
async function until<T>(look: () => T | undefined | false): Promise<T> {
  for (;;) {
    const got = look();
    if (got !== undefined && got !== false) return got;
    await Bun.sleep(5); // the kernel tells nobody when this becomes true
  }
}

class Guest {
  readonly root = mkdtempSync(`${tmpdir()}/cs-`);
  readonly path = `${this.root}/run/socket/cml-service`;
  readonly heard: string[] = [];
  connections = 0;
  log = "";
  #server: ReturnType<typeof Bun.listen> | undefined;
  #peer: { write(b: Uint8Array): number; end(): void } | undefined;
  #process: Bun.Subprocess | undefined;

  constructor() {
    for (const dir of ["bin", "sbin", "etc", "run/socket", "var", "proc", "dev", "tmp"])
      mkdirSync(`${this.root}/${dir}`, { recursive: true });
    copyFileSync("/bin/busybox", `${this.root}/bin/busybox`);
    copyFileSync("out/cservice", `${this.root}/sbin/cservice`);
    chmodSync(`${this.root}/sbin/cservice`, 0o755);
    Bun.spawnSync(["mknod", "-m", "666", `${this.root}/dev/null`, "c", "1", "3"]);
    for (const link of ["sh", "sleep", "cat", "true", "hostname"])
      symlinkSync("busybox", `${this.root}/bin/${link}`);
    symlinkSync("../bin/busybox", `${this.root}/sbin/init`);
    this.write("etc/hosts", "127.0.0.1\tlocalhost\n");
    this.write("etc/inittab", "::sysinit:/bin/true\n");
  }

  write = (file: string, text: string): void => writeFileSync(`${this.root}/${file}`, text);
  read = (file: string): string => readFileSync(`${this.root}/${file}`, "utf8");

  listen(): void {
    let rest = Buffer.alloc(0);
    this.#server = Bun.listen({
      unix: this.path,
      socket: {
        open: (socket) => {
          this.connections++;
          this.#peer = socket;
        },
        data: (_, chunk) => {
          for (rest = Buffer.concat([rest, chunk]); rest.length >= 4; ) {
            const length = rest.readUInt32BE();
            if (rest.length < 4 + length) break;
            const reader = Reader.create(rest.subarray(4, 4 + length));
            reader.uint32();
            let said = String(reader.uint32());
            if (reader.pos < reader.len) said += ` ${reader.uint32() >>> 3} ${reader.string()}`;
            this.heard.push(said);
            rest = rest.subarray(4 + length);
          }
        },
      },
    });
  }

  deafen(): void {
    this.#server?.stop(true);
    this.#server = undefined;
  }

  send = (message: Uint8Array): void => void this.#peer!.write(frame(message));
  sendRaw = (bytes: Uint8Array): void => void this.#peer!.write(bytes);
  hang = (): void => this.#peer!.end();

  /** The next thing the guest says. */
  async hears(): Promise<string> {
    return until(() => this.heard.shift());
  }

  async configure(): Promise<void> {
    expect(await this.hears()).toBe(`${NAME_REQ}`);
    this.send(name("web"));
    expect(await this.hears()).toBe(`${DNS_REQ}`);
    this.send(dns("10.0.0.1"));
    expect(await this.hears()).toBe(`${BOOTED}`);
  }

  /** Start argv as pid 1 of the guest. */
  run(...argv: string[]): void {
    const unshare = [
      "unshare",
      "-m",
      "-u",
      "-p",
      "-i",
      "--fork",
      "--kill-child",
      `--mount-proc=${this.root}/proc`,
    ];
    this.#process = Bun.spawn([...unshare, "chroot", this.root, ...argv], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env: { PATH: "/sbin:/bin", LC_ALL: "C" },
    });
    const collect = async (from: ReadableStream<Uint8Array>) => {
      for await (const chunk of from) this.log += Buffer.from(chunk).toString();
    };
    void collect(this.#process.stdout as ReadableStream<Uint8Array>);
    void collect(this.#process.stderr as ReadableStream<Uint8Array>);
  }

  /** What pid 1's children are, seen from outside: [pid, name, state]. */
  processes(): [number, string, string][] {
    const all: [number, string, string][] = [];
    for (const walk = [this.#process!.pid]; walk.length; ) {
      const pid = walk.shift()!;
      try {
        const [, comm, state] = /^\d+ \((.*)\) (\S)/s.exec(readFileSync(`/proc/${pid}/stat`, "utf8"))!;
        all.push([pid, comm!, state!]);
        const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
        walk.push(...children.split(" ").filter(Boolean).map(Number));
      } catch {} // it has just ended
    }
    return all.slice(1);
  }

  init = (): number => this.processes()[0]![0];
  exited = (): Promise<number> => this.#process!.exited;

  end(): void {
    this.deafen();
    this.#process?.kill("SIGKILL"); // --kill-child: pid 1 goes with it
    rmSync(this.root, { recursive: true, force: true });
  }
}

const guests: Guest[] = [];
function guest(): Guest {
  const g = new Guest();
  guests.push(g);
  return g;
}
afterEach(() => guests.splice(0).forEach((g) => void g.end()));

test("it is small, static and has no executable stack", () => {
  for (const file of ["out/x86_64/cservice", "out/aarch64/cservice"])
    expect(statSync(file).size).toBeLessThan(32768);
});

test("init: name, name server, then pid 1 becomes /sbin/init, then booted", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice", "init");
  expect(await g.hears()).toBe(`${NAME_REQ}`);
  g.send(name("web"));
  expect(await g.hears()).toBe(`${DNS_REQ}`);
  expect(readlinkSync(`/proc/${g.init()}/exe`)).toEndWith("/sbin/cservice");
  g.send(dns("10.0.0.1"));
  expect(await g.hears()).toBe(`${BOOTED}`);
  expect(readlinkSync(`/proc/${g.init()}/exe`)).toEndWith("/bin/busybox");
  expect(g.read("etc/hosts")).toBe("127.0.0.1\tlocalhost\n127.0.1.1\t web\n");
  expect(g.read("etc/hosts.stock")).toBe("127.0.0.1\tlocalhost\n");
  expect(g.read("etc/resolv.conf")).toBe("nameserver 10.0.0.1\n");
  const seen = Bun.spawnSync(["nsenter", "-t", String(g.init()), "-u", "hostname"]);
  expect(seen.stdout.toString()).toBe("web\n");
});

test("SHUTDOWN powers off a busybox init", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice", "init");
  await g.configure();
  g.send(code(SHUTDOWN).finish());
  expect(await g.exited()).toBeGreaterThan(0); // reboot(2) in a pid namespace ends its init by a signal
}, 20_000);

test("SHUTDOWN before pid 1 has become init ends it", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice", "init");
  expect(await g.hears()).toBe(`${NAME_REQ}`);
  g.send(code(SHUTDOWN).finish());
  expect(await g.exited()).toBe(0);
});

test("started by another init as an ordinary service, it configures, returns and can stop the guest", async () => {
  const g = guest();
  g.write("etc/inittab", "::sysinit:/sbin/cservice\n::sysinit:/bin/sh -c 'hostname >/tmp/seen'\n");
  g.listen();
  g.run("/sbin/init");
  await g.configure();
  await until(() => existsSync(`${g.root}/tmp/seen`) && g.read("tmp/seen") === "web\n");
  g.send(code(SHUTDOWN).finish());
  await g.exited();
}, 20_000);

test("configure: name and name server, and no more than that", async () => {
  const g = guest();
  g.write("etc/inittab", "::wait:/sbin/cservice configure\n::wait:/bin/sh -c 'hostname >/tmp/seen'\n");
  g.listen();
  g.run("/sbin/init");
  expect(await g.hears()).toBe(`${NAME_REQ}`);
  g.send(name("web"));
  expect(await g.hears()).toBe(`${DNS_REQ}`);
  g.send(dns("10.0.0.1"));
  await until(() => existsSync(`${g.root}/tmp/seen`) && g.read("tmp/seen") === "web\n");
  expect(g.heard).toEqual([]);
  expect(g.processes().filter(([, comm]) => comm === "cservice")).toEqual([]);
});

test("PROGRAM: its exit status is the guest's, and orphans are reaped meanwhile", async () => {
  const g = guest();
  g.write(
    "run.sh",
    "for i in 1 2 3 4 5; do (sh -c 'exit 3' &); done; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 42\n",
  );
  g.listen();
  g.run("/sbin/cservice", "/bin/sh", "/run.sh");
  await g.configure();
  await until(() => g.processes().every(([, , state]) => state !== "Z") && g.processes().length <= 3);
  g.write("tmp/go", "");
  expect(await g.exited()).toBe(42);
});

test("PROGRAM: a program without a slash is looked for in PATH; a missing one says so", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice", "true");
  expect(await g.hears()).toBe(`${NAME_REQ}`);
  g.send(name("web"));
  expect(await g.hears()).toBe(`${DNS_REQ}`);
  g.send(dns("10.0.0.1"));
  expect(await g.exited()).toBe(0);
  const h = guest();
  h.listen();
  h.run("/sbin/cservice", "nothing-here");
  expect(await h.hears()).toBe(`${NAME_REQ}`);
  h.send(name("web"));
  expect(await h.hears()).toBe(`${DNS_REQ}`);
  h.send(dns("10.0.0.1"));
  expect(await h.exited()).toBe(127);
  expect(h.log).toContain("cservice: nothing-here: errno 2");
});

test("PROGRAM: a daemon that outlives the program keeps the guest alive", async () => {
  const g = guest();
  g.write("run.sh", "(while [ ! -e /tmp/go ]; do sleep 0.05; done) & exit 9\n");
  g.listen();
  g.run("/sbin/cservice", "/bin/sh", "/run.sh");
  await g.configure();
  const before = await until(() => {
    const parent = g.processes().find(([, comm]) => comm === "sh")?.[0];
    return (
      parent !== undefined && readFileSync(`/proc/${parent}/stat`, "utf8").includes(` ${g.init()} `) && parent
    );
  });
  expect(before).toBeGreaterThan(0);
  g.write("tmp/go", "");
  expect(await g.exited()).toBe(9);
});

test("PROGRAM: signals are forwarded", async () => {
  const g = guest();
  g.write("run.sh", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done\n");
  g.listen();
  g.run("/sbin/cservice", "/bin/sh", "/run.sh");
  await g.configure();
  await until(() => g.log.includes("ready"));
  process.kill(g.init(), "SIGTERM");
  expect(await g.exited()).toBe(7);
});

test("no program: idles until told to stop", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  g.send(code(SHUTDOWN).finish());
  expect(await g.exited()).toBe(0);
});

test("a program that ignores SIGTERM is killed after the grace time; without cmld the fallbacks are taken", async () => {
  const stubborn = guest();
  stubborn.write("run.sh", "trap '' TERM; echo ready; while :; do sleep 1; done\n");
  stubborn.listen();
  stubborn.run("/sbin/cservice", "/bin/sh", "/run.sh");
  await stubborn.configure();
  await until(() => stubborn.log.includes("ready"));
  const start = performance.now();
  stubborn.send(code(SHUTDOWN).finish());
  const alone = guest();
  alone.run("/sbin/cservice", "init");
  expect(await stubborn.exited()).toBe(0);
  expect(performance.now() - start).toBeGreaterThan(9_900);
  await until(() => readlinkSync(`/proc/${alone.init()}/exe`).endsWith("/bin/busybox"));
  expect(alone.read("etc/hosts")).toEndWith("127.0.1.1\t localhost\n");
  expect(alone.read("etc/resolv.conf")).toBe("nameserver 8.8.8.8\n");
  alone.listen(); // a late cmld still learns that the guest has booted
  expect(await alone.hears()).toBe(`${BOOTED}`);
}, 40_000);

test("unfit names and servers become the fallbacks; links are not followed", async () => {
  const g = guest();
  g.write("etc/target", "kept\n");
  symlinkSync("target", `${g.root}/etc/resolv.conf`);
  g.listen();
  g.run("/sbin/cservice");
  expect(await g.hears()).toBe(`${NAME_REQ}`);
  g.send(name("web\n6.6.6.6 evil"));
  expect(await g.hears()).toBe(`${DNS_REQ}`);
  g.send(dns("1.1.1.1\nsearch evil"));
  expect(await g.hears()).toBe(`${BOOTED}`);
  expect(g.read("etc/hosts")).toEndWith("127.0.1.1\t localhost\n");
  expect(g.read("etc/target")).toBe("kept\n");
  expect(g.log).toContain("/etc/resolv.conf is a link");
});

const record = (text: string) => {
  const meta = Writer.create().uint32(10).string("reason").uint32(18).string('a "b"\n\u00e4').finish();
  const body = Writer.create()
    .uint32(8)
    .int64(1_700_000_000)
    .uint32(18)
    .string(text)
    .uint32(34)
    .bytes(meta)
    .finish();
  return code(RECORD).uint32(130).bytes(body).finish();
};

test("audit: acknowledges with zeros, then with the hash of each record, which is kept as text", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  g.send(code(NOTIFY).uint32(136).uint32(1000).finish());
  expect(await g.hears()).toBe(`${ACK} 17 ${"0".repeat(128)}`);
  let last = "";
  for (const text of ["SSA.CMLD.CONTAINER_MGMT.container-start", "x".repeat(300), ""]) {
    const message = record(text);
    last = createHash("sha512").update(message).digest("hex");
    g.send(message);
    expect(await g.hears()).toBe(`${ACK} 17 ${last}`);
  }
  g.send(code(NOTIFY).finish()); // the acknowledgement may have been lost: the same again
  expect(await g.hears()).toBe(`${ACK} 17 ${last}`);
  const text = g.read("var/log/cmld_audit/audit.log");
  expect(text).toStartWith(`timestamp: 1700000000
type: "SSA.CMLD.CONTAINER_MGMT.container-start"
meta {
  key: "reason"
  value: "a \\"b\\"\\n\\303\\244"
}
timestamp: 1700000000
type: "xxx`);
  expect(text.match(/timestamp/g)).toHaveLength(3);
  expect(statSync(`${g.root}/var/log/cmld_audit/audit.log`).mode & 0o777).toBe(0o600);
});

test("SHA-512 is right at every length around a block's edge", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  for (let n = 0; n <= 260; n += n < 130 ? 1 : 13) {
    const message = record("y".repeat(n));
    g.send(message);
    expect(await g.hears()).toBe(`${ACK} 17 ${createHash("sha512").update(message).digest("hex")}`);
  }
});

test("a record that cannot be kept is not acknowledged", async () => {
  const g = guest();
  g.write("var/log", "a file where the folder should be");
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  g.send(record("lost"));
  g.send(code(NOTIFY).finish());
  expect(await g.hears()).toBe(`${ACK} 17 ${"0".repeat(128)}`);
  expect(g.log).toContain("cservice: /var/log/cmld_audit/audit.log: errno 20");
});

test("a new cmld finds the guest again, and meanwhile the guest does not spin", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  g.deafen();
  await until(() => g.log.includes("cml-service: errno"));
  const ticks = () => {
    const fields = readFileSync(`/proc/${g.init()}/stat`, "utf8").split(") ")[1]!.split(" ");
    return Number(fields[11]) + Number(fields[12]);
  };
  const before = ticks();
  await Bun.sleep(1000); // the time over which it is watched
  expect(ticks() - before).toBeLessThanOrEqual(1);
  g.listen();
  expect(await g.hears()).toBe(`${BOOTED}`);
  g.send(code(SHUTDOWN).finish());
  expect(await g.exited()).toBe(0);
}, 15_000);

test("whatever comes from the socket, it lives on", async () => {
  const g = guest();
  g.listen();
  g.run("/sbin/cservice");
  await g.configure();
  g.sendRaw(Uint8Array.of(0x7f, 0xff, 0xff, 0xff, 1, 2, 3)); // a length beyond the limit: the connection ends
  expect(await g.hears()).toBe(`${BOOTED}`);
  let seed = 20261121;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >> 8) % below;
  };
  const good = record("fuzz");
  for (let i = 0; i < 300; i++) {
    const bytes = new Uint8Array(good);
    for (let k = random(6); k >= 0; k--) bytes[random(bytes.length)] = random(256);
    if (bytes[0] === 8 && bytes[1] === SHUTDOWN) bytes[1] = RECORD;
    g.send(bytes.subarray(0, random(8) ? bytes.length : random(bytes.length)));
    g.send(code(NOTIFY).finish());
    expect(await g.hears()).toStartWith(`${ACK} 17 `);
    g.heard.length = 0;
  }
  expect(readdirSync(`/proc/${g.init()}/fd`).length).toBeLessThan(8);
  expect(g.processes()[0]![1]).toBe("cservice");
}, 60_000);
