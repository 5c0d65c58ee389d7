// Keys that cmld holds: made once, before the volumes, and never anew while there are any.
import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { C0 } from "../../lib/uuid.ts";
import { devicePassphrase, forgetKey, heldKey } from "./machine.ts";

const root = mkdtempSync(join(tmpdir(), "keys-"));
afterAll(() => rmSync(root, { recursive: true }));
let next = 0;
const place = (uuid = "web") => {
  const base = join(root, String(next++));
  mkdirSync(join(base, "images"), { recursive: true });
  const said: string[] = [];
  const held = {
    folder: join(base, "keys"),
    images: join(base, "images"),
    uuid,
    facts: ["machine 1", undefined, undefined, undefined, undefined] as (string | undefined)[],
    log: (line: string) => void said.push(line),
  };
  const hex = async (facts = held.facts) => {
    using key = await heldKey({ ...held, facts });
    return key.lend((b) => Buffer.from(b).toString("hex"));
  };
  return { ...held, said, hex, image: (name: string) => writeFileSync(join(held.images, name), "") };
};

test("a key is made for a container without volumes, is the same from then on, and is not in its file", async () => {
  const web = place();
  const first = await web.hex();
  expect(first).toHaveLength(192);
  web.image("data.img");
  expect(await web.hex()).toBe(first);
  const file = readFileSync(join(web.folder, "web.sealed"));
  expect(file.toString("latin1")).not.toContain(Buffer.from(first, "hex").toString("latin1").slice(0, 16));
  expect(readdirSync(web.folder)).toEqual(["web.sealed"]);
  expect(web.said).toEqual([]);
  await expect(web.hex(["machine 2"])).rejects.toThrow("the key of web does not open");
});

test("volumes without a key stay as they are: no new key is made", async () => {
  for (const name of ["data.img", "data.made"]) {
    const web = place();
    web.image(name);
    await expect(web.hex()).rejects.toThrow("there are volumes in");
    expect(existsSync(web.folder)).toBe(false);
  }
  const plain = place();
  plain.image("data.plain.img");
  expect(await plain.hex()).toHaveLength(192);
});

test("core0's key in clear, as the original made it, is taken; another container's is not", async () => {
  for (const [uuid, bytes, taken] of [
    [C0, 32, true],
    [C0, 64, false],
    ["web", 32, false],
  ] as const) {
    const p = place(uuid);
    mkdirSync(p.folder);
    writeFileSync(join(p.folder, `${uuid}.key`), Buffer.alloc(bytes, 7));
    expect((await p.hex()) === "07".repeat(32)).toBe(taken);
  }
});

test("a machine without serial numbers is told about; forgetting removes every form of a key", async () => {
  const web = place();
  await web.hex([undefined]);
  expect(web.said).toEqual([expect.stringContaining("as good as in clear")]);
  writeFileSync(join(web.folder, "web.key"), "");
  await forgetKey(web.folder, "web");
  expect(readdirSync(web.folder)).toEqual([]);
  await forgetKey(join(root, "none"), "web");
});

test("the passphrase of the device's key: text, the same each time, of this machine alone, none where it says nothing", async () => {
  const { folder, facts } = place();
  const text = async (of: (string | undefined)[]) => {
    using passphrase = await devicePassphrase(folder, of);
    return passphrase?.lend((b) => Buffer.from(b).toString());
  };
  expect(await text(facts.map(() => undefined))).toBeUndefined();
  const first = await text(facts);
  expect(first).toMatch(/^[A-Za-z0-9+/]{48}$/);
  expect(await text(facts)).toBe(first);
  await expect(text(["machine 2"])).rejects.toThrow("the key of device does not open");
});
