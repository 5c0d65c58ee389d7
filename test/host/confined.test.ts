// The room of a daemon (src/run/confined.ts): what is in it and what cannot be done there, by a shell that tries; then scd
// in it, answering.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { DaemonToToken, HashAlgo, TokenToDaemon } from "../../proto/gen/proto.js";
import { confined, fence, furnish } from "../../src/run/confined.ts";
import { collected, launch, reap } from "../../src/run/launch.ts";
import { own, ownFiles } from "../../src/run/self.ts";
import {
  AF_UNIX,
  connectUnix,
  dup3,
  execve,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  signal,
  socket,
} from "../../src/sys/calls.ts";
import { Fd, pipe } from "../../src/sys/fd.ts";
import { landlock, landlockAbi } from "../../src/sys/landlock.ts";
import { bindAt } from "../../src/sys/listen.ts";
import { now } from "../../src/sys/now.ts";
import { receiving, sendPacket } from "../../src/sys/packets.ts";
import { ended } from "../../src/sys/poll.ts";
import { kill, SIGKILL } from "../../src/sys/process.ts";

const ID = 65537;
/** Not in /tmp: a room has one of its own, where its fence lets it do everything. */
const base = mkdtempSync("/var/tmp/confined-");
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
  const { child, out } = await room(["/bin/sleep", "100"], "look");
  const there = readdirSync(`/proc/${child.pid}/root`).sort().join("\n");
  kill(child.pidfd, SIGKILL);
  await collected(child.pidfd);
  child.pidfd.close();
  out.close();
  expect(there).toBe(
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

/** What a shell says that is root of this host, sees all of it, and has nothing of the room but its fence, or not that. */
async function fenced(script: string, abi: number): Promise<string> {
  const out = pipe();
  const ours = ownFiles().map((path) => realpathSync(path));
  const folders = { writable: [at("tokens")], readable: [at("operatingsystems"), at("containers")] };
  const child = launch([
    ...(abi > 0 ? landlock(fence(folders, ours), abi) : []),
    ...[1, 2].map((n) => dup3(out.write.n, n)),
    execve("/bin/sh", ["sh", "-c", script], ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]),
  ]);
  out.write.close();
  await child.started();
  using from = out.read;
  const said = await new Response(Bun.file(from.n).stream()).text();
  await collected(child.pidfd);
  child.pidfd.close();
  return said.trim();
}

test("its fence alone holds: not by its user, its mounts or its namespaces", async () => {
  mkdirSync(at("point"));
  const tries = `
    cat ${at("outside")} && echo read; echo > ${at("operatingsystems/x")} && echo written; ls ${base} && echo listed
    mkdir ${at("new")} && echo made; ln ${at("outside")} ${at("tokens/linked")} && echo linked
    mknod ${at("tokens/null")} c 1 3 && echo node; mount -t tmpfs none ${at("point")} && echo mounted
    cp /bin/true ${at("tokens/program")} && chmod 755 ${at("tokens/program")} && ${at("tokens/program")} && echo run`;
  const may = `cat ${at("tokens/secret")} ${at("operatingsystems/a.conf")} && echo > ${at("tokens/x")} && echo yes`;
  const words = (text: string): string[] =>
    text.match(/^(read|written|listed|made|linked|node|mounted|run)$/gm) ?? [];
  const abi = landlockAbi();
  expect(abi).toBeGreaterThan(0);
  expect(words(await fenced(tries, abi))).toEqual([]);
  expect(await fenced(may, abi)).toBe("ourssignedyes");
  // Without it a root of the host may do all of that.
  const all = ["read", "written", "listed", "made", "linked", "node", "mounted", "run"];
  expect(words(await fenced(`${tries}; umount ${at("point")}`, 0))).toEqual(all);
});

test("its fence knows networks and other processes where the kernel does", async () => {
  const abi = landlockAbi();
  const connect = "exec 3<> /dev/tcp/127.0.0.1/1"; // nobody listens there
  const outside = `kill -0 ${process.pid} && echo signalled`;
  const script = `bash -c '${connect}' 2>&1; ${outside}`;
  expect(await fenced(script, 0)).toMatch(/Connection refused.*signalled/s);
  expect(await fenced(script, 3)).toMatch(/Connection refused.*signalled/s);
  if (abi >= 4) expect(await fenced(script, 4)).toMatch(/Permission denied.*signalled/s);
  if (abi >= 6) expect(await fenced(script, 6)).not.toContain("signalled");
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
  expect(await shell("readlink /proc/self/fd/0")).toBe("/dev/null");
});

test("one that is started ahead sees nothing until its folders are brought, and then no more than others", async () => {
  const gate = pipe();
  const out = pipe();
  const [keys, lent] = ["/keys", at("ahead")];
  const points = [join(keys, "tokens"), join(lent, "operatingsystems")];
  const look = (where: string) => `ls -A ${where} | tr '\\n' ' '`;
  const child = await confined({
    id: ID,
    argv: [
      "/bin/sh",
      "-c",
      `exec 2> /dev/null; ${look(keys)}; ${look(points[0]!)}; ${look(lent)}; ${look(points[1]!)}; echo
      echo > ${keys}/x && echo made; echo > ${points[0]}/x && echo made; echo > ${points[1]}/x && echo made; echo looked
      head -c 1 <&$CML_GATE
      cat ${points[0]}/secret ${points[1]}/a.conf; echo
      echo ours > ${points[0]}/brought; cat ${points[0]}/brought; mv ${points[0]}/brought ${points[0]}/moved
      echo > ${keys}/x && echo made; echo > ${points[1]}/x && echo made; rm ${points[1]}/a.conf && echo removed
      cp /bin/true ${points[0]}/true && chmod 755 ${points[0]}/true && ${points[0]}/true && echo run
      mount --bind ${points[0]} ${points[1]} && echo mounted; cat ${at("outside")} && echo read; readlink /proc/self/fd/0; ls /proc/self/fd | tr '\\n' ' '`,
    ],
    env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
    writable: [keys],
    readable: [lent],
    output: out.write.n,
    mortal: true,
    ahead: { gate: gate.read, points },
  });
  out.write.close();
  await child.started();
  const said: string[] = [];
  const { promise: looked, resolve } = Promise.withResolvers<void>();
  const over = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of Bun.file(out.read.n).stream()) {
      said.push(decoder.decode(chunk));
      if (said.join("").includes("looked\n")) resolve();
    }
  })();
  await looked;
  await furnish(child, ID, [
    { from: at("tokens"), point: points[0]!, to: "written" },
    { from: at("operatingsystems"), point: points[1]!, to: "read" },
  ]);
  now(signal(gate.write.n));
  await over;
  const [before, ...after] = said.join("").trim().split("\n");
  expect(before).toBe("tokens operatingsystems ");
  expect(after).toEqual(["looked", "\0ourssigned", "ours", "/dev/null", "0 1 2 3 4"]);
  expect(readFileSync(at("tokens/moved"), "utf8")).toBe("ours\n");
  expect(statSync(at("tokens/moved")).uid).toBe(0);
  await collected(child.pidfd);
}, 30_000);

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
