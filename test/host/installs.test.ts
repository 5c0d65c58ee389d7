// The power goes while guests are installed, updated and removed: cmld's data folder lies on a disk whose every write is
// logged, and the disk as it was at chosen moments is read with cmld's own code. Each time what is listed is whole, what
// was confirmed is there, and nothing half is left.
import { afterAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { signed } from "../../initramfs/pki.ts";
import { readDevice } from "../../src/cmld/config.ts";
import { GuestOses, titleOf } from "../../src/cmld/images/guestos.ts";
import { Trust } from "../../src/cmld/images/trust.ts";
import { counts } from "../counts.ts";
import { chance, cuts, LoggedDisk, mounted, replayed, WriteLog } from "../power.ts";
import { judge } from "../scd.ts";
import { type Client, Cmld, Command, Response } from "./daemon.ts";

const SEED = 20_261_122;
const IN_MEMORY = "/dev/shm";
const HARDWARE = process.arch === "arm64" ? "arm" : "x86";
const folder = mkdtempSync(join(IN_MEMORY, "installs-"));
chmodSync(folder, 0o755);
afterAll(() => rmSync(folder, { recursive: true }));

const random = chance(SEED);
const noise = (bytes: number) => Uint8Array.from({ length: bytes }, () => random(256));
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** A signed version with two images in the mirror; `spoiled`: the second is not what its configuration says. */
function release(name: string, version: number, spoiled = false) {
  const title = `${name}-${version}`;
  const mirror = join(folder, "mirror/operatingsystems", HARDWARE, title);
  mkdirSync(mirror, { recursive: true });
  const mounts = ["root", "data"].map((image, i) => {
    const bytes = noise(100_000 + random(200_000));
    writeFileSync(join(mirror, `${image}.img`), spoiled && i === 1 ? Buffer.alloc(bytes.length) : bytes);
    return `mounts { image_file: "${image}" mount_point: "/${i}" fs_type: "erofs" mount_type: SHARED image_size: ${bytes.length} image_sha2_256: "${sha256(bytes)}" }`;
  });
  const conf = join(folder, `${title}.conf`);
  writeFileSync(
    conf,
    `name: "${name}"\nhardware: "${HARDWARE}"\nversion: ${version}\ninit_path: "/init"\ndescription { en: "x" }\n` +
      `update_base_url: "file://${join(folder, "mirror")}"\n${mounts.join("\n")}\n`,
  );
  signed(conf);
  const [config, signature, certificate] = ["conf", "sig", "cert"].map((end) =>
    readFileSync(join(folder, `${title}.${end}`)),
  );
  return {
    guestos_config_file: config!,
    guestos_config_signature: signature!,
    guestos_config_certificate: certificate!,
  };
}

/** What a client did and when it had its answer: the newest version of the name from then on, 0 for none. */
interface Step {
  readonly name: string;
  readonly newest: number;
  /** Writes that had been done before it was asked, and when it was answered. */
  readonly asked: number;
  readonly answered: number;
}

const NAMES = ["web", "db"];

test(
  "power cuts while guests are installed, updated and removed leave whole versions alone, and every one that was confirmed",
  async () => {
    const base = join(folder, "base.img");
    mkdirSync(join(folder, "empty"));
    disk(base, 96, join(folder, "empty"));
    await using logged = await LoggedDisk.mount(base, folder);
    using log = new WriteLog(logged.log);
    const steps: Step[] = [];
    let data = "";
    {
      await using cmld = await Cmld.begin(undefined, { under: logged.folder });
      data = join(basename(cmld.folder), "base");
      spawnSync("sync", ["-f", logged.folder]); // what the test has put there
      using c = await cmld.client();
      const step = async (
        name: string,
        newest: number,
        answer: string,
        ask: (c: Client) => Promise<string>,
      ) => {
        const asked = log.length;
        expect(await ask(c)).toContain(answer);
        await Bun.sleep(20); // a write beside ours may still be on its way into the log, and hides what follows it there
        steps.push({ name, newest, asked, answered: log.length });
      };
      const push = (name: string, version: number) =>
        step(name, version, "INSTALL_COMPLETED", async (c) => {
          const first = await c.say(Command.PUSH_GUESTOS_CONFIG, release(name, version));
          return first === "GUESTOS_MGR_INSTALL_STARTED" ? answerOf(c) : first;
        });
      for (let round = 0; round < 4; round++) {
        for (const name of NAMES) await push(name, 2 * round + 1);
        await push("web", 2 * round + 2);
        await step("db", 2 * round + 1, "INSTALL_FAILED", async (c) => {
          const first = await c.say(Command.PUSH_GUESTOS_CONFIG, release("db", 2 * round + 2, true));
          return first === "GUESTOS_MGR_INSTALL_STARTED" ? answerOf(c) : first;
        });
        await step("db", 0, "CMD_OK", (c) => c.say(Command.REMOVE_GUESTOS, { guestos_name: "db" }));
      }
    }
    log.check();
    const device = readDevice(Buffer.from("hostedmode: true signed_configs: false")).config;
    const moments = cuts(log, counts.powerCutPoints, SEED, steps[0]!.asked);
    const seen = new Set<string>();
    let collected = 0;
    await replayed(
      base,
      log,
      moments,
      (image, cut) =>
        mounted(image, async (mount) => {
          const at = join(mount, data, "operatingsystems");
          const lines: string[] = [];
          const scd = judge();
          const store = new GuestOses({
            folder: at,
            device,
            scd,
            trust: new Trust(scd, device, join(mount, data), () => false),
            web: { dns: "", network: () => "ours" },
            log: (line) => lines.push(line),
            forget: () => {},
            users: () => ["somebody"],
          });
          await store.load();
          const all = store.all().filter((os) => NAMES.includes(os.config.name));
          expect(lines.filter((line) => !line.endsWith("removed, it was not whole"))).toEqual([]);
          collected += lines.length;
          for (const os of all)
            expect([titleOf(os), await store.wrong(os)]).toEqual([titleOf(os), undefined]);
          // What belongs to no version has been collected.
          const titles = new Set(store.all().map(titleOf));
          const others = readdirSync(at).filter((n) => !titles.has(n.replace(/\.(conf|sig|cert)$/, "")));
          expect([cut.prefix, others]).toEqual([cut.prefix, []]);
          for (const name of NAMES) {
            const mine = steps.filter((s) => s.name === name);
            const last = mine.findLast((s) => s.answered <= cut.prefix)?.newest ?? 0;
            const next = mine.find((s) => s.answered > cut.prefix)?.newest ?? last;
            const newest = Math.max(
              0,
              ...all.filter((o) => o.config.name === name).map((o) => o.config.version),
            );
            const state = {
              cut,
              name,
              newest,
              files: readdirSync(at),
              asked: mine.map((x) => [x.asked, x.answered]),
            };
            if (newest !== last && newest !== next)
              throw new Error(`${last} or ${next}: ${JSON.stringify(state)}`);
          }
          seen.add(all.map(titleOf).toSorted().join(" "));
        }),
      folder,
    );
    expect(seen.size).toBeGreaterThan(4);
    console.log(
      `${steps.length} steps, ${log.length} writes, ${log.flushes().length} flushes; ${moments.length} disks with ${seen.size} ` +
        `different sets of versions, ${collected} half ones collected`,
    );
  },
  300_000 + counts.powerCutPoints * 3_000,
);

/** The last word of an installation. */
async function answerOf(c: Client): Promise<string> {
  const { response, error_text } = await c.next();
  return `${Response[response!]} ${error_text ?? ""}`;
}
