// Audit records on a machine: what was answered for survives the power going off at any moment, in order; records of
// the kernel find their container.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { AuditRecord, ControllerToDaemon, type IAuditRecord } from "../../proto/gen/proto.js";
import { Trail } from "../../src/cmld/audit/trail.ts";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { counts } from "../counts.ts";
import { cuts, logged, mounted, replayed, WriteLog } from "../power.ts";
import { Vm } from "./qemu.ts";

const SEED = 20_261_121;
const RUNNING = "core0: BOOTING → RUNNING";
/** Requests that are sent at once, on one connection. */
const AT_ONCE = 10;
const folder = mkdtempSync(join(tmpdir(), "audit-"));
const base = join(folder, "base.img");

beforeAll(() => {
  const data = join(folder, "data");
  const web = { name: "web", guest_os: "busybox" };
  seed(join(data, "cml"), {
    guests: ["core0-1", "busybox-1"],
    containers: [CORE0, web],
    device: { audit_size: 64 },
  });
  disk(base, 256, data);
});
afterAll(() => rmSync(folder, { recursive: true }));

const uuidOf = (n: number) => `ffffffff-0000-4000-8000-${n.toString(16).padStart(12, "0")}`;
/** Requests that are refused, and recorded before the answers; how many were answered. */
async function ask(vm: Vm, numbers: readonly number[]): Promise<number> {
  const command = ControllerToDaemon.Command.CONTAINER_START;
  const requests = numbers.map((n) =>
    frame(ControllerToDaemon.encode({ command, container_uuids: [uuidOf(n)] })),
  );
  const send = Buffer.concat(requests).toString("base64");
  const answer = await vm
    .ask("exchange", { socket: "/run/socket/cml-control", send, frames: numbers.length })
    .catch(() => undefined); // cmld has been killed
  return [...new Unframer().push(Buffer.from(answer?.received ?? "", "base64"))].length;
}

const meta = (r: IAuditRecord, key: string) => r.meta?.find((m) => m.key === key)?.value;
const name = (r: IAuditRecord) => r.type.split(".").slice(3).join(".");

/** Numbers of the requests in a trail; throws if its own numbers have a gap or a record is damaged. */
function found(all: readonly IAuditRecord[]): number[] {
  const numbers = all.map((r) => Number(meta(r, "sequence")));
  expect(numbers).toEqual(numbers.map((_, i) => numbers[0]! + i));
  const damaged = all.filter((r) => name(r) === "corrupt-record" || name(r) === "records-lost");
  expect(damaged).toEqual([]);
  return all.flatMap((r) => {
    const n = /^ffffffff-0000-4000-8000-([0-9a-f]{12})$/.exec(r.subject_id ?? "")?.[1];
    return n !== undefined && name(r) === "container-start-not-existing" ? [Number.parseInt(n, 16)] : [];
  });
}

async function control(vm: Vm, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...args] });
  if (status !== 0) throw new Error(`control ${args.join(" ")}: ${stderr}`);
  return stdout;
}
const records = async (vm: Vm, ...args: string[]): Promise<AuditRecord[]> =>
  (await control(vm, "audit", "--json", ...args))
    .trim()
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line) as AuditRecord);

test(
  "audit: power cuts lose and reorder nothing that was answered, at any write",
  async () => {
    const [image, writes] = [join(folder, "disk.img"), join(folder, "writes")];
    copyFileSync(base, image);
    const lives = counts.auditPowerCuts + 1;
    /** What was answered, and how far the log of writes was then. */
    const answered: { n: number; writes: number }[] = [];
    let next = 0;
    for (let life = 0; life < lives; life++) {
      // The first life is logged, write by write; the power of every one is cut.
      const first = life === 0;
      await using vm = first ? Vm.boot({ more: logged(image, writes) }) : Vm.boot({ disks: [image] });
      await vm.sees(RUNNING);
      using log = first ? new WriteLog(writes) : undefined;
      const kept = life === 0 ? [] : found(await records(vm));
      const missing = answered.filter((a) => !new Set(kept).has(a.n)).map((a) => a.n);
      expect([life, missing]).toEqual([life, []]);
      expect(kept).toEqual(kept.toSorted((a, b) => a - b));
      if (life === lives - 1) break;
      const until = Math.ceil((counts.auditEvents * (life + 1)) / (lives - 1));
      const kills = new Set(
        life === 0
          ? Array.from({ length: counts.auditKills }, (_, i) =>
              Math.floor(((i + 1) * until) / (counts.auditKills + 1) / AT_ONCE),
            )
          : [],
      );
      for (let round = 0; next < until; round++) {
        const numbers = Array.from({ length: AT_ONCE }, () => next++);
        const asking = ask(vm, numbers);
        if (kills.has(round)) {
          const pid = Number(/.*init: cmld: started, pid (\d+)/s.exec(vm.said)![1]);
          await vm.ask("kill", { pid, signal: "SIGKILL" });
        }
        const count = await asking;
        const at = log?.length ?? Number.POSITIVE_INFINITY;
        for (const n of numbers.slice(0, count)) answered.push({ n, writes: at });
        if (kills.has(round)) await vm.sees("init: cmld: ready");
      }
      // More are under way when the power goes.
      void ask(vm, [next++, next++, next++]);
      vm.kill();
      await vm.ended();
    }
    expect(answered.length).toBeGreaterThan(counts.auditEvents * 0.9);

    using log = new WriteLog(writes);
    log.check();
    const moments = cuts(log, counts.powerCutPoints, SEED);
    let [most, fewest] = [0, Number.POSITIVE_INFINITY];
    await replayed(base, log, moments, (cutImage, cut) =>
      mounted(cutImage, async (data) => {
        const said: string[] = [];
        const directory = join(data, "audit");
        const trail = await Trail.open({
          directory,
          name: C0,
          limit: 64 << 20,
          say: (line) => said.push(line),
        }).catch((e) => {
          if (answered.some((a) => a.writes <= cut.prefix)) throw e;
          return undefined; // there is no folder yet
        });
        const all = trail
          ? (await trail.next(0, 100_000)).map((s) => AuditRecord.plain(s.record) as unknown as IAuditRecord)
          : [];
        await trail?.close();
        const kept = found(all);
        most = Math.max(most, kept.length);
        fewest = Math.min(fewest, kept.length);
        const has = new Set(kept);
        const missing = answered.filter((a) => a.writes <= cut.prefix && !has.has(a.n)).map((a) => a.n);
        expect([cut.prefix, missing]).toEqual([cut.prefix, []]);
        expect(kept).toEqual(kept.toSorted((a, b) => a - b));
        expect(said.filter((line) => !line.includes("no whole record"))).toEqual([]);
      }),
    );
    console.log(
      `${answered.length} answered requests, ${counts.auditKills} kills, ${counts.auditPowerCuts} real cuts; ` +
        `${log.length} writes, ${log.flushes().length} flushes; ${moments.length} disks with ${fewest} to ${most} of them`,
    );
  },
  900_000 + counts.auditEvents * 300,
);

test("records of the kernel are their container's: by its group while the process is there, by its ids when it is gone", async () => {
  const image = join(folder, "kernel.img");
  copyFileSync(base, image);
  await using vm = Vm.boot({ disks: [image] });
  await vm.sees(RUNNING);
  await control(vm, "start", "--wait", "web");
  const inWeb = async (script: string) =>
    vm.ask("run", { argv: ["/usr/sbin/control", "run", "--no-tty", "web", "/bin/sh", "-c", script] });
  await inWeb("kill -SEGV $$");
  const ofKernel = async (...args: string[]) =>
    (await records(vm, ...args)).filter((r) => r.type.includes(".KAUDIT."));
  const deadline = Date.now() + 60_000;
  let crash: AuditRecord | undefined;
  while (!crash && Date.now() < deadline)
    crash = (await ofKernel("web")).find((r) => name(r) === "type=1701"); // ANOM_ABEND
  expect(crash!.type).toStartWith("FSA.CMLD.KAUDIT.");
  expect(["cgroup", "uid"]).toContain(meta(crash!, "attributed")!);
  expect(meta(crash!, "sig")).toBe("11");
  expect((await ofKernel()).some((r) => name(r) === "type=1701")).toBe(false);
  // The machine's own: audit was switched on.
  expect((await ofKernel()).map(name)).toContain("type=1305");
  // What a container writes is not taken for the kernel's.
  const log = await vm.ask("read", { path: "/data/logs/cml-daemon.current" });
  expect(log).not.toContain("audit records are not kept");
}, 600_000);
