// scd's room and its start: when it is first needed, or ahead, before there is a data folder. Apart from the client (scd.ts),
// so that cmld can start it before the rest of cmld is loaded (first.ts).
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Confinement, confined, furnish } from "../run/confined.ts";
import { type Child, collected } from "../run/launch.ts";
import { own, RUNTIME } from "../run/self.ts";
import { SOCK_SEQPACKET, signal } from "../sys/calls.ts";
import { type Fd, pipe } from "../sys/fd.ts";
import { bindAt } from "../sys/listen.ts";
import { now } from "../sys/now.ts";
import { kill, SIGKILL } from "../sys/process.ts";

/** spec/security.md 0.3: the ids after those of the host's users, before the containers'. */
const ID = 65537;
const BACKLOG = 8;
const ENVIRONMENT = [
  "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
  "HOME=/tmp",
  "LC_ALL=C.UTF-8",
  "TZ=UTC",
  // What libcrypto's C library frees is overwritten: a decoder of libcrypto frees a copy of a private key as it is.
  "GLIBC_TUNABLES=glibc.malloc.perturb=85:glibc.malloc.tcache_count=0",
  ...RUNTIME,
];

/** scd, or what becomes it, and what it says. */
export interface Started {
  readonly child: Child;
  readonly output: Fd;
}

/** An scd that waits for its folders. */
export interface ScdAhead extends Started {
  readonly listening: Fd;
  readonly gate: Fd;
}

/** Where one that is started ahead has its tokens: apart from what it may only read (Ahead in src/run/confined.ts). */
const KEYS = "/keys";
export const folders = (base: string, tokens = join(base, "tokens")) => ({
  tokens,
  readable: ["operatingsystems", "containers"].map((name) => join(base, name)),
});

export const listen = (socket: string): Fd => {
  mkdirSync(dirname(socket), { recursive: true, mode: 0o755 });
  return bindAt(socket, 0o700, BACKLOG, SOCK_SEQPACKET);
};

/** Start it before there is a data folder: in the same room, where it loads and sees nothing of the disk yet. */
export async function startAhead(base: string, socket: string): Promise<ScdAhead> {
  const { tokens, readable } = folders(base, join(KEYS, "tokens"));
  const listening = listen(socket);
  const gate = pipe();
  using theirs = gate.read;
  try {
    const started = await start(listening, {
      argv: own("scd", base, "--tokens", tokens),
      writable: [KEYS],
      readable: [base],
      ahead: { gate: theirs, points: [tokens, ...readable] },
    });
    return { ...started, listening, gate: gate.write };
  } catch (e) {
    listening.close();
    gate.write.close();
    throw e;
  }
}

/** Its folders are there: it may begin. */
export async function letIn({ child, gate }: ScdAhead, base: string): Promise<void> {
  const { tokens, readable } = folders(base);
  await furnish(child, ID, [
    { from: tokens, point: join(KEYS, "tokens"), to: "written" },
    ...readable.map((from) => ({ from, point: from, to: "read" as const })),
  ]);
  now(signal(gate.n));
}

export async function gone({ pidfd }: Child): Promise<void> {
  kill(pidfd, SIGKILL);
  await collected(pidfd);
  pidfd.close();
}

export async function start(
  listening: Fd,
  its: Pick<Confinement, "argv" | "writable" | "readable" | "ahead">,
): Promise<Started> {
  const { read: output, write } = pipe();
  using theirs = write;
  try {
    const more = { id: ID, env: ENVIRONMENT, listening, output: theirs.n, mortal: true };
    const child = await confined({ ...more, ...its });
    await child.started().catch(async (e) => {
      await gone(child);
      throw e;
    });
    return { child, output };
  } catch (e) {
    output.close();
    throw e;
  }
}
