import { afterEach, beforeEach, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CmldToServiceMessage } from "../../../proto/gen/proto.js";
import { Delivery, type Receiver } from "./delivery.ts";
import { Trail } from "./trail.ts";

const { Code } = CmldToServiceMessage;
const ZEROS = "0".repeat(128);
let directory = "";
let trail: Trail;
const open = () =>
  Trail.open({ directory, name: "11868459-a4f8-4933-a4db-cfa8ac84c2d9", limit: 1 << 20, say: () => {} });
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "delivery-"));
  trail = await open();
});
afterEach(async () => {
  await trail.close();
  rmSync(directory, { recursive: true });
});

const event = (n: number) =>
  trail.append({ type: "SSA.CMLD.GENERIC.same", timestamp: 1, meta: [["n", `${n}`]] });

class Service implements Receiver {
  readonly got: string[] = [];
  hash = ZEROS;
  readonly #gone = new AbortController();
  readonly gone = this.#gone.signal;
  send(bytes: Uint8Array): Promise<void> {
    const m = CmldToServiceMessage.decode(bytes);
    const n = m.audit_record?.meta.find((e) => e.key === "n")?.value;
    this.got.push(n ?? Code[m.code]!);
    if (m.code === Code.AUDIT_RECORD) this.hash = createHash("sha512").update(bytes).digest("hex");
    return Promise.resolve();
  }
  leave(): void {
    this.#gone.abort();
  }
}

test("a service is told once, asks with zeros, gets record by record, and the end", async () => {
  const delivery = new Delivery(trail);
  const service = new Service();
  delivery.listens(service);
  expect(service.got).toEqual([]); // there is nothing
  for (const n of [1, 2, 3]) {
    await event(n);
    delivery.notify();
  }
  expect(service.got).toEqual(["AUDIT_NOTIFY"]);
  for (let i = 0; i < 4; i++) await delivery.acknowledged(service.hash, service);
  expect(service.got).toEqual(["AUDIT_NOTIFY", "1", "2", "3", "AUDIT_COMPLETE"]);
  expect([trail.acknowledged, trail.last]).toEqual([3, 3]);
  await event(4);
  delivery.notify();
  await delivery.acknowledged(service.hash, service);
  expect(service.got.slice(5)).toEqual(["AUDIT_NOTIFY", "4"]);
});

test("a record stays until its own hash comes: not for an old one, not for one that is wrong", async () => {
  const delivery = new Delivery(trail);
  const service = new Service();
  await event(1);
  await event(1); // the same but for its number
  await delivery.acknowledged(ZEROS, service);
  const first = service.hash;
  for (const wrong of [ZEROS, "", "f".repeat(128), first.slice(1), `${first}0`])
    await delivery.acknowledged(wrong, service);
  expect(service.got).toEqual(Array(6).fill("1"));
  expect(trail.acknowledged).toBe(0);
  await delivery.acknowledged(first.toUpperCase(), service);
  expect(trail.acknowledged).toBe(1);
  await delivery.acknowledged(first, service); // said twice
  expect(trail.acknowledged).toBe(1);
});

test("an acknowledgement counts with the next cmld as well; what was not acknowledged comes again", async () => {
  const service = new Service();
  for (const n of [1, 2]) await event(n);
  await new Delivery(trail).acknowledged(ZEROS, service);
  await trail.close();
  trail = await open();
  const delivery = new Delivery(trail);
  await delivery.acknowledged(service.hash, service);
  expect([service.got, trail.acknowledged]).toEqual([["1", "2"], 1]);
  await trail.close();
  trail = await open();
  await new Delivery(trail).acknowledged(ZEROS, service);
  expect(service.got).toEqual(["1", "2", "2"]);
});

test("who has gone is told nothing; who comes is; many who ask at once get answers one after the other", async () => {
  const delivery = new Delivery(trail);
  const [gone, next] = [new Service(), new Service()];
  delivery.listens(gone);
  gone.leave();
  await event(1);
  delivery.notify();
  expect(gone.got).toEqual([]);
  delivery.listens(next);
  expect(next.got).toEqual(["AUDIT_NOTIFY"]);
  await event(2);
  await delivery.acknowledged(ZEROS, next);
  const hash = next.hash;
  await Promise.all([hash, hash, hash].map((h) => delivery.acknowledged(h, next)));
  expect(next.got.slice(1)).toEqual(["1", "2", "2", "2"]);
  expect(trail.acknowledged).toBe(1);
});
