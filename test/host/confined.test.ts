// The room of a daemon (src/run/confined.ts): what is in it and what cannot be done there, by a shell that tries; then scd
// in it, answering.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DaemonToToken, HashAlgo, TokenToDaemon } from "../../proto/gen/proto.js";
import { confined } from "../../src/run/confined.ts";
import { reap } from "../../src/run/launch.ts";
import { own } from "../../src/run/self.ts";
import { AF_UNIX, connectUnix, SOCK_NONBLOCK, SOCK_SEQPACKET, socket } from "../../src/sys/calls.ts";
import { Fd, pipe } from "../../src/sys/fd.ts";
import { bindAt } from "../../src/sys/listen.ts";
import { now } from "../../src/sys/now.ts";
import { receiving, sendPacket } from "../../src/sys/packets.ts";
import { ended } from "../../src/sys/poll.ts";
import { kill, SIGKILL } from "../../src/sys/process.ts";

const ID = 65537;
const base = mkdtempSync(join(tmpdir(), "confined-"));
const at = (...parts: string[]) => join(base, ...parts);
beforeAll(() => {
  for (const folder of ["tokens", "operatingsystems", "containers"]) mkdirSync(at(folder), { mode: 0o700 });
  writeFileSync(at("tokens/secret"), "ours", { mode: 0o600 });
  writeFileSync(at("operatingsystems/a.conf"), "signed", { mode: 0o600 });
  writeFileSync(at("outside"), "");
});
afterAll(() => rmSync(base, { recursive: true }));

async function room(argv: string[], name: string) {
  const listening = bindAt(at(name), 0o700, 8, SOCK_SEQPACKET);
  const out = pipe();
  const child = await confined({
    id: ID,
    argv,
    env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
    writable: [at("tokens")],
    readable: [at("operatingsystems"), at("containers")],
    listening,
    output: out.write.n,
    mortal: true,
  });
  out.write.close();
  listening.close();
  await child.started();
  return { child, out: out.read };
}

/** What a shell says that tries this inside, and its exit status. */
async function shell(script: string): Promise<string> {
  const { child, out } = await room(["/bin/sh", "-c", script], `shell-${Bun.hash(script)}`);
  const said = await new Response(Bun.file(out.n).stream()).text();
  await ended(child.pidfd);
  reap(child.pidfd);
  child.pidfd.close();
  out.close();
  return said.trim();
}

test("it sees its folders, the programs, and nothing else of the machine", async () => {
  expect(await shell(`cat ${at("tokens/secret")} ${at("operatingsystems/a.conf")}`)).toBe("ourssigned");
  expect(await shell("ls /")).toBe(
    [
      ...["bin", "dev", "lib", "lib64", "proc", "sbin", "sys", "tmp", "usr"],
      ...own("x").flatMap((p) => p.split("/")[1] ?? []),
      base.split("/")[1]!,
    ]
      .filter((n, i, all) => n !== "x" && n !== "scd" && all.indexOf(n) === i && n !== "")
      .filter((n) => n !== "sys" || statExists("/sys/devices/virtual/dmi/id"))
      .sort()
      .join("\n"),
  );
  expect(await shell("cat /etc/passwd 2>&1")).toContain("No such file");
  expect(await shell("ls /proc | grep -c '^[0-9]'; echo $$")).toContain("1");
  expect(await shell("cat /proc/net/dev | tail -n +3 | wc -l")).toBe("1"); // lo alone, and it is down
});

test("our own files may lie beneath /tmp: a clone in a temporary folder", async () => {
  const clone = mkdtempSync("/tmp/clone-");
  const sources = join(import.meta.dir, "../..");
  for (const name of [
    "src",
    "proto",
    "ffi",
    "test",
    "out/run.so",
    "package.json",
    "tsconfig.json",
    "bunfig.toml",
  ])
    cpSync(join(sources, name), join(clone, name), { recursive: true });
  symlinkSync(join(sources, "node_modules"), join(clone, "node_modules"));
  const there = Bun.spawn(
    [process.execPath, "test", "test/host/confined.test.ts", "-t", "scd answers from its room"],
    {
      cwd: clone,
      stdout: "pipe",
      stderr: "pipe",
    },
  );
  expect(await new Response(there.stderr).text()).toContain("1 pass\n");
  expect(await there.exited).toBe(0);
  rmSync(clone, { recursive: true });
}, 60_000);

const statExists = (path: string): boolean => statSync(path, { throwIfNoEntry: false }) !== undefined;

test("it writes its own folder and no other; what it writes belongs to root outside", async () => {
  await shell(`echo new > ${at("tokens/new")}`);
  expect(readFileSync(at("tokens/new"), "utf8")).toBe("new\n");
  expect(statSync(at("tokens/new")).uid).toBe(0);
  for (const path of [at("operatingsystems/x"), "/x", "/usr/x", "/tmp/../x", at("containers/x")])
    expect(await shell(`echo x 2>&1 > ${path}`)).toMatch(/Read-only|Permission|cannot create/);
  expect(
    await shell(
      `cp /bin/true ${at("tokens/true")} && chmod 755 ${at("tokens/true")} && ${at("tokens/true")} 2>&1 || echo refused`,
    ),
  ).toEndWith("refused");
});

test("it has no capability, no way to one, and no network", async () => {
  const status = await shell("cat /proc/self/status");
  for (const set of ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
    expect(status).toContain(`${set}:\t0000000000000000`);
  expect(status).toContain(`Uid:\t${ID}\t${ID}\t${ID}\t${ID}`);
  expect(status).toMatch(/Groups:\s*\n/);
  expect(status).toContain("NoNewPrivs:\t1");
  expect(status).toContain("Seccomp:\t2");
  expect(await shell("unshare -Ur true 2>&1 || echo refused")).toEndWith("refused");
  expect(await shell("mount -t tmpfs x /tmp 2>&1 || echo refused")).toEndWith("refused");
  expect(await shell("chroot /tmp true 2>&1 || echo refused")).toEndWith("refused");
  expect(await shell("busybox nc 127.0.0.1 1 2>&1 || echo refused")).toContain("refused");
  expect(await shell("ls /proc/self/fd | tr '\\n' ' '")).toBe("0 1 2 3 4"); // 3: its listening socket, 4: ls itself
});

test("scd answers from its room, and the next one serves whoever waited meanwhile", async () => {
  copyFileSync("test/data/signing/ssig_rootca.cert", at("tokens/ssig_rootca.cert"));
  const listening = bindAt(at("scd"), 0o700, 8, SOCK_SEQPACKET);
  const ask = () => {
    const fd = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
    now(connectUnix(fd.n, at("scd")));
    const file = (name: string) => readFileSync(`test/data/signing/${name}`);
    sendPacket(
      fd,
      DaemonToToken.encode({
        code: DaemonToToken.Code.CRYPTO_VERIFY_BUF,
        hash_algo: HashAlgo.SHA512,
        verify_data_buf: file("dmos-1.conf"),
        verify_sig_buf: file("dmos-1.sig"),
        verify_cert_buf: file("dmos-1.cert"),
      }),
    );
    return new Promise<string>((resolve) => {
      receiving(
        fd,
        ({ bytes }) => {
          const answer = TokenToDaemon.decode(bytes);
          resolve(`${TokenToDaemon.Code[answer.code]} ${answer.error_text ?? ""}`.trim());
        },
        (e) => {
          resolve(`closed ${e ?? ""}`.trim());
          fd.close();
        },
      );
    });
  };
  const start = async () => {
    const out = pipe();
    const child = await confined({
      id: ID,
      argv: own("scd", base),
      env: ["PATH=/usr/bin", "LC_ALL=C.UTF-8"],
      writable: [at("tokens")],
      readable: [at("operatingsystems"), at("containers")],
      listening,
      output: out.write.n,
      mortal: true,
    });
    out.write.close();
    await child.started();
    return { child, out: out.read };
  };
  const early = ask(); // before anybody listens to it
  const first = await start();
  expect(await early).toBe("CRYPTO_VERIFY_GOOD");
  kill(first.child.pidfd, SIGKILL);
  await ended(first.child.pidfd);
  reap(first.child.pidfd);
  const waiting = ask();
  const second = await start();
  expect(await waiting).toBe("CRYPTO_VERIFY_GOOD");
  kill(second.child.pidfd, SIGKILL);
  await ended(second.child.pidfd);
  reap(second.child.pidfd);
  listening.close();
}, 30_000);
