// A data folder on a disk that is full: what is refused says so and changes nothing, what destroys works all the same.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { seal } from "../../src/sys/sealed.ts";
import { Secret } from "../../src/sys/secret.ts";
import { Chance, SEED } from "../chance.ts";
import { type Client, Cmld, Command, pairWeb, WEB, WEB_PIN } from "./daemon.ts";

const HELD = "5dd56a85-4647-46ce-a1b9-4e5c78015c11";
const PIN = Buffer.from(WEB_PIN);

let cmld: Cmld;
let base: string;
let disk: string;
let c: Client;
const at = (...parts: string[]) => join(base, ...parts);
const on = (uuid: string) => ({ container_uuids: [uuid] });
const start = () => c.say(Command.CONTAINER_START, { ...on(WEB), container_start_params: { key: PIN } });

beforeAll(async () => {
  disk = mkdtempSync(join(tmpdir(), "disk-"));
  expect(spawnSync("mount", ["-t", "tmpfs", "-o", "size=48m,mode=755", "tmpfs", disk]).status).toBe(0);
  cmld = await Cmld.begin(undefined, {
    under: disk,
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", "keys", "tokens"]) mkdirSync(at(name), { recursive: true });
      for (const [uuid, name, type] of [
        [WEB, "web", "SOFT"],
        [HELD, "held", "NONE"],
      ] as const) {
        mkdirSync(at("containers", uuid));
        writeFileSync(
          at(`containers/${uuid}.conf`),
          `name: "${name}"\nguest_os: "busybox"\ncolor: 0\ntoken_type: ${type}\nloopback_only: true\n`,
        );
      }
      pairWeb(base);
      for (const name of ["not-stacked", "data.made", "data.meta.img"])
        writeFileSync(at("containers", HELD, name), "");
      writeFileSync(at("containers", HELD, "data.img"), new Chance(SEED).bytes(4 << 20));
      using key = Secret.random(96);
      writeFileSync(at(`keys/${HELD}.sealed`), seal(key, HELD));
    },
  });
  c = await cmld.client();
}, 60_000);
afterAll(async () => {
  c[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
  spawnSync("umount", ["--lazy", disk]); // the token of what was wiped is being made anew
  rmSync(disk, { recursive: true });
});

/** Until disposed no more than these bytes are free. */
function full(free = 0): Disposable {
  const path = join(disk, "filler");
  const fd = openSync(path, "w");
  const piece = Buffer.alloc(4096, 1);
  try {
    for (;;) writeSync(fd, piece);
  } catch (e) {
    expect((e as { code?: string }).code).toBe("ENOSPC");
  }
  ftruncateSync(fd, fstatSync(fd).size - free);
  closeSync(fd);
  return { [Symbol.dispose]: () => rmSync(path) };
}

/** Every file that is kept, with what is in it. */
const kept = (): [string, string][] =>
  ["containers", "keys", "tokens"].flatMap((folder) =>
    readdirSync(at(folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry): [string, string] => {
        const path = join(entry.parentPath, entry.name);
        return [path, new Bun.CryptoHasher("sha256").update(readFileSync(path)).digest("hex")];
      })
      .sort(),
  );

test("a start, another PIN, a recovery key, a container: refused, and all is as it was", async () => {
  const words = await c.ask(Command.RECOVERY_KEY, on(HELD));
  expect(words.export_data).toHaveLength(16);
  const before = kept();
  {
    using _ = full();
    for (const said of [
      await start(),
      await c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, {
        ...on(WEB),
        device_pin: PIN,
        device_newpin: Buffer.from("x"),
      }),
      await c.say(Command.RECOVERY_KEY, on(HELD)),
      await c.say(Command.CREATE_CONTAINER, {
        container_config_file: Buffer.from('name: "new"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\n'),
      }),
    ])
      expect(said).toContain("ENOSPC");
    expect(kept()).toEqual(before);
  }
  expect(await start()).toBe("CONTAINER_START_OK");
}, 60_000);

test("an import that does not fit leaves nothing", async () => {
  const { export_data: key } = await c.ask(Command.RECOVERY_KEY, on(HELD));
  const pieces: Uint8Array[] = [];
  c.send(Command.EXPORT, on(HELD));
  for (let a = await c.next(); a.export_data; a = await c.next()) pieces.push(a.export_data);
  const before = kept();
  using _ = full(2 << 20);
  for (const [i, import_data] of pieces.entries())
    c.send(Command.IMPORT, { import_data, ...(i === 0 && { container_start_params: { key: key! } }) });
  expect(await c.say(Command.IMPORT, { import_data: new Uint8Array(0) })).toContain("ENOSPC");
  expect(readdirSync(base)).not.toContain("restoring");
  expect(kept()).toEqual(before);
}, 60_000);

test("what is wiped and removed is gone", async () => {
  using _ = full();
  expect(await c.say(Command.CONTAINER_WIPE, on(WEB))).toBe("CMD_OK");
  expect(readdirSync(at("keys")).filter((name) => name.startsWith(WEB))).toEqual([]);
  expect(await c.say(Command.REMOVE_CONTAINER, on(HELD))).toBe("CMD_OK");
  expect(kept().filter(([path]) => path.includes(HELD))).toEqual([]);
}, 60_000);
