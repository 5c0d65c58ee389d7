import { expect, test } from "bun:test";
import { FRAME_MAX, FRAME_MAX_GUEST, frame, Unframer } from "./frame.ts";

const bytes = (...n: number[]) => new Uint8Array(n);

test("frame() puts the length in front, big-endian", () => {
  expect([...frame(bytes(8, 9))]).toEqual([0, 0, 0, 2, 8, 9]);
  expect(() => frame(new Uint8Array(11), 10)).toThrow("message of 11 bytes, at most 10");
});

test("Unframer gives the same messages however the stream is cut", () => {
  const messages = [bytes(1), bytes(), bytes(2, 3, 4), new Uint8Array(10_000).fill(7)];
  const stream = Buffer.concat(messages.map((m) => frame(m)));
  for (const size of [1, 2, 3, 4, 5, 4096, stream.length]) {
    const u = new Unframer();
    const got: number[][] = [];
    for (let at = 0; at < stream.length; at += size)
      for (const m of u.push(stream.subarray(at, at + size))) got.push([...m]);
    expect(got).toEqual(messages.map((m) => [...m]));
    u.end();
    expect(u.held).toBe(0);
  }
});

test("Unframer refuses a length before it stores anything, after the messages before it", () => {
  const u = new Unframer(FRAME_MAX_GUEST);
  const messages = u.push(bytes(0, 0, 0, 1, 5, 0, 16, 0, 1, 9, 9));
  expect([...messages.next().value!]).toEqual([5]);
  expect(() => messages.next()).toThrow("frame of 1048577 bytes, at most 1048576");
  expect(u.held).toBeLessThanOrEqual(4096);
});

test("Unframer holds what was sent, not what was announced", () => {
  const u = new Unframer();
  expect([...u.push(frame(new Uint8Array(FRAME_MAX)).subarray(0, 100_000))]).toEqual([]);
  expect(u.held).toBeLessThanOrEqual(200_000);
  expect(() => u.end()).toThrow("connection closed after 100000 bytes of a frame");
});

test("an Unframer that wipes leaves nothing of what it took: not in the chunk, nor when a message has no end", () => {
  const chunk = Buffer.concat([frame(Buffer.from("a PIN")), Buffer.from([0, 0, 0, 9]), Buffer.from("half")]);
  const unframer = new Unframer(undefined, true);
  const [message] = [...unframer.push(chunk)];
  expect(Buffer.from(message!).toString()).toBe("a PIN");
  expect(chunk.every((byte) => byte === 0)).toBe(true);
  expect(unframer.held).toBeGreaterThan(0);
  unframer.wipe();
  expect(unframer.held).toBe(0);
  expect(() => unframer.end()).not.toThrow();
});
