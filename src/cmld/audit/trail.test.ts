import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  copyFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AuditRecord } from "../../../proto/gen/proto.js";
import { parse } from "../../lib/text.ts";
import { bounded, type Event, RECORD_MAX, type Stored, Trail } from "./trail.ts";

const NAME = "11868459-a4f8-4933-a4db-cfa8ac84c2d9";
let directory = "";
let said: string[] = [];
let warned: boolean[] = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "trail-"));
  said = [];
  warned = [];
});
afterEach(() => rmSync(directory, { recursive: true }));

const opened = (limit = 1 << 20, folder = directory) =>
  Trail.open({
    directory: folder,
    name: NAME,
    limit,
    say: (line) => said.push(line),
    warned: (full) => warned.push(full),
  });
const event = (n: number, more: Partial<Event> = {}): Event => ({
  type: "SSA.CMLD.CONTAINER_MGMT.container-start",
  timestamp: 1_795_000_000 + n,
  subject: NAME,
  meta: [["n", String(n)]],
  ...more,
});
const log = (folder = directory) => join(folder, `${NAME}.log`);
const read = (folder = directory) => readFileSync(log(folder), "utf8");
const n = (s: Stored) => Number(s.record.meta.find((m) => m.key === "n")?.value ?? -1);
const all = async (t: Trail) => (await t.next(t.acknowledged, 100_000)).map(n);
const upTo = (count: number, from = 1) => Array.from({ length: count }, (_, i) => from + i);

test("append() writes the original's text: records, each followed by five dashes, in order", async () => {
  const t = await opened();
  const kept = await Promise.all([t.append(event(1)), t.append(event(2)), t.append(event(3))]);
  expect(kept).toEqual([true, true, true]);
  expect(await all(t)).toEqual([1, 2, 3]);
  await t.close();
  const parts = read().split("-----\n");
  expect(parts.pop()).toBe("");
  expect(parts.map((p) => parse<AuditRecord>(AuditRecord, p).timestamp)).toEqual([
    1_795_000_001, 1_795_000_002, 1_795_000_003,
  ]);
  expect(parts[1]).toMatch(
    /^timestamp: 1795000002\ntype: "SSA.CMLD.CONTAINER_MGMT.container-start"\nsubject_id: "11868459-.*"\nmeta \{\n {2}key: "n"\n {2}value: "2"\n\}\nmeta \{\n {2}key: "sequence"\n {2}value: "2"\n\}\nmeta \{\n {2}key: "chain"\n {2}value: "[0-9a-f]{32}"\n\}\n$/,
  );
  expect(statSync(log()).mode & 0o777).toBe(0o600);
});

test("numbers and acknowledgements go on after a restart", async () => {
  let t = await opened();
  for (const i of upTo(5)) await t.append(event(i));
  await t.acknowledge(2);
  await t.close();
  t = await opened();
  expect([t.last, t.acknowledged, await all(t)]).toEqual([5, 2, [3, 4, 5]]);
  await t.append(event(6));
  expect(t.last).toBe(6);
  await t.acknowledge(6);
  await t.close();
  t = await opened();
  expect([t.last, t.acknowledged, await all(t)]).toEqual([6, 6, []]);
  await t.close();
  expect(said).toEqual([]);
});

test("what is torn off at any byte ends with the last whole record, and goes on from there", async () => {
  const t = await opened();
  for (const i of upTo(3))
    await t.append(
      event(i, {
        meta: [
          ["n", String(i)],
          ["text", "ä\n-----\n'\""],
        ],
      }),
    );
  await t.close();
  const whole = readFileSync(log());
  const ends = [0];
  for (let at = whole.indexOf("\n-----\n"); at >= 0; at = whole.indexOf("\n-----\n", at + 1))
    ends.push(at + 7);
  expect(ends.length).toBe(4);
  for (let length = 0; length <= whole.length; length++) {
    const folder = mkdtempSync(join(tmpdir(), "torn-"));
    copyFileSync(join(directory, `${NAME}.ack`), join(folder, `${NAME}.ack`));
    writeFileSync(log(folder), whole.subarray(0, length));
    said = [];
    const torn = await opened(1 << 20, folder);
    const left = ends.filter((e) => e <= length).length - 1;
    expect([length, await all(torn)]).toEqual([length, upTo(left)]);
    expect(said.length).toBe(ends.includes(length) ? 0 : 1);
    await torn.append(event(9));
    expect(await all(torn)).toEqual([...upTo(left), 9]);
    await torn.close();
    rmSync(folder, { recursive: true });
  }
}, 60_000);

test("garbage after the last record is cut off, whatever it is; one damaged within is delivered as such", async () => {
  let t = await opened();
  for (const i of upTo(4)) await t.append(event(i));
  await t.close();
  const good = readFileSync(log());
  const record = good.subarray(good.length / 2);
  for (const garbage of [
    Buffer.alloc(4096),
    Buffer.alloc(200_000, "x"),
    Buffer.from("-----\n-----\n"),
    record,
  ]) {
    writeFileSync(log(), Buffer.concat([good, garbage]));
    said = [];
    t = await opened();
    expect(await all(t)).toEqual([1, 2, 3, 4]);
    await t.close();
    expect(said.length).toBe(1);
    expect(said[0]).toContain("no whole record");
    expect(readFileSync(log())).toEqual(good);
  }
  const text = good.toString();
  writeFileSync(
    log(),
    text.replace('value: "2"\n}\nmeta {\n  key: "seq', 'value: "7"\n}\nmeta {\n  key: "seq'),
  );
  said = [];
  t = await opened();
  const second = (await t.next(1, 1))[0]!;
  expect([second.sequence, n(second)]).toEqual([2, 7]); // a whole record whose hash is wrong: said, and kept
  expect(said).toEqual(["1 records within it are damaged: delivered as FSA.CMLD.GENERIC.corrupt-record"]);
  await t.close();
  writeFileSync(log(), text.replace('timestamp: 1795000002\ntype: "', "timestamp: soon\ntype: \0"));
  t = await opened();
  const [one, two, three] = await t.next(0, 3);
  expect([one, two, three].map((s) => s!.sequence)).toEqual([1, 2, 3]);
  expect(two!.record.type).toBe("FSA.CMLD.GENERIC.corrupt-record");
  expect(two!.record.meta[0]!.value).toContain("timestamp: soon");
  expect([n(one!), n(three!)]).toEqual([1, 3]);
  await t.append(event(5));
  expect(n((await t.next(4, 1))[0]!)).toBe(5);
  await t.close();
});

test("a file of the original's is taken over: its records get numbers, the last one its dashes", async () => {
  const plain = (i: number) => bounded(event(i));
  writeFileSync(log(), `${plain(1)}-----\nnonsense\n-----\n${plain(3)}`);
  let t = await opened();
  expect(await all(t)).toEqual([1, -1, 3]);
  expect((await t.next(1, 1))[0]!.record.type).toBe("FSA.CMLD.GENERIC.corrupt-record");
  await t.acknowledge(1);
  await t.close();
  // The original runs for a while: it removes the first and adds one.
  writeFileSync(log(), `${read().split("-----\n").slice(1).join("-----\n")}${plain(4)}-----\n`);
  t = await opened();
  expect([t.acknowledged, t.last, await all(t)]).toEqual([1, 4, [-1, 3, 4]]);
  await t.append(event(5));
  await t.close();
  t = await opened();
  expect(await all(t)).toEqual([-1, 3, 4, 5]);
  await t.close();
});

test("a lost or broken note of what was acknowledged means that it is delivered again, not that it is lost", async () => {
  let t = await opened();
  for (const i of upTo(3)) await t.append(event(i));
  await t.acknowledge(2);
  await t.close();
  writeFileSync(join(directory, `${NAME}.ack`), "2 zz");
  t = await opened();
  expect([await all(t), t.last]).toEqual([[1, 2, 3], 3]);
  expect(said).toEqual(["which records were acknowledged is not known: they are delivered again"]);
  await t.close();
});

test("the space is bounded: what does not fit is dropped and counted; acknowledging makes room, in a file that shrinks", async () => {
  const limit = 256 << 10;
  const t = await opened(limit);
  const long: [string, string][] = [["text", "x".repeat(1000)]];
  let kept = 0;
  while (await t.append(event(kept + 1, { meta: [["n", String(kept + 1)], ...long] }))) kept++;
  expect(kept).toBeGreaterThan(150);
  expect(await t.append(event(0, { meta: long }))).toBe(false);
  expect(t.lost).toBe(2);
  expect(statSync(log()).size).toBeLessThanOrEqual(limit);
  expect(warned).toEqual([true]);
  expect(said).toEqual(["it is full: records are dropped"]);
  // Others' records may not take the last quarter.
  await t.acknowledge(10);
  expect(await t.append(event(0, { foreign: true, meta: long }))).toBe(false);

  const before = statSync(log()).ino;
  await t.acknowledge(kept);
  await t.append(event(1000));
  await t.close();
  expect(statSync(log()).ino).not.toBe(before);
  expect(statSync(log()).size).toBeLessThan(2000);
  expect(warned).toEqual([true, false]);
  const again = await opened(limit);
  const [lost, last] = await again.next(kept, 10);
  expect(lost!.record.type).toBe("FSA.CMLD.GENERIC.records-lost");
  expect(lost!.record.meta[0]).toMatchObject({ key: "count", value: "3" });
  expect([lost!.sequence, last!.sequence, n(last!)]).toEqual([kept + 1, kept + 2, 1000]);
  await again.close();
  expect(readdirSync(directory).sort()).toEqual([`${NAME}.ack`, `${NAME}.log`]);
});

test("appending, acknowledging and reading at the same time keep order and number", async () => {
  let t = await opened(64 << 10);
  const [total, seen] = [2000, [] as number[]];
  let wake: () => void = () => {};
  let resumed: () => void = () => {};
  using _ = t.onRecords(() => wake());
  const reading = (async () => {
    while (seen.length < total) {
      const [first] = await t.next(t.acknowledged, 1);
      if (!first) {
        await new Promise<void>((go) => (wake = go));
        continue;
      }
      seen.push(n(first));
      await t.acknowledge(first.sequence);
      if (first.sequence % 500 === 0) {
        // the daemon ends, and another one goes on
        await t.close();
        t = await opened(64 << 10);
        t.onRecords(() => wake());
        resumed();
      }
    }
  })();
  for (let i = 1; i <= total; ) {
    if (await t.append(event(i))) i++;
    else if (t.remaining > 0) await new Promise<void>((go) => (resumed = go));
    else await new Promise<void>((go) => setImmediate(go));
  }
  await reading;
  expect(seen).toEqual(upTo(total));
  await t.close();
  expect(said.filter((line) => !line.includes("full"))).toEqual([]);
}, 60_000);

test("records of one turn share a write; what was appended before settled() is on the disk", async () => {
  const t = await opened(16 << 20);
  const began = performance.now();
  for (const i of upTo(5000)) void t.append(event(i));
  await t.settled();
  expect(read().split("-----\n").length).toBe(5001);
  expect(performance.now() - began).toBeLessThan(20_000);
  await t.close();
});

test("bounded(): whatever comes, a record fits and is one", () => {
  const strange = `\0\n"\\\u2028${"\u{1f600}".repeat(20_000)}`;
  const text = bounded({
    type: strange,
    timestamp: 1,
    subject: strange,
    meta: Array.from({ length: 1000 }, () => [strange, strange] as const),
  });
  expect(Buffer.byteLength(text)).toBeLessThan(RECORD_MAX - 1024);
  expect(parse<AuditRecord>(AuditRecord, text).timestamp).toBe(1);
});
