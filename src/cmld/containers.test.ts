import { afterAll, expect, test } from "bun:test";
import {
  cpSync,
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
import { judge } from "../../test/scd.ts";
import { C0 } from "../lib/uuid.ts";
import { chain } from "../sys/error.ts";
import { readDevice } from "./config.ts";
import { Containers, type Surroundings, subordinateIds, uidStart } from "./containers.ts";

const golden = new URL("../../test/data/golden/state/containers", import.meta.url).pathname;

import { Trust } from "./images/trust.ts";

const top = mkdtempSync(join(tmpdir(), "containers-test-"));
afterAll(() => rmSync(top, { recursive: true }));

const unsigned = readDevice(Buffer.from("signed_configs: false")).config;
const signed = readDevice(Buffer.from("")).config;
let count = 0;
function fresh(more: Partial<Surroundings> = {}) {
  const lines: string[] = [];
  const folder = more.folder ?? join(top, String(count++), "containers");
  const store = new Containers({
    folder,
    device: unsigned,
    trust: new Trust(judge(), more.device ?? unsigned, folder, () => false),
    provisioned: () => false,
    log: (l) => lines.push(l),
    ...more,
  });
  return { store, folder, lines, files: () => readdirSync(folder).sort() };
}
const conf = (name: string, more = "") => Buffer.from(`name: "${name}" guest_os: "debian" ${more}`);

test("the original's folder is loaded; two with the same ids: the older one keeps them", async () => {
  const { store, folder, lines } = fresh();
  cpSync(golden, folder, { recursive: true });
  const all = await store.load();
  expect(all.length).toBe(9);
  expect(new Set(all.map((s) => s.index)).size).toBe(9);
  expect(all.every((s) => existsSync(join(folder, s.uuid)))).toBeTrue();
  const soft1 = all.find((s) => s.config.name === "soft1")!;
  expect(soft1.created).toBe(1795227197);
  expect(lines.filter((l) => l.includes("it gets others")).length).toBeGreaterThan(0);
  const again = fresh({ folder });
  expect((await again.store.load()).map((s) => [s.uuid, s.index])).toEqual(all.map((s) => [s.uuid, s.index]));
  expect(again.lines).toEqual([]);
});

test("create, change, update, remove; nothing is left", async () => {
  const { store, folder, files } = fresh();
  await store.load();
  const draft = store.draft(conf("web", "# hello\nvnet_configs { if_name: 'eth0' configure: true }"));
  draft.message.guestos_version = 7;
  const web = await store.create(draft);
  expect(web.index).toBe(0);
  expect(uidStart(web.index)).toBe(100_000);
  expect(web.config.guestos_version).toBe(7);
  const mac = web.config.vnet_configs[0]!.if_mac;
  expect(mac).toMatch(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/);
  expect(files()).toEqual(["", ".conf", ".created", ".uid"].map((s) => web.uuid + s));
  expect(readFileSync(join(folder, `${web.uuid}.conf`), "utf8")).toBe(`name: "web"
guest_os: "debian"
guestos_version: 7
color: 0
type: CONTAINER
vnet_configs {
  if_name: "eth0"
  configure: true
  if_mac: "${mac}"
}
token_type: SOFT
`);
  const second = await store.create(store.draft(conf("db")));
  expect(second.index).toBe(1);

  await store.change(web.uuid, (m) => m.net_ifaces.push({ netif: "eth1", mac_filter: [] }));
  expect(store.get(web.uuid)!.config.net_ifaces[0]!.netif).toBe("eth1");
  const updated = await store.update(
    web.uuid,
    store.draft(conf("web2", "vnet_configs { if_name: 'eth0' configure: true }")),
  );
  expect(updated.config.vnet_configs[0]!.if_mac).toBe(mac);
  expect(store.get(web.uuid)!.config.name).toBe("web2");

  writeFileSync(join(folder, web.uuid, "data.plain.img"), "x");
  await store.remove(web.uuid);
  expect(files().every((f) => f.startsWith(second.uuid))).toBeTrue();
  expect(await store.remove(web.uuid).catch(chain)).toBe(`no container ${web.uuid}`);
  expect((await store.create(store.draft(conf("new")))).index).toBe(0);
  expect((await fresh({ folder }).store.load()).map((s) => s.config.name)).toContainValues(["db", "new"]);
});

test("many at once get different ids", async () => {
  const { store } = fresh();
  await store.load();
  const made = await Promise.all(
    Array.from({ length: 20 }, (_, i) => store.create(store.draft(conf(`c${i}`)))),
  );
  expect(made.map((s) => s.index)).toEqual(made.map((_, i) => i));
});

test("one bad file costs one container, with a sentence", async () => {
  const { store, folder, lines } = fresh();
  mkdirSync(folder, { recursive: true });
  const uuid = (n: number) => `00000000-0000-4000-8000-00000000000${n}`;
  writeFileSync(join(folder, `${uuid(1)}.conf`), "");
  writeFileSync(join(folder, `${uuid(2)}.conf`), 'name: "x"\nguest_os: "a"\ncolour: 1\n');
  writeFileSync(join(folder, `${uuid(3).replaceAll("-", "")}.conf`), conf("bare"));
  mkdirSync(join(folder, `${uuid(4)}.conf`));
  writeFileSync(join(folder, `${uuid(5)}.conf`), conf("good, but odd"));
  writeFileSync(join(folder, `${uuid(5)}.uid`), "xyz");
  writeFileSync(join(folder, `.${uuid(6)}.conf.new`), "half");
  expect((await store.load()).map((s) => s.config.name)).toEqual(["good, but odd"]);
  expect(lines.length).toBe(6);
  expect(lines.join("\n")).toContain(
    `${uuid(2)}.conf: not loaded: line 3, column 1: ContainerConfig: no field "colour"`,
  );
  expect(lines.join("\n")).toContain("the name is no uuid in lower case");
  expect(lines.join("\n")).toContain(`${uuid(5)}.uid: unreadable`);
  expect(readdirSync(folder)).not.toContain(`.${uuid(6)}.conf.new`);
});

test("ids that /etc/subuid gives away are skipped", async () => {
  const file = join(top, "subuid");
  writeFileSync(file, "# users\nalice:100000:65536\nbob:165536:65536\nbroken\n");
  const taken = await subordinateIds([file, join(top, "missing")]);
  expect(taken).toEqual([
    { start: 100_000, count: 65_536 },
    { start: 165_536, count: 65_536 },
  ]);
  const { store } = fresh({ taken });
  await store.load();
  expect((await store.create(store.draft(conf("a")))).index).toBe(2);
});

test("where configurations are signed they are stored as they came, and not changed", async () => {
  const { store, folder } = fresh({ device: signed });
  await store.load();
  const source = conf("web", "# as signed\nvnet_configs { if_name: 'eth0' configure: true }");
  expect(await store.create(store.draft(source)).catch(chain)).toBe(
    "store container web: configurations must be signed here",
  );
  expect(readdirSync(folder)).toEqual([]);
  const web = await store.create(store.draft(source), {
    signature: Buffer.from("s"),
    certificate: Buffer.from("c"),
  });
  expect(readFileSync(join(folder, `${web.uuid}.conf`))).toEqual(source);
  expect(await store.change(web.uuid, () => {}).catch(chain)).toBe(
    "signed configurations are not changed here",
  );
  await fresh({ folder, device: signed }).store.load();
  expect(readFileSync(join(folder, `${web.uuid}.conf`))).toEqual(source);
  await store.remove(web.uuid);
  expect(readdirSync(folder)).toEqual([]);
});

test("a configuration of our own needs no signature, as long as it is that; one that was refused is not replaced", async () => {
  const builtIn = { uuid: C0, source: conf("c0") };
  const { store, folder } = fresh({ device: signed, builtIn });
  await store.load();
  const index = (await store.create(store.draft(builtIn.source), undefined, C0)).index;
  expect(readdirSync(folder).toSorted()).toEqual([C0, `${C0}.conf`, `${C0}.created`, `${C0}.uid`]);
  const again = fresh({ device: signed, builtIn, folder });
  expect((await again.store.load()).map((s) => [s.uuid, s.index])).toEqual([[C0, index]]);
  writeFileSync(join(folder, `${C0}.conf`), conf("c0", "ram_limit: 1"));
  const changed = fresh({ device: signed, builtIn, folder });
  expect(await changed.store.load()).toEqual([]);
  expect(changed.lines.join()).toContain("it has no signature: sign it with `cml container sign`");
  const refused = changed.store.create(changed.store.draft(builtIn.source), undefined, C0);
  expect(await refused.catch(chain)).toBe(`${C0}.conf is there and was refused`);
  expect(readFileSync(join(folder, `${C0}.conf`))).toEqual(conf("c0", "ram_limit: 1"));
});

test("what a killed cmld left is cleared, unless there is data; nobody else gets the ids", async () => {
  const { store, folder, lines, files } = fresh();
  const web = await store.create(store.draft(conf("web")));
  const [killed, data] = ["11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"];
  for (const uuid of [killed, data]) {
    cpSync(join(folder, `${web.uuid}.created`), join(folder, `${uuid}.created`));
    mkdirSync(join(folder, uuid));
  }
  writeFileSync(join(folder, `${killed}.uid`), new Uint8Array([1, 0, 0, 0]));
  writeFileSync(join(folder, `${data}.uid`), new Uint8Array([2, 0, 0, 0]));
  writeFileSync(join(folder, data, "data.plain.img"), "");
  await store.load();
  expect(files().filter((f) => f.startsWith(killed))).toEqual([]);
  expect(files().filter((f) => f.startsWith(data)).length).toBe(3);
  expect(lines.join("\n")).toContain(`there is no ${data}.conf`);
  expect((await store.create(store.draft(conf("two")))).index).toBe(1);
  expect((await store.create(store.draft(conf("three")))).index).toBe(3); // 2 belongs to the data
});

test("a configuration that is broken for a while keeps its ids, and so does a container that runs", async () => {
  let running: number[] = [];
  const { store, folder } = fresh({ inUse: () => running });
  const web = await store.create(store.draft(conf("web")));
  const path = join(folder, `${web.uuid}.conf`);
  const good = readFileSync(path);
  writeFileSync(path, "color: ");
  expect(await store.load()).toEqual([]);
  const db = await store.create(store.draft(conf("db")));
  expect(db.index).not.toBe(web.index);
  writeFileSync(path, good);
  await store.load();
  expect([web, db].map((s) => store.get(s.uuid)?.index)).toEqual([web.index, db.index]);
  for (const file of [`${web.uuid}.conf`, `${web.uuid}.uid`]) rmSync(join(folder, file));
  running = [web.index];
  await store.load();
  expect((await store.create(store.draft(conf("new")))).index).toBe(2);
});
