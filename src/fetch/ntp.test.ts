// SNTP against a small server, which may lie.
import { afterAll, expect, test } from "bun:test";
import { createSocket } from "node:dgram";
import { ask, offsetOf, question } from "./ntp.ts";

const EPOCH = 2_208_988_800;
const secret = Buffer.from("12345678");

/** An answer of a server whose clock says `time`. */
function answer(to: Buffer, time: number, change: (packet: Buffer) => void = () => {}): Buffer {
  const packet = Buffer.alloc(48);
  packet[0] = (4 << 3) | 4;
  packet[1] = 2;
  to.copy(packet, 24, 40, 48);
  for (const at of [32, 40]) {
    packet.writeUInt32BE((Math.floor(time) + EPOCH) % 2 ** 32, at);
    packet.writeUInt32BE(Math.floor((time % 1) * 2 ** 32), at + 4);
  }
  change(packet);
  return packet;
}
const judged = (time: number, change?: (packet: Buffer) => void): number | undefined =>
  offsetOf(answer(question(secret), time, change), secret, 1000, 1002);

test("the offset is that of the middle between question and answer", () => {
  expect(judged(1001)).toBeCloseTo(0, 3);
  expect(judged(1011.5)).toBeCloseTo(10.5, 3);
  expect(judged(901.25)).toBeCloseTo(-99.75, 3);
  const in2040 = 2_208_988_800;
  expect(judged(in2040)).toBeCloseTo(in2040 - 1001, 3);
});

test("what is no answer to the question is not heard", () => {
  expect(judged(1001, (p) => p.fill(0, 24, 32))).toBeUndefined();
  expect(judged(1001, (p) => p.writeUInt8((4 << 3) | 3, 0))).toBeUndefined();
  expect(offsetOf(Buffer.alloc(47), secret, 0, 0)).toBeUndefined();
});

test("a server that does not know the time says so", () => {
  expect(() => judged(1001, (p) => p.writeUInt8((3 << 6) | (4 << 3) | 4, 0))).toThrow(
    "does not know the time",
  );
  for (const stratum of [0, 16])
    expect(() => judged(1001, (p) => p.writeUInt8(stratum, 1))).toThrow("does not know");
  expect(() => judged(1001, (p) => p.fill(0, 40))).toThrow("says no time");
});

const server = createSocket("udp4");
afterAll(() => server.close());

test("over the network; what others send meanwhile is not heard", async () => {
  server.on("message", (to, from) => {
    server.send(
      answer(to, 1, (p) => p.fill(7, 24, 32)),
      from.port,
      from.address,
    );
    server.send(answer(to, Date.now() / 1000 + 7200), from.port, from.address);
  });
  await new Promise<void>((bound) => server.bind(0, "127.0.0.1", bound));
  expect(await ask(`127.0.0.1:${server.address().port}`)).toBeCloseTo(7200, 0);
});
