// Audit records against a real cmld: what was answered is kept, in order, whatever kills it; a container gets its own
// records, through its own socket, and only they go when it says so.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import {
  AuditRecord,
  CmldToServiceMessage,
  type IServiceToCmldMessage,
  ServiceToCmldMessage,
} from "../../proto/gen/proto.js";
import { frame, Unframer } from "../../src/lib/frame.ts";
import { parse } from "../../src/lib/text.ts";
import { C0 } from "../../src/lib/uuid.ts";
import { where } from "../../src/sys/cgroup.ts";
import { counts } from "../counts.ts";
import { type Client, Cmld, Code, Command } from "./daemon.ts";

const SEED = 20_261_121;
/** Wait for what nobody tells; the test's time is the limit. */
async function until<T>(look: () => T | Promise<T>): Promise<NonNullable<Exclude<T, false>>> {
  for (;;) {
    const found = await look();
    if (found) return found as NonNullable<Exclude<T, false>>;
    await Bun.sleep(5); // until it has become true
  }
}

let cmld: Cmld;
beforeAll(async () => {
  // In memory: thousands of syncs would wait for what others write to the disk. Power cuts are test/machine's.
  cmld = await Cmld.begin(undefined, {
    device: "signed_configs: false\naudit_size: 64\n",
    under: "/dev/shm",
  });
});
afterAll(async () => await cmld[Symbol.asyncDispose]());

const text = (uuid: string): string => readFileSync(join(cmld.folder, "base/audit", `${uuid}.log`), "utf8");
const records = (uuid: string): AuditRecord[] =>
  text(uuid)
    .split("-----\n")
    .slice(0, -1)
    .map((part) => parse<AuditRecord>(AuditRecord, part));
const meta = (r: AuditRecord, key: string) => r.meta.find((m) => m.key === key)?.value;
const name = (r: AuditRecord) => r.type.split(".").slice(3).join(".");
const sequences = (all: AuditRecord[]) => all.map((r) => Number(meta(r, "sequence")));

async function audit(c: Client, uuid?: string): Promise<AuditRecord[]> {
  const all: AuditRecord[] = [];
  c.send(Command.AUDIT, uuid ? { container_uuids: [uuid] } : {});
  for (;;) {
    const m = await c.next();
    if (m.code !== Code.AUDIT_RECORDS) return all;
    all.push(...m.audit_records);
  }
}

// --- what is recorded -----------------------------------------------------------------------

test("a container's life is in its own trail, who asked for it in the CML's; refused commands too", async () => {
  const uuid = await cmld.create("web");
  using c = await cmld.client();
  const at = { container_uuids: [uuid] };
  expect(await c.say(Command.CONTAINER_START, at)).toBe("CONTAINER_START_OK");
  expect(await c.say(Command.CONTAINER_START, at)).toStartWith("CONTAINER_START_EEXIST");
  expect(await c.say(Command.CONTAINER_STOP, at)).toBe("CONTAINER_STOP_OK");
  const life = await until(async () => {
    const all = await audit(c, uuid);
    return all.some((r) => name(r) === "container-stop") && all;
  });
  expect(life.map((r) => r.type)).toEqual([
    "SSA.CMLD.CONTAINER_MGMT.container-create",
    "SSA.CMLD.CONTAINER_MGMT.container-start",
    "FSA.CMLD.CONTAINER_MGMT.container-start-already-running",
    "SSA.CMLD.CONTAINER_MGMT.shutting-down",
    "SSA.CMLD.CONTAINER_MGMT.container-stop",
  ]);
  expect(life.every((r) => r.subject_id === uuid && Math.abs(r.timestamp * 1000 - Date.now()) < 60_000)).toBe(
    true,
  );
  expect(records(uuid)).toEqual(life);

  const asked = (await audit(c)).filter((r) => name(r) === "command");
  expect(asked.map((r) => [r.type.slice(0, 3), meta(r, "command"), meta(r, "uid")])).toEqual([
    ["SUA", "CREATE_CONTAINER", "0"],
    ["SUA", "CONTAINER_START", "0"],
    ["FUA", "CONTAINER_START", "0"],
    ["SUA", "CONTAINER_STOP", "0"],
  ]);
  expect(meta(asked[2]!, "error")).toBe("web is RUNNING already");
  expect(meta(asked[2]!, "container")).toBe(uuid);
  expect((await audit(c))[0]!.type).toBe("SSA.CMLD.GENERIC.boot-time");

  expect(await c.say(Command.REMOVE_CONTAINER, at)).toBe("CMD_OK");
  const last = (await audit(c)).find((r) => name(r) === "container-remove")!;
  expect([last.subject_id, meta(last, "unacknowledged")]).toEqual([uuid, "5"]);
  expect(() => text(uuid)).toThrow("ENOENT");
});

test("control audit -f prints what is there and what comes; without audit_size there is nothing, and it says so", async () => {
  const follower = Bun.spawn(
    [process.execPath, "src/main.ts", "control", "-s", cmld.socket, "audit", "--json", "-f", "-n", "1"],
    { stdout: "pipe", stderr: "inherit", stdin: "ignore" },
  );
  let seen = "";
  void (async () => {
    for await (const chunk of follower.stdout) seen += Buffer.from(chunk).toString();
  })();
  await until(() => seen.includes("\n"));
  using c = await cmld.client();
  const unknown = "ffffffff-0000-4000-8000-000000000001";
  expect(await c.say(Command.CONTAINER_START, { container_uuids: [unknown] })).toStartWith(
    "CONTAINER_START_EEXIST",
  );
  await until(() => seen.includes(unknown) && seen.includes("FUA.CMLD.GENERIC.command"));
  const lines = seen
    .trim()
    .split("\n")
    .map((l) => JSON.parse(l) as AuditRecord);
  expect(lines.map(name).slice(1)).toEqual(["container-start-not-existing", "command"]);
  follower.kill();
  await follower.exited;

  await using without = await Cmld.begin();
  using o = await without.client();
  expect(await o.say(Command.AUDIT)).toBe("CMD_FAILED: audit_size in device.conf is 0: no records are kept");
});

// --- what survives ----------------------------------------------------------------------------

test(
  "audit: kill -9 of cmld loses and reorders nothing that was answered",
  async () => {
    let seed = SEED;
    const random = (below: number) => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31; // the C standard's example
      return Math.floor((seed / 2 ** 31) * below);
    };
    const LANES = 16; // requests of one connection are answered one after the other, each after a write
    const WINDOW = 4;
    const uuidOf = (lane: number, n: number) =>
      `000000${lane.toString(16).padStart(2, "0")}-0000-4000-8000-${n.toString(16).padStart(12, "0")}`;
    const answered: number[][] = Array.from({ length: LANES }, () => []);
    const asked = Array<number>(LANES).fill(0);
    const total = () => answered.reduce((n, list) => n + list.length, 0);
    const each = Math.ceil(counts.auditEvents / (counts.auditKills + 1));
    let kills = 0;
    const began = performance.now();
    while (total() < counts.auditEvents) {
      const aim = Math.min(counts.auditEvents, total() + each - random(Math.floor(each / 4)));
      const lanes = answered.map(async (list, lane) => {
        using c = await cmld.client();
        const sent: number[] = [];
        try {
          while (total() < aim) {
            while (sent.length < WINDOW) {
              sent.push(asked[lane]!);
              c.send(Command.CONTAINER_START, { container_uuids: [uuidOf(lane, asked[lane]!++)] });
            }
            await c.next();
            list.push(sent.shift()!);
          }
          for (; sent.length > 0; list.push(sent.shift()!)) await c.next();
        } catch (e) {
          if (!/closed the connection/.test(String(e))) throw e;
        }
      });
      if (kills < counts.auditKills) {
        await until(() => total() >= aim - each / 10);
        expect(await cmld.end("SIGKILL")).toBe("SIGKILL");
        kills++;
        await Promise.all(lanes);
        await cmld.start();
      } else await Promise.all(lanes);
    }
    const seconds = (performance.now() - began) / 1000;
    expect(kills).toBe(counts.auditKills);

    const all = records(C0);
    const order = sequences(all);
    expect(order).toEqual(order.map((_, i) => order[0]! + i));
    expect(all.filter((r) => name(r) === "corrupt-record" || name(r) === "records-lost")).toEqual([]);
    const found = new Map<number, number[]>();
    for (const r of all) {
      if (name(r) !== "container-start-not-existing") continue;
      const [, lane, n] = /^000000([0-9a-f]{2})-0000-4000-8000-([0-9a-f]{12})$/.exec(r.subject_id!) ?? [];
      if (lane === undefined) continue;
      const list = found.get(Number.parseInt(lane, 16)) ?? [];
      found.set(Number.parseInt(lane, 16), list);
      list.push(Number.parseInt(n!, 16));
    }
    for (const [lane, list] of answered.entries()) {
      const kept = found.get(lane)!;
      expect(kept).toEqual(kept.toSorted((a, b) => a - b)); // in order, none twice
      expect(new Set(kept).size).toBe(kept.length);
      const missing = list.filter((n) => !new Set(kept).has(n));
      expect([lane, missing]).toEqual([lane, []]);
    }
    console.log(
      `${total()} answered requests, ${order.length} records, ${kills} kills, ${Math.round(total() / seconds)} requests/s`,
    );
    using c = await cmld.client();
    expect(sequences(await audit(c))).toEqual(order); // and cmld says the same
  },
  300_000 + counts.auditEvents * 50,
);

// --- delivery ---------------------------------------------------------------------------------

const { mount, own } = where();
const processOf = (uuid: string): string =>
  readFileSync(
    join(mount, own === "/" ? "cml" : own.replace(/\/cmld$/, ""), "containers", uuid, "child/cgroup.procs"),
    "utf8",
  ).split("\n")[0]!;

/** A service inside the container, as the original's: acknowledges what it has kept. */
class Service implements Disposable {
  readonly got: CmldToServiceMessage[] = [];
  hash = "0".repeat(128);
  readonly #socket: Socket;
  #wake: (() => void) | undefined;
  private constructor(socket: Socket) {
    this.#socket = socket;
    const unframer = new Unframer();
    socket.on("data", (chunk: Buffer) => {
      for (const m of unframer.push(chunk)) {
        const decoded = CmldToServiceMessage.decode(m);
        if (decoded.code === CmldToServiceMessage.Code.AUDIT_RECORD)
          this.hash = createHash("sha512").update(m).digest("hex");
        this.got.push(decoded);
        this.#wake?.();
      }
    });
    socket.on("error", () => {});
  }
  static of(uuid: string): Promise<Service> {
    return new Promise((resolve, reject) => {
      const path = `/proc/${processOf(uuid)}/root/run/socket/cml-service`;
      const socket = connect({ path }, () => resolve(new Service(socket)));
      socket.on("error", reject);
    });
  }
  say(m: IServiceToCmldMessage): void {
    this.#socket.write(frame(ServiceToCmldMessage.encode(m)));
  }
  acknowledge(hash = this.hash): void {
    this.say({ code: ServiceToCmldMessage.Code.AUDIT_ACK, audit_ack: hash });
  }
  async next(): Promise<CmldToServiceMessage> {
    while (this.got.length === 0) await new Promise<void>((wake) => (this.#wake = wake));
    return this.got.shift()!;
  }
  /** What kind the next message is, and of which record. */
  async hears(): Promise<string> {
    const m = await this.next();
    const code = CmldToServiceMessage.Code[m.code]!;
    return m.audit_record ? `${code} ${name(m.audit_record)}` : code;
  }
  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}

test("a container's service is told, asks, gets record by record, and nobody else's", async () => {
  const uuid = await cmld.create("served");
  {
    using c = await cmld.client();
    expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
  }
  using service = await Service.of(uuid);
  service.acknowledge();
  expect(await service.hears()).toBe("AUDIT_RECORD container-create");
  service.acknowledge("0".repeat(128)); // not kept: again
  expect(await service.hears()).toBe("AUDIT_RECORD container-create");
  service.acknowledge();
  expect(await service.hears()).toBe("AUDIT_RECORD container-start");
  const { hash } = service;
  service.acknowledge();
  expect(await service.hears()).toBe("AUDIT_COMPLETE");
  using c = await cmld.client();
  expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toStartWith(
    "CONTAINER_START_EEXIST",
  );
  const told = await service.next();
  expect([told.code, (told.audit_remaining_storage ?? 0) > 60 << 20]).toEqual([
    CmldToServiceMessage.Code.AUDIT_NOTIFY,
    true,
  ]);
  service.acknowledge(hash);
  expect(await service.hears()).toBe("AUDIT_RECORD container-start-already-running");
  expect((await audit(c, uuid)).map(name)).toEqual(["container-start-already-running"]);
});

test("fuzz: whatever a container says on its service socket, others get their records, and no connection stays", async () => {
  const uuid = await cmld.create("noisy");
  using c = await cmld.client();
  expect(await c.say(Command.CONTAINER_START, { container_uuids: [uuid] })).toBe("CONTAINER_START_OK");
  let seed = SEED;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0; // as C's rand() of old
    return Math.floor((seed / 2 ** 32) * below);
  };
  const noise = (n: number) => Buffer.from(Uint8Array.from({ length: n }, () => random(256)));
  const header = (n: number) => Buffer.from([n >>> 24, n >>> 16, n >>> 8, n].map((b) => b & 255));
  const ack = (hash: string) =>
    Buffer.from(
      frame(ServiceToCmldMessage.encode({ code: ServiceToCmldMessage.Code.AUDIT_ACK, audit_ack: hash })),
    );
  const inputs: (() => Buffer)[] = [
    () => noise(random(64)),
    () => Buffer.concat([header(0xffff_ffff), noise(10)]),
    () => Buffer.concat([header(20), noise(random(20))]), // cut
    () => Buffer.from(frame(noise(random(40)))),
    () => ack(noise(random(300)).toString("latin1").replaceAll("\0", "x")),
    () => Buffer.concat(Array(20).fill(ack("0".repeat(128)))), // and hang up without reading
    () => ack("0".repeat(128)).subarray(0, 1 + random(130)),
    () => Buffer.from(frame(Uint8Array.from([0x08, random(40)]))),
    () => Buffer.from(frame(Uint8Array.from([0x08, 0x15, 0x8a, 0x01, 0x02, 0xc3, 0x28]))), // not UTF-8
  ];
  const connections = () => readdirSync(`/proc/${cmld.pid}/fd`).length;
  using healthy = await Service.of(uuid);
  const path = `/proc/${processOf(uuid)}/root/run/socket/cml-service`;
  const some = async (n: number) => {
    for (let i = 0; i < n; i++) {
      const socket = connect({ path });
      socket.on("error", () => {});
      socket.on("data", () => {});
      socket.end(inputs[i % inputs.length]!());
      await new Promise<void>((resolve) => socket.on("close", () => resolve()));
      if (i % 10 > 0) continue;
      healthy.acknowledge("f".repeat(128)); // of nothing: the first again
      expect(await healthy.hears()).toBe("AUDIT_RECORD container-create");
    }
  };
  const n = Math.min(counts.fuzzInputs / 50, 600);
  await some(n);
  const before = connections();
  await some(n);
  for (const end = performance.now() + counts.fuzzSeconds * 1000; performance.now() < end; ) await some(100);
  await until(() => connections() <= before);
  expect((await audit(c, uuid)).map(name).slice(0, 2)).toEqual(["container-create", "container-start"]);
}, 120_000);
