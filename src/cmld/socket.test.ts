import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { connect as dial, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { frame, Unframer } from "../lib/frame.ts";
import { bindAt } from "../sys/listen.ts";
import { GUEST, type Limits, type Peer, type Protocol, serve } from "./socket.ts";

const folder = mkdtempSync(join(tmpdir(), "socket-"));
afterAll(() => rmSync(folder, { recursive: true }));
const utf8 = (s: string) => new Uint8Array(Buffer.from(s));
let sockets = 0;
const until = async (condition: () => boolean): Promise<void> => {
  while (!condition()) await new Promise<void>((next) => setImmediate(next));
};

/** A server whose messages are texts; by default it echoes them. */
function server(
  handle: (text: string, peer: Peer) => Promise<void> = (text, peer) => peer.send(utf8(text)),
  limits: Partial<Limits> = {},
) {
  const path = join(folder, String(sockets++));
  const listening = bindAt(path, 0o600, 128);
  const warnings: string[] = [];
  const protocol: Protocol = {
    limits: { ...GUEST, ...limits },
    handle: (message, peer) => handle(Buffer.from(message).toString(), peer),
    complaint: (text) => utf8(`no: ${text}`),
    warn: (text) => void warnings.push(text),
  };
  const s = serve(listening, protocol);
  return {
    path,
    warnings,
    peers: s.peers,
    [Symbol.dispose]() {
      s[Symbol.dispose]();
      listening.close();
    },
  };
}

/** A client that collects answers. */
class Client {
  readonly answers: string[] = [];
  readonly closed: Promise<void>;
  #told: (() => void)[] = [];
  constructor(readonly socket: Socket) {
    const u = new Unframer();
    socket.on("data", (d: Buffer) => {
      for (const m of u.push(d)) this.answers.push(Buffer.from(m).toString());
      for (const t of this.#told.splice(0)) t();
    });
    socket.on("error", () => {});
    socket.on("end", () => socket.end());
    this.closed = new Promise((r) => socket.on("close", () => r()));
  }
  static to(path: string): Promise<Client> {
    return new Promise((resolve, reject) => {
      const s = dial({ path, allowHalfOpen: true });
      s.on("connect", () => resolve(new Client(s)));
      s.on("error", reject);
    });
  }
  say(...texts: string[]): this {
    this.socket.write(Buffer.concat(texts.map((t) => frame(utf8(t)))));
    return this;
  }
  async until(n: number): Promise<string[]> {
    while (this.answers.length < n) await new Promise<void>((r) => this.#told.push(r));
    return this.answers;
  }
}

test("requests of one connection are answered one after the other, others do not wait", async () => {
  const order: string[] = [];
  let release: () => void = () => {};
  using s = server(async (text, peer) => {
    order.push(`begin ${text}`);
    if (text === "slow") await new Promise<void>((r) => (release = r));
    order.push(`end ${text}`);
    await peer.send(utf8(text));
  });
  const a = (await Client.to(s.path)).say("slow", "a1", "a2");
  const b = (await Client.to(s.path)).say("b");
  expect(await b.until(1)).toEqual(["b"]);
  expect(a.answers).toEqual([]);
  a.say("a3");
  release();
  expect(await a.until(4)).toEqual(["slow", "a1", "a2", "a3"]);
  expect(order.filter((o) => !o.endsWith("b"))).toEqual(
    ["slow", "a1", "a2", "a3"].flatMap((t) => [`begin ${t}`, `end ${t}`]),
  );
  expect(s.peers.values().next().value).toMatchObject({ uid: process.getuid!(), pid: process.pid });
});

test("a length above the limit is answered, then the connection ends", async () => {
  using s = server();
  const c = (await Client.to(s.path)).say("first");
  c.socket.write(Buffer.from([0xff, 0xff, 0xff, 0xff]));
  await c.closed;
  expect(c.answers).toEqual(["first", "no: frame of 4294967295 bytes, at most 1048576"]);
  expect(s.warnings.length).toBe(1);
});

test("a client that has closed its sending side gets its answers; within a message it is told", async () => {
  using s = server(async (text, peer) => {
    await new Promise<void>((r) => setImmediate(r));
    await peer.send(utf8(text));
  });
  const whole = (await Client.to(s.path)).say("1", "2");
  whole.socket.end();
  await whole.closed;
  expect(whole.answers).toEqual(["1", "2"]);
  const half = (await Client.to(s.path)).say("1");
  half.socket.end(Buffer.from([0, 0, 0, 9, 65]));
  await half.closed;
  expect(half.answers).toEqual(["1", "no: connection closed after 5 bytes of a frame"]);
});

test("work that goes on keeps a half-closed connection", async () => {
  let finish: () => void = () => {};
  using s = server(async (text, peer) => {
    peer.during(new Promise<void>((r) => (finish = r)).then(() => peer.send(utf8(`${text} done`))));
    await peer.send(utf8("begun"));
  });
  const c = (await Client.to(s.path)).say("x");
  c.socket.end();
  await c.until(1);
  expect(s.peers.size).toBe(1);
  finish();
  await c.closed;
  expect(c.answers).toEqual(["begun", "x done"]);
});

test("an incomplete message has a time limit, and all of them together a limit in bytes", async () => {
  using s = server(undefined, { partialMs: 50, held: 20_000 });
  const slow = await Client.to(s.path);
  slow.socket.write(Buffer.from([0, 0, 0]));
  await slow.closed;
  expect(slow.answers).toEqual(["no: a message is incomplete and has not grown for 0.05 s"]);

  using t = server(undefined, { held: 20_000 });
  const first = await Client.to(t.path);
  first.socket.write(Buffer.concat([Buffer.from([0, 0, 64, 0]), Buffer.alloc(12_000)]));
  const second = await Client.to(t.path);
  await until(() => t.peers.size === 2);
  second.socket.write(Buffer.concat([Buffer.from([0, 0, 64, 0]), Buffer.alloc(12_000)]));
  await Promise.race([first.closed, second.closed]);
  expect([...first.answers, ...second.answers].join()).toContain("bytes of incomplete messages");
  expect(t.peers.size).toBe(1);
});

test("one connection too many is told so", async () => {
  using s = server(undefined, { connections: 2 });
  const two = [await Client.to(s.path), await Client.to(s.path)];
  for (const c of two) await c.say("x").until(1);
  const third = await Client.to(s.path);
  await third.closed;
  expect(third.answers).toEqual(["no: 2 connections are open already, and no more are allowed"]);
  two[0]!.socket.destroy();
  await until(() => s.peers.size === 1);
  expect(await (await Client.to(s.path)).say("again").until(1)).toEqual(["again"]);
});

test("send() waits for a reader that is slow, and the source with it", async () => {
  let sent = 0;
  const piece = new Uint8Array(10_000);
  using s = server(async (_, peer) => {
    for (; sent < 500; sent++) await peer.send(piece);
  });
  const c = await Client.to(s.path);
  c.socket.pause();
  c.say("go");
  let before = -1;
  while (sent === 0 || sent !== before) {
    before = sent;
    await Bun.sleep(20); // nothing happens any more: no condition to wait for
  }
  expect(sent).toBeLessThan(100);
  expect([...s.peers][0]!.queued).toBeLessThan(GUEST.waiting + 20_000);
  c.socket.resume();
  expect((await c.until(500)).length).toBe(500);
});

test("gone is told when the peer disappears, and send() does not wait for it", async () => {
  let left = false;
  using s = server(async (_, peer) => {
    peer.gone.addEventListener("abort", () => (left = true));
    for (;;) {
      if (peer.gone.aborted) return;
      await peer.send(new Uint8Array(50_000));
    }
  });
  const c = (await Client.to(s.path)).say("go");
  await c.until(1);
  c.socket.destroy();
  await until(() => s.peers.size === 0);
  expect(left).toBeTrue();
});

test("many small messages in one piece do not keep others waiting", async () => {
  let handled = 0;
  using s = server(async (text, peer) => {
    handled++;
    if (text === "ping") await peer.send(utf8("pong"));
  });
  const flood = await Client.to(s.path);
  flood.socket.write(Buffer.concat(Array(50_000).fill(Buffer.from(frame(utf8("x"))))));
  await until(() => handled > 0);
  const c = await Client.to(s.path);
  c.say("ping");
  await c.until(1);
  const then = handled;
  flood.say("ping");
  await flood.until(1);
  expect(handled).toBe(50_002);
  expect(then).toBeLessThan(50_000);
});
