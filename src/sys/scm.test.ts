import { expect, test } from "bun:test";
import { readFileSync, writeSync } from "node:fs";
import { fcntl, SOCK_SEQPACKET } from "./calls.ts";
import { pair, pipe } from "./fd.ts";
import { now } from "./now.ts";
import { type Received, receiveMessage, sendMessage } from "./scm.ts";

const F_GETFD = 1;

test("a descriptor travels beside its message, close-on-exec at the other end", () => {
  const [a, b] = pair(SOCK_SEQPACKET);
  const p = pipe();
  sendMessage(a, Buffer.from("keep this"), [p.read]);
  p.read.close();
  const got = receiveMessage(b, 64) as Received;
  expect(Buffer.from(got.bytes).toString()).toBe("keep this");
  expect(got.cut).toBe(false);
  expect(got.descriptors.length).toBe(1);
  expect(now(fcntl(got.descriptors[0]!.n, F_GETFD, 0))).toBe(1);
  writeSync(p.write.n, "through the pipe");
  p.write.close();
  expect(readFileSync(got.descriptors[0]!.take(), "utf8")).toBe("through the pipe");
});

test("receiveMessage() tells later from closed, and says when a message was cut", () => {
  const [a, b] = pair(SOCK_SEQPACKET);
  expect(receiveMessage(b, 4)).toBe("later");
  sendMessage(a, Buffer.from("123456"));
  const got = receiveMessage(b, 4) as Received;
  expect([got.bytes.length, got.cut]).toEqual([4, true]);
  a.close();
  expect(receiveMessage(b, 4)).toBe("closed");
});
