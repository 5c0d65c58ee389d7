import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { C0 } from "../../lib/uuid.ts";
import { groupOfProcess, type KernelRecord, parseRecord } from "../../sys/audit.ts";
import { where } from "../../sys/cgroup.ts";
import { Auditor, attribute, eventOf, limitOf, type Owners } from "./audit.ts";

const WEB = "11868459-a4f8-4933-a4db-cfa8ac84c2d9";
const MAIL = "3bcdeac9-fd88-4d04-b241-f84b85fe1161";
const owners: Owners = {
  known: (uuid) => [WEB, MAIL, C0].includes(uuid),
  ofUid: (uid) =>
    uid >= 200_000 && uid < 265_536 ? WEB : uid >= 300_000 && uid < 365_536 ? MAIL : undefined,
  groups: () => "/cml/containers",
};
let directory = "";
let warned: string[] = [];
beforeEach(() => {
  directory = join(mkdtempSync(join(tmpdir(), "audit-")), "audit");
  warned = [];
});
afterEach(() => rmSync(join(directory, ".."), { recursive: true }));
const open = (limit = 1 << 20) =>
  Auditor.open({ directory, limit, owners, warn: (line) => warned.push(line) });

const kernel = (type: number, text: string): KernelRecord =>
  parseRecord(type, Buffer.from(`audit(1795000000.000:1): ${text}`))!;
const whose = (r: KernelRecord, group?: string) => attribute(r, owners, () => group);

async function all(a: Auditor, uuid: string) {
  const found = [];
  for await (const some of a.read(uuid)) found.push(...some.map((s) => s.record));
  return found;
}

test("attribute(): the control group first, then the kernel's uid; never what a program wrote", () => {
  const liar = kernel(1112, `pid=7 uid=200001 auid=0 ses=1 msg='uid=300001 pid=1 container=${MAIL}'`);
  expect(whose(liar, `/cml/containers/${WEB}/child/init.scope`)).toEqual({ uuid: WEB, by: "cgroup" });
  expect(whose(liar)).toEqual({ uuid: WEB, by: "uid" });
  const host = kernel(1112, "pid=7 uid=0 auid=0 ses=1 msg='uid=300001 res=success'");
  expect(whose(host)).toEqual({ uuid: undefined, by: "none" });
  expect(whose(host, "/cml/cmld")).toEqual({ uuid: undefined, by: "cgroup" });
  // Somebody of the host who is in a container's group (control run) is the container's.
  expect(whose(host, `/cml/containers/${MAIL}/child`)).toEqual({ uuid: MAIL, by: "cgroup" });
  // A name that a container gives to a group of its own is no container's.
  const nested = `/cml/containers/${WEB}/child/cml/containers/${MAIL}`;
  expect(whose(host, nested)).toEqual({ uuid: WEB, by: "cgroup" });
  expect(whose(host, `/other/cml/containers/${MAIL}`).uuid).toBeUndefined();
  const unknown = "5dd56a85-4647-46ce-a1b9-4e5c78015c11";
  expect(whose(host, `/cml/containers/${unknown}/child`).uuid).toBeUndefined();
  expect(whose(kernel(1701, 'auid=4294967295 uid=365535 gid=0 ses=1 pid=9 comm="x"')).uuid).toBe(MAIL);
  expect(whose(kernel(1701, 'auid=200000 uid=4294967295 pid=9 comm="x" uid=200000')).uuid).toBeUndefined();
});

test("groupOfProcess(): of a living process; not of one that began after the record, nor of one that is gone", async () => {
  const record = (pid: number, time: number) =>
    parseRecord(1326, Buffer.from(`audit(${time.toFixed(3)}:1): pid=${pid} uid=0`))!;
  const now = Date.now() / 1000;
  expect(groupOfProcess(record(process.pid, now))).toBe(where().own);
  expect(groupOfProcess(record(process.pid, now - 24 * 3600))).toBeUndefined();
  const child = Bun.spawn(["true"]);
  await child.exited;
  expect(groupOfProcess(record(child.pid, now))).toBeUndefined();
  expect(groupOfProcess(record(0, now))).toBeUndefined();
});

test("eventOf(): success by what the kernel says, or else the program; what failed is FSA", () => {
  const type = (n: number, text: string) => eventOf(kernel(n, text), WEB, "uid").type;
  expect(type(1112, "pid=1 uid=0 msg='op=login res=success'")).toBe("SSA.CMLD.KAUDIT.type=1112");
  expect(type(1112, "pid=1 uid=0 msg='op=login res=failed'")).toBe("FSA.CMLD.KAUDIT.type=1112");
  expect(type(1006, "pid=1 uid=0 old-auid=4294967295 auid=0 res=1")).toBe("SSA.CMLD.KAUDIT.type=1006");
  expect(type(1326, "auid=1 uid=0 pid=1 sig=31 res=1")).toBe("FSA.CMLD.KAUDIT.type=1326");
  expect(type(1121, `pid=1 uid=0 msg='type: "SSA.CMLD.CONTAINER_MGMT.container-stop"'`)).toBe(
    "SSA.CMLD.KAUDIT.trusted-app",
  );
  expect(type(1339, "module=integrity op=integrity-checksum dev=254:3 sector=77 res=0")).toBe(
    "FSA.CMLD.KAUDIT.dm-audit",
  );
  expect(eventOf(kernel(1112, "pid=1 uid=0 msg='hello'"), WEB, "uid").meta).toEqual([
    ["attributed", "uid"],
    ["pid", "1"],
    ["uid", "0"],
    ["msg", "hello"],
  ]);
});

test("record() goes into the container's trail, or the CML's; each has its own space", async () => {
  const a = await open(200 << 10);
  a.record("SSA", "CONTAINER_MGMT", "container-start", WEB, { name: "web" });
  a.record("FSA", "CONTAINER_MGMT", "container-start-not-existing", "5dd56a85-4647-46ce-a1b9-4e5c78015c11");
  a.record("SSA", "GENERIC", "boot-time", undefined, { pid: 1 });
  await a.settled();
  expect((await all(a, WEB)).map((r) => r.type)).toEqual(["SSA.CMLD.CONTAINER_MGMT.container-start"]);
  expect((await all(a, C0)).map((r) => [r.type, r.subject_id])).toEqual([
    ["FSA.CMLD.CONTAINER_MGMT.container-start-not-existing", "5dd56a85-4647-46ce-a1b9-4e5c78015c11"],
    ["SSA.CMLD.GENERIC.boot-time", undefined],
  ]);
  for (let i = 0; i < 1000; i++)
    a.record("SSA", "CONTAINER_ISOLATION", "flood", WEB, { text: "x".repeat(500) });
  a.record("SSA", "CONTAINER_MGMT", "container-start", MAIL);
  await a.settled();
  expect((await all(a, WEB)).length).toBeLessThan(1000);
  expect((await all(a, MAIL)).length).toBe(1);
  const told = (await all(a, C0)).at(-1)!;
  expect([told.type, told.meta[0]!.value]).toEqual(["RLE.CMLD.GENERIC.audit-nearly-full", WEB]);
  expect(warned).toContain(`audit of ${WEB}: three quarters of its space are used`);
  expect(await a.remove(WEB)).toBeGreaterThan(100);
  expect(readdirSync(directory).some((f) => f.includes(WEB))).toBe(false);
  await a.wipe();
  expect(readdirSync(directory)).toEqual([]);
});

test("kernel(): what is kept, and a share for each container", async () => {
  const a = await open();
  a.kernel(kernel(1325, "table=filter pid=1")); // of the firewall: cmld's own, mostly
  a.kernel(kernel(1300, "arch=c000003e syscall=1"));
  const crash = kernel(1701, 'auid=4294967295 uid=200000 gid=200000 ses=1 pid=4194304 comm="x" sig=11');
  for (let i = 0; i < 700; i++) a.kernel(crash);
  a.kernel(kernel(1305, "op=set audit_enabled=1 old=1 auid=4294967295 ses=4294967295 res=1"));
  await a.settled();
  const web = await all(a, WEB);
  expect(web.length).toBeGreaterThanOrEqual(500);
  expect(web.length).toBeLessThan(700);
  expect(web[0]!.meta.slice(0, 3).map((m) => `${m.key}=${m.value}`)).toEqual([
    "attributed=uid",
    "auid=4294967295",
    "uid=200000",
  ]);
  expect((await all(a, C0)).map((r) => r.type)).toEqual(["SSA.CMLD.KAUDIT.type=1305"]);
  a.lost(3);
  await a.settled();
  expect((await all(a, C0)).at(-1)!.type).toBe("FSA.CMLD.KAUDIT.lost");
  await a.wipe();
});

test("read() with follow gives what comes, until it is told to stop", async () => {
  const a = await open();
  const stop = new AbortController();
  const seen: string[] = [];
  const reading = (async () => {
    for await (const some of a.read(WEB, { lines: 1, follow: stop.signal })) {
      seen.push(...some.map((s) => s.record.meta[0]!.value));
      if (seen.length === 3) stop.abort();
    }
  })();
  for (const n of [1, 2, 3, 4]) {
    a.record("SSA", "GENERIC", "x", WEB, { n });
    await a.settled();
    while (n < 4 && seen.length < n) await new Promise((go) => setImmediate(go));
  }
  await reading;
  expect(seen).toEqual(["1", "2", "3"]);
  await a.wipe();
});

test("limitOf(): audit_size of 4096 MB and more does not wrap", () => {
  expect(limitOf(4096)).toBe(4_294_967_296);
  expect(limitOf(2 ** 24)).toBe(2 ** 44);
});

test("a folder that cannot be written to: said, and nobody waits or dies", async () => {
  const a = await open();
  rmSync(directory, { recursive: true });
  a.record("SSA", "GENERIC", "x", WEB);
  await a.settled();
  expect(warned.length).toBe(1);
  expect(warned[0]).toContain(`audit trail ${WEB}`);
  expect(existsSync(directory)).toBe(false);
});
