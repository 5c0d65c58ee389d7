// Recovery keys and backups through the real cmld and control. The images are bytes that nobody mounts: what is in them is
// tested in a machine (test/machine/crypt.test.ts).
import { afterAll, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fromWords } from "../../src/lib/words.ts";
import { seal, unseal } from "../../src/sys/sealed.ts";
import { Secret } from "../../src/sys/secret.ts";
import { Chance, SEED } from "../chance.ts";
import { type Client, Cmld, Code, Command } from "./daemon.ts";

const WEB = "f815386c-25b6-4a09-9ee4-4b65b977f167";
const NAMES = ["data.img", "data.made", "data.meta.img", "not-stacked"];
const KEY = Uint8Array.from({ length: 96 }, (_, i) => i);

let cmld: Cmld;
let base: string;
let c: Client;
const at = (...parts: string[]) => join(base, ...parts);
const images = new Map<string, Uint8Array>();

beforeAll(async () => {
  cmld = await Cmld.begin(undefined, {
    device: "signed_configs: false\n",
    async prepare(folder) {
      base = folder;
      for (const name of ["containers", "keys"]) mkdirSync(at(name), { recursive: true });
      writeFileSync(
        at(`containers/${WEB}.conf`),
        'name: "web"\nguest_os: "busybox"\ncolor: 0\ntoken_type: NONE\n',
      );
      mkdirSync(at("containers", WEB));
      const random = new Chance(SEED);
      for (const name of NAMES) {
        const path = at("containers", WEB, name);
        writeFileSync(path, name.endsWith(".img") ? random.bytes(400_000) : "");
        if (name === "data.img") truncateSync(path, 5_000_000);
        images.set(name, readFileSync(path));
      }
      using key = Secret.take(KEY.slice());
      writeFileSync(at(`keys/${WEB}.sealed`), seal(key, WEB));
    },
  });
  c = await cmld.client();
}, 60_000);
afterAll(async () => {
  c[Symbol.dispose]();
  await cmld[Symbol.asyncDispose]();
});

const on = (uuid: string) => ({ container_uuids: [uuid] });
const files = (uuid: string): Map<string, Uint8Array> =>
  new Map(
    readdirSync(at("containers", uuid))
      .sort()
      .map((name) => [name, readFileSync(at("containers", uuid, name))]),
  );

async function saved(uuid = WEB): Promise<Buffer> {
  c.send(Command.EXPORT, on(uuid));
  const pieces: Uint8Array[] = [];
  for (;;) {
    const a = await c.next();
    if (a.code !== Code.EXPORT_DATA) {
      if (a.error_text !== undefined) throw new Error(a.error_text);
      return Buffer.concat(pieces);
    }
    pieces.push(a.export_data!);
  }
}

const restore = async (backup: Uint8Array, recovery: Uint8Array, piece = 100_000) => {
  using client = await cmld.client();
  for (let from = 0; from < backup.length; from += piece)
    client.send(Command.IMPORT, {
      import_data: backup.subarray(from, from + piece),
      ...(from === 0 && { container_start_params: { key: recovery } }),
    });
  return await client.ask(Command.IMPORT, { import_data: new Uint8Array(0) });
};

test("a backup needs a recovery key; with it the container comes back as another, with the same volumes", async () => {
  expect(await c.say(Command.EXPORT, on(WEB))).toContain("it has no recovery key");
  const { export_data: recovery } = await c.ask(Command.RECOVERY_KEY, on(WEB));
  expect(recovery).toHaveLength(16);
  const backup = await saved();
  expect(backup.length).toBeLessThan(1_200_000);

  const wrong = recovery!.map((b, i) => (i === 3 ? b ^ 1 : b));
  for (const [stream, words, why] of [
    [backup, wrong, "another recovery key"],
    [backup.subarray(0, -30), recovery!, "cut short"],
    [Buffer.concat([backup.subarray(0, 5000), Buffer.alloc(8), backup.subarray(5008)]), recovery!, "damaged"],
    [Buffer.from("no backup at all, but long enough"), recovery!, "no backup"],
  ] as const) {
    expect((await restore(stream, words)).error_text).toContain(why);
    expect(existsSync(at("restoring"))).toBe(false);
  }
  expect((await c.ask(Command.LIST_CONTAINERS)).container_uuids).toHaveLength(1);

  expect(await c.say(Command.REMOVE_CONTAINER, on(WEB))).toContain("CMD_OK");
  expect(readdirSync(at("keys")).filter((name) => name.startsWith(WEB))).toEqual([]);
  const { container_uuids: uuids, error_text } = await restore(backup, recovery!);
  expect(error_text).toBe(undefined as never);
  const uuid = uuids[0]!;
  expect(uuid).not.toBe(WEB);
  expect(files(uuid)).toEqual(images);
  using key = unseal(readFileSync(at(`keys/${uuid}.sealed`)), uuid);
  expect(key.lend((b) => Buffer.from(b))).toEqual(Buffer.from(KEY));
  expect(readFileSync(at(`containers/${uuid}.conf`), "utf8")).toContain('name: "web"');
  expect(existsSync(at("restoring"))).toBe(false);
}, 60_000);

test("control shows the key once, as words; a client that goes away leaves nothing and holds nobody up", async () => {
  const [uuid] = (await c.ask(Command.LIST_CONTAINERS)).container_uuids;
  const control = async (stdin: string, ...args: string[]) => {
    const argv = [process.execPath, "src/main.ts", "control", "--socket", cmld.socket, ...args];
    const child = Bun.spawn(argv, { stdin: Buffer.from(stdin), stdout: "pipe", stderr: "pipe" });
    return [await child.exited, await child.stdout.text(), await child.stderr.text()] as const;
  };
  const [, words, none] = await control("", "recovery_key", "web");
  expect(none).toBe("");
  expect(fromWords(words)).toHaveLength(16);
  const file = at("web.backup");
  expect((await control("", "export", "web", file))[0]).toBe(0);
  expect((await control(words, "export", "--recovery", "web", file))[0]).toBe(0);
  const other = "lusab-babad-gutih-tugad-lusab-babad-gutih-tugad-tizol";
  expect((await control(other, "export", "-r", "web", file))[2]).toMatch(/recovery key/);
  expect(statSync(file).mode & 0o777).toBe(0o600);

  {
    using gone = await cmld.client();
    const first = readFileSync(file).subarray(0, 200_000);
    gone.send(Command.IMPORT, { import_data: first, container_start_params: { key: fromWords(words) } });
    while (!existsSync(at("restoring"))) await Bun.sleep(5); // another process makes it
  }
  while (existsSync(at("restoring"))) await Bun.sleep(5); // another process removes it
  expect(await c.say(Command.REMOVE_CONTAINER, on(uuid!))).toContain("CMD_OK");
  const [status, said, error] = await control(words, "import", file);
  expect([status, error]).toEqual([0, expect.not.stringContaining("failed")]);
  expect(said).toContain("CMD_OK");
  expect((await control("lusab-babad\n", "import", file))[2]).toContain(
    "a word of the recovery key is wrong",
  );
}, 60_000);

const send = (client: Client, backup: Uint8Array, recovery: Uint8Array, from = 0, to = backup.length) => {
  for (let i = from; i < to; i += 50_000)
    client.send(Command.IMPORT, {
      import_data: backup.subarray(i, Math.min(i + 50_000, to)),
      ...(i === 0 && { container_start_params: { key: recovery } }),
    });
};
const END = { import_data: new Uint8Array(0) };
const listed = async () => (await c.ask(Command.LIST_CONTAINERS)).container_uuids;

test("who fails and hangs up, or comes too late, does not disturb another; each hears one answer", async () => {
  const [uuid] = await listed();
  const { export_data: recovery } = await c.ask(Command.RECOVERY_KEY, on(uuid!));
  const backup = await saved(uuid);
  const before = await listed();
  const bad = await cmld.client();
  const damaged = Buffer.from(backup);
  damaged[5000]! ^= 1;
  send(bad, damaged, recovery!);
  using good = await cmld.client();
  while (existsSync(at("restoring"))) await Bun.sleep(5); // another process gives up
  await bad.ask(Command.GET_PROVISIONED); // and has thrown away the rest
  send(good, backup, recovery!, 0, 200_000);
  while (!existsSync(at("restoring"))) await Bun.sleep(5); // another process begins
  using late = await cmld.client();
  send(late, backup, recovery!);
  expect((await late.ask(Command.IMPORT, END)).error_text).toBe("another backup is being restored");
  expect((await late.ask(Command.GET_PROVISIONED)).code).toBe(Code.DEVICE_PROVISIONED_STATE);
  bad[Symbol.dispose]();
  await c.ask(Command.GET_PROVISIONED);
  send(good, backup, recovery!, 200_000);
  const { container_uuids: made, error_text } = await good.ask(Command.IMPORT, END);
  expect(error_text).toBe(undefined as never);
  expect(files(made[0]!)).toEqual(images);
  expect(await listed()).toEqual([...before, made[0]!]);
  expect(await c.say(Command.REMOVE_CONTAINER, on(made[0]!))).toContain("CMD_OK");
}, 60_000);

test("who hangs up with the last word gets the whole container or none; one that cannot be stored leaves nothing", async () => {
  const [uuid] = await listed();
  const { export_data: recovery } = await c.ask(Command.RECOVERY_KEY, on(uuid!));
  const backup = await saved(uuid);
  const before = await listed();
  for (let i = 0; i < 8; i++) {
    const gone = await cmld.client();
    send(gone, backup, recovery!);
    gone.send(Command.IMPORT, END);
    await new Promise<void>((sent) => gone.socket.end(sent));
    if (i % 2 === 0) gone[Symbol.dispose]();
    using next = await cmld.client();
    let word: string | undefined;
    do
      word = (await next.ask(Command.IMPORT, { ...END, container_start_params: { key: recovery! } }))
        .error_text;
    while (word === "another backup is being restored");
    expect(word).toBe("the backup is cut short");
    for (const made of (await listed()).filter((u) => !before.includes(u))) {
      expect(files(made)).toEqual(images);
      expect(await c.say(Command.REMOVE_CONTAINER, on(made))).toContain("CMD_OK");
    }
  }
  const kept = readdirSync(at("containers"));
  renameSync(at("keys"), at("keys.away"));
  writeFileSync(at("keys"), "");
  expect((await restore(backup, recovery!)).error_text).toContain("EEXIST");
  rmSync(at("keys"));
  renameSync(at("keys.away"), at("keys"));
  expect(await listed()).toEqual(before);
  expect(readdirSync(at("containers"))).toEqual(kept);
  expect(existsSync(at("restoring"))).toBe(false);
}, 60_000);

test("kill -9 of cmld while it restores leaves the whole container or nothing", async () => {
  const [uuid] = await listed();
  const { export_data: recovery } = await c.ask(Command.RECOVERY_KEY, on(uuid!));
  const backup = await saved(uuid);
  const before = await listed();
  const names = (folder: string) => readdirSync(at(folder)).sort();
  const [containers, keys] = [names("containers"), names("keys")];
  for (let i = 0; i < 12; i++) {
    using killed = await cmld.client();
    send(killed, backup, recovery!);
    killed.send(Command.IMPORT, END);
    await Bun.sleep(8 * i); // from the first piece to the answer, and beyond
    await cmld.end("SIGKILL");
    await cmld.start();
    c[Symbol.dispose]();
    c = await cmld.client();
    for (const made of (await listed()).filter((u) => !before.includes(u))) {
      expect(files(made)).toEqual(images);
      using key = unseal(readFileSync(at(`keys/${made}.sealed`)), made);
      expect(key.lend((b) => Buffer.from(b))).toEqual(Buffer.from(KEY));
      expect(await c.say(Command.REMOVE_CONTAINER, on(made))).toContain("CMD_OK");
    }
    expect(names("containers")).toEqual(containers);
    expect(names("keys")).toEqual(keys);
    expect(existsSync(at("restoring"))).toBe(false);
  }
}, 60_000);

test("no link is followed into a backup, and no fifo waited for", async () => {
  const [uuid] = await listed();
  const image = at("containers", uuid!, "data.img");
  renameSync(image, `${image}.away`);
  symlinkSync("/etc/hostname", image);
  expect(await saved(uuid).catch(String)).toContain("ELOOP");
  rmSync(image);
  spawnSync("mkfifo", [image]);
  expect(await saved(uuid).catch(String)).toContain("data.img: not a regular file");
  rmSync(image);
  renameSync(`${image}.away`, image);
});

test("an export that nobody takes does not hold up the end; what an interrupted import left is gone afterwards", async () => {
  const [uuid] = await listed();
  writeFileSync(at("containers", uuid!, "data.img"), new Chance(SEED).bytes(8 << 20));
  mkdirSync(at("restoring"));
  const still = await cmld.client();
  still.socket.pause();
  still.send(Command.EXPORT, on(uuid!));
  using other = await cmld.client();
  await other.ask(Command.GET_PROVISIONED);
  expect(await cmld.end("SIGTERM")).toBe(0);
  await cmld.start();
  expect(existsSync(at("restoring"))).toBe(false);
  still[Symbol.dispose]();
}, 30_000);
