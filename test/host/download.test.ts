// Images over http from a server that misbehaves: what arrives is right or is not taken, and what has arrived is not
// fetched again.
import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { download, timeOffset, type Wanted, type Web } from "../../src/cmld/images/download.ts";
import { chain } from "../../src/sys/error.ts";

const dir = mkdtempSync(join(tmpdir(), "download-"));
const image = Buffer.alloc(3_000_000, "an image of a guest ");
const digest = createHash("sha256").update(image).digest("hex");

/** Ranges that were asked for, in order. */
const asked: string[] = [];
/** Announces the whole image, sends a third of it and hangs up. */
const hangup = createServer((socket) => {
  socket.once("data", () => {
    socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${image.length}\r\n\r\n`);
    socket.write(image.subarray(0, 1_000_000), () => socket.destroySoon());
  });
});
hangup.listen(0, "127.0.0.1");
const server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch(request) {
    const range = request.headers.get("Range");
    asked.push(range ?? "all");
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    const path = new URL(request.url).pathname;
    if (path === "/none") return new Response("no such image", { status: 404 });
    if (path === "/wrong") return new Response(Buffer.alloc(image.length));
    if (path === "/short") return new Response(image.subarray(0, 1000));
    if (path === "/long") return new Response(new ReadableStream({ pull: (c) => c.enqueue(image) }));
    if (path === "/plain") return new Response(image); // knows no ranges
    if (from >= image.length) return new Response(null, { status: 416 });
    if (from === 0) return new Response(image);
    const headers = { "Content-Range": `bytes ${from}-${image.length - 1}/${image.length}` };
    return new Response(image.subarray(from), { status: 206, headers });
  },
});
afterAll(async () => {
  await server.stop(true);
  hangup.close();
  rmSync(dir, { recursive: true });
});

const web: Web = { dns: "", network: () => "ours" };
let count = 0;
function wanted(path: string, more: Partial<Wanted> = {}): Wanted {
  return {
    url: `http://127.0.0.1:${server.port}${path}`,
    path: join(dir, `image-${count++}`),
    size: image.length,
    most: image.length,
    hash: ["sha256", digest],
    progress: () => {},
    ...more,
  };
}
const part = (w: Wanted): string => join(dir, `.${w.path.split("/").at(-1)}.part`);
const failure = (w: Wanted): Promise<string> => download(web, w).then(() => "fetched", chain);

test("what is right gets its name, and says how far it is", async () => {
  const seen: number[] = [];
  const w = wanted("/good", { progress: (bytes) => seen.push(bytes) });
  await download(web, w);
  expect(readFileSync(w.path).equals(image)).toBe(true);
  expect(seen[0]).toBe(0);
  expect(seen.at(-1)).toBe(image.length);
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  expect(existsSync(part(w))).toBe(false);
});

test("an interrupted download goes on where it ended", async () => {
  const w = wanted("/good");
  const { port } = hangup.address() as AddressInfo;
  expect(await failure({ ...w, url: `http://127.0.0.1:${port}/cut` })).toContain("/cut");
  const there = Bun.file(part(w)).size;
  expect(there).toBeGreaterThan(0);
  expect(existsSync(w.path)).toBe(false);
  asked.length = 0;
  await download(web, w);
  expect(asked).toEqual([`bytes=${there}-`]);
  expect(readFileSync(w.path).equals(image)).toBe(true);
});

test("a server without ranges begins again; one that has all already sends nothing", async () => {
  const w = wanted("/plain");
  writeFileSync(part(w), image.subarray(0, 12_345));
  await download(web, w);
  expect(readFileSync(w.path).equals(image)).toBe(true);
  const whole = wanted("/good");
  writeFileSync(part(whole), image);
  asked.length = 0;
  await download(web, whole);
  expect(asked).toEqual([]);
  const tree = wanted("/good", { size: undefined, hash: undefined });
  writeFileSync(part(tree), image);
  await download(web, tree);
  expect(readFileSync(tree.path).equals(image)).toBe(true);
});

test("what an earlier try left is not believed", async () => {
  const w = wanted("/good");
  writeFileSync(part(w), Buffer.alloc(500_000));
  expect(await failure(w)).toContain("has sha256");
  expect(existsSync(part(w))).toBe(false);
  await download(web, w);
  const longer = wanted("/good");
  writeFileSync(part(longer), Buffer.alloc(image.length + 1));
  await download(web, longer);
  const linked = wanted("/good");
  symlinkSync(join(dir, "outside"), part(linked));
  expect(await failure(linked)).toContain("ELOOP");
  expect(existsSync(join(dir, "outside"))).toBe(false);
});

test("a refusal has one reason, and leaves no image", async () => {
  for (const [path, words] of [
    ["/none", "the server says 404"],
    ["/wrong", "has sha256"],
    ["/short", "has 1000 bytes, not 3000000"],
    ["/long", "has more than 3000000 bytes"],
  ] as const) {
    const w = wanted(path);
    expect(await failure(w)).toContain(words);
    expect(existsSync(w.path)).toBe(false);
    expect(existsSync(part(w))).toBe(false);
  }
  expect(await failure(wanted("", { url: "ftp://example.org/x" }))).toContain("http://, https:// or file://");
});

/** Says so to whoever asks, and hangs up. */
function saying(answer: string) {
  const one = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => socket.end(answer));
  });
  one.listen(0, "127.0.0.1");
  const { port } = one.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/x`, [Symbol.dispose]: () => void one.close() };
}

test("why nothing came is said in our words, and nothing is left of it", async () => {
  using mute = saying("");
  using plain = saying("hello\r\n");
  using other = saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
  using away = saying("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n");
  using zipped = saying("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc");
  for (const [url, reason] of [
    ["http://127.0.0.1:1/x", "nobody listens there"],
    ["http://127.0.0.1:99999/x", "it is no URL"],
    [mute.url, "the server closed the connection"],
    [plain.url.replace("http:", "https:"), "the server does not speak TLS on this port"],
    [other.url, "the server does not speak HTTP"],
    [away.url, "the server sends us to a place that is neither http:// nor https://"],
    [zipped.url, "the server compresses, and was asked not to"],
  ] as const) {
    const w = wanted("", { url });
    expect(await failure(w)).toBe(`${url}: ${reason}`);
    expect(existsSync(part(w))).toBe(false);
  }
  expect(await failure(wanted("", { url: "http://nobody.invalid/x" }))).toMatch(
    /^http:\/\/nobody[.]invalid\/x: (there is no server of this name|no name server answers)$/,
  );
});

test("how far a server of the time is ahead, asked from the same room; one that does not answer", async () => {
  const EPOCH = 2_208_988_800; // RFC 5905: NTP begins in 1900
  using silent = await udp(() => undefined);
  using ahead = await udp((question) => {
    const answer = Buffer.alloc(48);
    answer.set([(4 << 3) | 4, 2]);
    question.copy(answer, 24, 40, 48);
    for (const at of [32, 40]) answer.writeUInt32BE(Math.floor(Date.now() / 1000) + 7200 + EPOCH, at);
    return answer;
  });
  const late = timeOffset(web, silent.address).then(() => "answered", chain);
  const offset = await timeOffset(web, ahead.address);
  expect(Math.abs(offset - 7200)).toBeLessThan(5);
  expect(await late).toBe(`ntp:${silent.address}: no answer`);
}, 30_000);

async function udp(answer: (question: Buffer) => Buffer | undefined) {
  const socket = createSocket("udp4");
  socket.on("message", (question, from) => {
    const said = answer(question);
    if (said) socket.send(said, from.port, from.address);
  });
  await new Promise<void>((bound) => socket.bind(0, "127.0.0.1", bound));
  return { address: `127.0.0.1:${socket.address().port}`, [Symbol.dispose]: () => void socket.close() };
}
