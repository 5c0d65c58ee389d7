// The power goes while PINs are changed, a key is made, a PIN is wrong and everything is wiped. At every moment the token opens with
// the PIN that was answered for last or the one that was being set, the key of the volumes is there as soon as somebody was told
// that they run, and a wipe destroys the key before anything else.
import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { ContainerState } from "../../proto/gen/proto.js";
import { openPkcs12 } from "../../src/pki/pkcs12.ts";
import { macOf, unwrap } from "../../src/pki/wrap.ts";
import { Secret } from "../../src/sys/secret.ts";
import { counts } from "../counts.ts";
import { cuts, LoggedDisk, mounted, replayed, WriteLog } from "../power.ts";
import { Cmld, Command } from "./daemon.ts";

const SEED = 20_261_121;
const UUID = "bd8f2102-ab15-4e6c-8fce-8fa4451d3730";
const folder = mkdtempSync("/dev/shm/keypower-");
chmodSync(folder, 0o755); // the containers' ids pass through it
afterAll(() => rmSync(folder, { recursive: true }));

/** What is on the disk of a token: its file, its wrapped key, the proof, the pairing, the tries. */
interface Seen {
  readonly p12?: string;
  readonly key?: string;
  readonly mac?: string;
  readonly paired: boolean;
  readonly tries?: string;
}
function seen(base: string): Seen {
  const text = (path: string) =>
    existsSync(join(base, path)) ? readFileSync(join(base, path)).toString("base64") : undefined;
  const [p12, key, mac] = [text(`tokens/${UUID}.p12`), text(`keys/${UUID}.key`), text(`keys/${UUID}.mac`)];
  const tries = text(`tokens/${UUID}.tries`);
  const paired = existsSync(join(base, "containers", UUID, "token_is_paired"));
  return { ...(p12 && { p12 }), ...(key && { key }), ...(mac && { mac }), paired, ...(tries && { tries }) };
}

/** All that are counted in the file, whose bytes are given in base64. */
const triesOf = (file: string | undefined): number =>
  file === undefined ? 0 : Number(/^all ([0-9]+)$/m.exec(Buffer.from(file, "base64").toString())![1]);

test(
  "power cuts while PINs change: the token opens, the key is never lost, a wipe destroys it first",
  async () => {
    const image = join(folder, "base.img");
    mkdirSync(join(folder, "empty"));
    disk(image, 96, join(folder, "empty"));
    await using logged = await LoggedDisk.mount(image, folder);
    using log = new WriteLog(logged.log);
    /** What was true when something was answered, and from which write on. */
    const answered: { what: string; writes: number; seen: Seen }[] = [];
    let data = "";
    {
      await using cmld = await Cmld.begin(undefined, {
        under: logged.folder,
        async prepare(base) {
          for (const name of ["containers", "keys", "tokens"])
            mkdirSync(join(base, name), { recursive: true });
          const conf = 'name: "web"\nguest_os: "busybox"\ncolor: 0\ntoken_type: SOFT\nloopback_only: true\n';
          writeFileSync(join(base, `containers/${UUID}.conf`), conf);
          copyFileSync(`test/data/tokens/${UUID}.p12`, join(base, `tokens/${UUID}.p12`));
          Bun.spawnSync(["sync", "-f", base]);
        },
      });
      data = join(basename(cmld.folder), "base");
      const base = join(cmld.folder, "base");
      using c = await cmld.client();
      const at = { container_uuids: [UUID] };
      const bytes = (text: string) => Buffer.from(text);
      const did = (what: string) => void answered.push({ what, writes: log.length, seen: seen(base) });
      const change = async (pin: string, fresh: string) => {
        const asked = { ...at, device_pin: bytes(pin), device_newpin: bytes(fresh) };
        expect(await c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, asked)).toBe(
          "CONTAINER_CHANGE_PIN_SUCCESSFUL",
        );
        did(fresh);
      };
      const params = (pin: string) => ({ ...at, container_start_params: { key: bytes(pin) } });
      did("nothing");
      await change("trustme", "one");
      expect(await c.say(Command.CONTAINER_START, params("one"))).toBe("CONTAINER_START_OK");
      did("start");
      expect(await c.say(Command.CONTAINER_STOP, params("one"))).toBe("CONTAINER_STOP_OK");
      const state = async () => (await c.ask(Command.GET_CONTAINER_STATUS, at)).container_status[0]!.state;
      using events = await cmld.client();
      await events.say(Command.EVENTS, at);
      while ((await state()) !== ContainerState.STOPPED) await events.next();
      await change("one", "two");
      await change("two", "three");
      expect(await c.say(Command.CONTAINER_START, params("two"))).toContain("PASSWD_WRONG");
      did("wrong");
      await change("three", "four");
      expect(await c.say(Command.CONTAINER_WIPE, at)).toBe("CMD_OK");
      did("wipe");
    }
    log.check();

    // Each version of the token opens with its PIN and gives the one key that was wrapped; that a disk has one of these
    // versions, byte for byte, is all that is left to ask.
    const started = answered.find((a) => a.what === "start")!.seen;
    const wrapped = Buffer.from(started.key!, "base64");
    let key: Secret | undefined;
    using end = new DisposableStack();
    for (const { what, seen: s } of answered.filter((a) =>
      ["one", "two", "three", "four"].includes(a.what),
    )) {
      using pin = Secret.take(Buffer.from(what));
      const { key: token } = openPkcs12(what, Buffer.from(s.p12!, "base64"), pin);
      using _ = token;
      const got = end.use(unwrap(token, wrapped));
      key ??= got;
      expect(got.equals(key)).toBe(true);
      expect(Buffer.from(macOf(token, UUID, wrapped)).toString("base64")).toBe(started.mac!);
    }

    const written = (what: string) => answered.find((a) => a.what === what)!.writes;
    const moments = [
      ["nothing", "one"], // the first change of the PIN
      ["one", "start"], // the first start, which makes the key
      ["start", "four"], // other changes of the PIN, and a wrong one
      ["four", "wipe"],
    ].flatMap(([from, to], i) =>
      cuts(log, counts.powerCutPointsEach, SEED + i, written(from!), written(to!)),
    );
    const found = new Map<string, number>();
    await replayed(
      image,
      log,
      moments,
      (disk, cut) =>
        mounted(disk, async (files) => {
          const now = seen(join(files, data));
          const last = answered.findLastIndex((a) => a.writes <= cut.prefix);
          const [before, after] = [answered[last]!, answered[last + 1] ?? answered[last]!];
          const where = `${cut.prefix}: after ${before.what}, before ${after.what}`;
          found.set(before.what, (found.get(before.what) ?? 0) + 1);
          const told = (what: string) => answered.findIndex((a) => a.what === what) <= last;
          if (after.what !== "wipe") {
            // The PIN that was answered for, or the one that was being set: nothing between.
            expect([before.seen.p12, after.seen.p12], where).toContain(now.p12);
            expect(now.paired || !told("one"), where).toBe(true);
            if (told("start")) expect([now.key, now.mac], where).toEqual([started.key, started.mac]);
            else if (now.key) expect(now.mac, where).toBeDefined(); // the proof comes first
            // The next try is counted before it is made, and forgotten when it was right.
            const counted = triesOf(before.seen.tries);
            if (before.what === "wrong")
              expect([0, counted, counted + 1], where).toContain(triesOf(now.tries));
          } else if (before.what === "wipe") {
            expect([now.key, now.mac], where).toEqual([undefined, undefined]);
            expect(now.paired, where).toBe(false);
          } else {
            if (!now.paired || now.p12 !== before.seen.p12)
              expect([now.key, now.mac], where).toEqual([undefined, undefined]);
            if (now.mac === undefined) expect(now.key, where).toBeUndefined();
          }
        }),
      folder,
    );
    console.log(
      `${log.length} writes, ${log.flushes().length} flushes; ${moments.length} disks, the last answer before the cut: ` +
        [...found].map(([what, n]) => `${what} ${n}`).join(", "),
    );
  },
  300_000 + counts.powerCutPointsEach * 8_000,
);
