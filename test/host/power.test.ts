// The power goes while cmld writes: its data folder lies on a disk whose every write is logged, and the disk as it was at
// chosen moments is read with cmld's own code. What was answered before a moment must be there.
import { afterAll, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import type { AuditRecord } from "../../proto/gen/proto.js";
import { Trail } from "../../src/cmld/audit/trail.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { counts } from "../counts.ts";
import { cuts, LoggedDisk, mounted, replayed, WriteLog } from "../power.ts";
import { Cmld, Command } from "./daemon.ts";

const SEED = 20_261_121;
const IN_MEMORY = "/dev/shm";
const LANES = 8;
const folder = mkdtempSync(join(IN_MEMORY, "power-"));
chmodSync(folder, 0o755); // the containers' ids pass through it
afterAll(() => rmSync(folder, { recursive: true }));

const uuidOf = (lane: number, n: number) =>
  `ffffffff-000${lane}-4000-8000-${n.toString(16).padStart(12, "0")}`;
const meta = (r: AuditRecord, key: string) => r.meta.find((m) => m.key === key)?.value;
const name = (r: AuditRecord) => r.type.split(".").slice(3).join(".");

test(
  "power cuts lose and reorder no audit record that was answered for, at any write of cmld's disk",
  async () => {
    const base = join(folder, "base.img");
    mkdirSync(join(folder, "empty"));
    disk(base, 96, join(folder, "empty"));
    await using logged = await LoggedDisk.mount(base, folder);
    using log = new WriteLog(logged.log);
    const answered: { uuid: string; lane: number; n: number; writes: number }[] = [];
    let data = "";
    {
      await using cmld = await Cmld.begin(undefined, {
        device: "signed_configs: false\naudit_size: 16\n",
        under: logged.folder,
      });
      data = join(basename(cmld.folder), "base");
      const each = Math.ceil(counts.auditEvents / LANES);
      await Promise.all(
        Array.from({ length: LANES }, async (_, lane) => {
          using c = await cmld.client();
          for (let n = 0; n < each; n++) {
            const uuid = uuidOf(lane, n);
            await c.ask(Command.CONTAINER_START, { container_uuids: [uuid] });
            answered.push({ uuid, lane, n, writes: log.length });
          }
        }),
      );
    }
    log.check();
    const moments = cuts(log, counts.powerCutPoints, SEED);
    let [fewest, most, torn] = [Number.POSITIVE_INFINITY, 0, 0];
    await replayed(
      base,
      log,
      moments,
      (image, cut) =>
        mounted(image, async (files) => {
          const due = answered.filter((a) => a.writes <= cut.prefix).map((a) => a.uuid);
          const said: string[] = [];
          const trail = await Trail.open({
            directory: join(files, data, "audit"),
            name: C0,
            limit: 16 << 20,
            say: (line) => said.push(line),
          }).catch((e) => {
            if (due.length > 0) throw e;
            return undefined; // there is no such folder yet
          });
          const all = trail ? await trail.next(0, 1_000_000) : [];
          await trail?.close();
          expect(all.map((s) => s.sequence)).toEqual(all.map((_, i) => i + 1));
          expect(all.map((s) => name(s.record)).filter((n) => n === "corrupt-record")).toEqual([]);
          expect(all.every((s) => meta(s.record, "sequence") === String(s.sequence))).toBe(true);
          expect(said.filter((line) => !line.includes("no whole record"))).toEqual([]);
          torn += said.length;
          const kept = all
            .filter((s) => name(s.record) === "container-start-not-existing")
            .map((s) => s.record.subject_id!);
          const has = new Set(kept);
          expect([cut.prefix, due.filter((uuid) => !has.has(uuid))]).toEqual([cut.prefix, []]);
          for (let lane = 0; lane < LANES; lane++) {
            const mine = kept.filter((uuid) => uuid.startsWith(`ffffffff-000${lane}`));
            expect(mine).toEqual(mine.map((_, n) => uuidOf(lane, n)));
          }
          fewest = Math.min(fewest, kept.length);
          most = Math.max(most, kept.length);
        }),
      folder,
    );
    expect(most).toBe(answered.length);
    expect(fewest).toBeLessThan(answered.length / 2);
    console.log(
      `${answered.length} answered requests, ${log.length} writes, ${log.flushes().length} flushes; ` +
        `${moments.length} disks with ${fewest} to ${most} of them, ${torn} with a torn end`,
    );
  },
  300_000 + counts.auditEvents * 50 + counts.powerCutPoints * 2_000,
);
