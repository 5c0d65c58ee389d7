// The power goes while a sealed volume is made, written, grown and wiped: at many moments of one log of writes, and for
// real. What was confirmed is there, and nothing is ever other than what was written.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { closeSync, copyFileSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SEED } from "../chance.ts";
import { counts } from "../counts.ts";
import { cuts, logged, replayed, WriteLog } from "../power.ts";
import { Vm } from "./qemu.ts";
import { inside, sealedDisk, telling, WEB } from "./sealed.ts";

const folder = mkdtempSync(join(tmpdir(), "cryptpower-"));
const at = (name: string) => join(folder, name);
/** Of the disk that loses its power, MiB. */
const DISK = 80;
const [SMALL, LARGE] = [12, 20];

beforeAll(() => {
  sealedDisk(folder, at("system.img"), 512);
  const fd = openSync(at("base.img"), "w");
  ftruncateSync(fd, DISK << 20);
  closeSync(fd);
  mkdirSync(at("empty/web"), { recursive: true });
  const made = Bun.spawnSync(["mke2fs", "-q", "-F", "-t", "ext4", "-d", at("empty"), at("base.img")]);
  if (!made.success) throw new Error(made.stderr.toString());
});
afterAll(() => rmSync(folder, { recursive: true }));

type Files = Record<string, string>;
interface Found {
  readonly there: string[];
  readonly files?: Files;
  readonly error?: string;
}

test(
  "sealed volumes: power cuts while one is made, grown and wiped lose nothing that was confirmed",
  async () => {
    copyFileSync(at("system.img"), at("first.img"));
    copyFileSync(at("base.img"), at("cut.img"));
    let written: Files = {};
    const after = { mounted: 0, made: 0, grown: 0, wiped: 0 };
    using log = await (async () => {
      await using vm = Vm.boot({ disks: [at("first.img")], more: logged(at("cut.img"), at("writes")) });
      const writes = new WriteLog(at("writes"));
      await telling(vm, async () => {
        await vm.sees("core0: BOOTING → RUNNING");
        const { volumes } = inside(vm);
        await volumes("mount", `/dev/${await vm.disk("logged")}`);
        after.mounted = writes.length;
        await volumes("write", "/run/disk/web", SMALL, "one", "two");
        after.made = writes.length;
        written = (await volumes("write", "/run/disk/web", LARGE, "three")) as Files;
        after.grown = writes.length;
        await volumes("wipe", "/run/disk/web");
        after.wiped = writes.length;
      });
      return writes;
    })();
    log.check();
    expect(Object.keys(written)).toEqual(["one", "three", "two"]);

    const tally = { new: 0, made: 0, grown: 0, wiping: 0, wiped: 0 };
    for (const [i, [from, to]] of [
      [after.mounted, after.made],
      [after.made, after.grown],
      [after.grown, after.wiped],
    ].entries()) {
      // Every disk of a cut, one behind the other on one large disk.
      const moments = cuts(log, counts.powerCutPointsEach, SEED + i, from!, to!);
      const row = at("row.img");
      let n = 0;
      await replayed(at("base.img"), log, moments, async (image) => {
        const dd = ["dd", `if=${image}`, `of=${row}`, "bs=1M", `seek=${n * DISK}`, "conv=sparse,notrunc"];
        const copied = Bun.spawnSync([...dd, "status=none"]);
        if (!copied.success) throw new Error(copied.stderr.toString());
        n++;
      });
      const fd = openSync(row, "r+");
      ftruncateSync(fd, n * (DISK << 20));
      closeSync(fd);

      await using vm = Vm.boot({ disks: [at("first.img"), row] });
      await telling(vm, async () => {
        await vm.sees("core0: BOOTING → RUNNING");
        const all = `/dev/${await vm.disk("disk1")}`;
        const found = (await inside(vm).volumes("recover", all, DISK, n, LARGE)) as Found[];
        found.forEach(({ there, files, error }, k) => {
          const { prefix } = moments[k]!;
          const where = `cut ${i}.${k} after ${prefix} of ${log.length} writes: ${there.join(" ")}: ${error}`;
          const same = (names: string[]) => names.map((name) => [name, files?.[name]]);
          const right = (names: string[]) => names.map((name) => [name, written[name]]);
          if (prefix >= after.wiped) {
            tally.wiped++;
            expect([where, there]).toEqual([where, []]);
          } else if (i === 2) tally.wiping++;
          else if (prefix >= after.grown) {
            tally.grown++;
            expect([where, files]).toEqual([where, written]);
          } else if (prefix >= after.made) {
            tally.made++;
            expect([where, same(["one", "two"])]).toEqual([where, right(["one", "two"])]);
          } else {
            tally.new++;
            expect([where, error]).toEqual([where, undefined]);
          }
        });
      });
      rmSync(row);
    }
    console.log(`writes: ${JSON.stringify(after)}; cuts: ${JSON.stringify(tally)}`);
  },
  600_000 + counts.powerCutPointsEach * 30_000,
);

test(
  "sealed volumes: real power cuts during a first start, and the start after it",
  async () => {
    for (let cut = 0; cut < counts.realPowerCuts; cut++) {
      copyFileSync(at("system.img"), at("real.img"));
      {
        await using vm = Vm.boot({ disks: [at("real.img")] });
        await vm.sees("core0: BOOTING → RUNNING");
        void inside(vm)
          .control("start", "web")
          .catch(() => {}); // the machine ends meanwhile
        const there = () => vm.ask("list", { path: `/data/cml/containers/${WEB}` });
        while (!(await there()).some((name) => name.startsWith("data."))); // it has begun to make it
        await Bun.sleep(cut * 150); // another moment each time
        vm.kill();
        await vm.ended();
      }
      await using vm = Vm.boot({ disks: [at("real.img")] });
      await telling(vm, async () => {
        await vm.sees("core0: BOOTING → RUNNING");
        const { start, sh, stop } = inside(vm);
        await start();
        expect(await sh("ls /data && echo kept > /data/kept && cat /data/kept")).toBe("0 lost+found\nkept\n");
        await stop();
      });
    }
  },
  counts.realPowerCuts * 300_000,
);
