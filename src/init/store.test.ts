import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { StoreRequest } from "../../proto/gen/proto.js";
import { openStore } from "../cmld/store.ts";
import {
  AF_UNIX,
  bindUnix,
  listen,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
  socket,
} from "../sys/calls.ts";
import { Fd, pipe } from "../sys/fd.ts";
import { accepting } from "../sys/listen.ts";
import { now } from "../sys/now.ts";
import { type Received, receiveMessage } from "../sys/scm.ts";
import { Store } from "./store.ts";

const folder = mkdtempSync(join(tmpdir(), "store-"));
afterAll(() => rmSync(folder, { recursive: true }));

function serve(name: string) {
  const path = join(folder, name);
  const listener = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
  now(bindUnix(listener.n, path));
  now(listen(listener.n, 8));
  const kept = new Map<string, Fd>([["init:store", listener]]);
  const store = new Store({
    kept,
    save() {},
    exitOf: (pid, start) => (pid === 77 && start === 1234 ? 7 << 8 : undefined),
    log: (line) => {
      throw new Error(line);
    },
  });
  const connections: Fd[] = [];
  accepting(listener, (c) => {
    connections.push(c);
    store.serve(c);
  });
  return { path, kept, store, connections };
}

test("what one cmld keeps, the next one gets, again and again until it is forgotten", async () => {
  const { path, kept } = serve("one");
  const p = pipe();
  const first = await openStore({ CML_STORE: path }, console.error);
  expect(first.names()).toEqual([]);
  first.keep("web.service", p.read);
  p.read.close();

  const second = await openStore({ CML_STORE: path }, console.error);
  expect(second.names()).toEqual(["web.service"]);
  second.kept("web.service")!.close();
  expect(second.kept("web.service")).toBeUndefined();

  const third = await openStore({ CML_STORE: path }, console.error);
  const fd = third.kept("web.service")!;
  writeSync(p.write.n, "still open");
  p.write.close();
  expect(readFileSync(fd.take(), "utf8")).toBe("still open");
  third.forget("web.service");
  expect((await openStore({ CML_STORE: path }, console.error)).names()).toEqual([]);
  expect([...kept.keys()]).toEqual(["init:store"]);
});

test("how an orphan ended is told, and only of the very process", async () => {
  const { path } = serve("exit");
  const store = await openStore({ CML_STORE: path }, console.error);
  expect(await store.exitOf(77, 1234)).toEqual({ status: 7 });
  expect(await store.exitOf(77, 1235)).toBeUndefined();
});

test("a store whose other side ends is asked again on a new connection", async () => {
  const { path, connections } = serve("again");
  const p = pipe();
  const store = await openStore({ CML_STORE: path }, console.error);
  now({ call: "shutdown", args: [connections[0]!.n, 2] }); // as when init executes itself again
  store.keep("pty", p.read);
  expect((await openStore({ CML_STORE: path }, console.error)).names()).toEqual(["pty"]);
});

test("answer() refuses what it does not understand, with a sentence", () => {
  const { store } = serve("refuse");
  const ask = (request: Parameters<typeof StoreRequest.encode>[0], fds: Fd[] = []) =>
    store.answer(StoreRequest.encode(request), fds)[0].error_text;
  expect(store.answer(new Uint8Array([255, 1]), [])[0].error_text).toBeDefined();
  expect(ask({ version: 2, command: 2 })).toBe("version 2: this init speaks 1");
  expect(ask({ version: 1, command: 99 as StoreRequest.Command, name: "x" })).toBe("command 99: not known");
  expect(ask({ version: 1, command: 1, name: "a:b" })).toContain('name "a:b"');
  expect(ask({ version: 1, command: 3, name: "init:store" })).toContain('name "init:store"');
  expect(ask({ version: 1, command: 1, name: "ok" })).toBe("ok: 0 descriptors, not one");
  expect(ask({ version: 1, command: 3, name: "nothing" })).toBe("nothing: not kept");
});

test("in hosted mode descriptors go to systemd, which is told to forget them, too", async () => {
  const path = join(folder, "notify");
  const listener = new Fd(now(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)));
  now(bindUnix(listener.n, path));
  const p = pipe();
  const store = await openStore({ NOTIFY_SOCKET: path }, console.error);
  expect(store.names()).toEqual([]);
  store.keep("web.pty", p.write);
  const message = receiveMessage(listener, 256) as Received;
  expect(Buffer.from(message.bytes).toString()).toBe("FDSTORE=1\nFDNAME=cml.web.pty\nFDPOLL=0\n");
  expect(message.descriptors.length).toBe(1);
  store.forget("web.pty");
  const other = receiveMessage(listener, 256) as Received;
  expect(Buffer.from(other.bytes).toString()).toBe("FDSTOREREMOVE=1\nFDNAME=cml.web.pty\n");
});
