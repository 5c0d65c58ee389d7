import { expect, test } from "bun:test";
import { AT_FDCWD, execve, O_NONBLOCK, O_RDWR, openat, read, writeText } from "./calls.ts";
import { EAGAIN, EIO } from "./error.ts";
import { Fd } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import { show } from "./op.ts";
import { EPOLLIN, watch } from "./poll.ts";
import {
  getSettings,
  getWindow,
  onTerminal,
  openpty,
  ptyOf,
  raw,
  setSettings,
  setWindow,
  silent,
} from "./pty.ts";

/** What arrives at the master until `words` are there. */
function seen(master: Fd, words: string): Promise<string> {
  let text = "";
  return new Promise((resolve, reject) => {
    const w = watch(master, EPOLLIN, () => {
      const into = mem(4096);
      const n = attempt(read(master.n, into));
      if (n > 0) text += Buffer.from(into.subarray(0, n)).toString();
      else if (n !== -EAGAIN) reject(new Error(`${n === -EIO ? "ended" : n} before "${words}": ${text}`));
      if (!text.includes(words)) return;
      w[Symbol.dispose]();
      resolve(text);
    });
  });
}

test("openpty() gives two ends of one terminal, with a size", async () => {
  const { master, slave } = openpty({ rows: 33, columns: 101 });
  using _m = master;
  using _s = slave;
  expect(getWindow(slave.n)).toEqual({ rows: 33, columns: 101 });
  now(setWindow(master.n, { rows: 10, columns: 20 }));
  expect(getWindow(slave.n)).toEqual({ rows: 10, columns: 20 });
  now(writeText(slave.n, "hello\n"));
  expect(await seen(master, "hello")).toBe("hello\r\n");
});

test("raw() passes every byte, silent() shows only the end of the line, and settings can be restored", async () => {
  const { master, slave } = openpty();
  using _m = master;
  using _s = slave;
  const before = getSettings(slave.n)!;
  now(setSettings(slave.n, raw(before)));
  now(writeText(master.n, "\x03\r\x04"));
  const into = mem(16);
  expect(now(read(slave.n, into))).toBe(3);
  expect([...into.subarray(0, 3)]).toEqual([3, 13, 4]);
  now(setSettings(slave.n, silent(before), true));
  now(writeText(master.n, "secret\r"));
  expect(await seen(master, "\n")).toBe("\r\n");
  expect(now(read(slave.n, into))).toBe(7);
  now(setSettings(slave.n, before));
  expect(getSettings(slave.n)).toEqual(before);
});

test("what is no terminal has neither settings nor a size, and is not taken for the multiplexer", () => {
  using file = new Fd(now(openat(AT_FDCWD, "/dev/null", O_RDWR)));
  expect(getSettings(file.n)).toBeUndefined();
  expect(getWindow(file.n)).toBeUndefined();
  const other = new Fd(now(openat(AT_FDCWD, "/dev/zero", O_RDWR | O_NONBLOCK)));
  expect(() => ptyOf(other)).toThrow("not the multiplexer");
  expect(other.open).toBe(false);
});

test("onTerminal() as a program", () => {
  expect("\n" + [...onTerminal(7), execve("/bin/sh", ["sh"], [])].map(show).join("\n")).toBe(`
setsid()
ioctl(7, 21518, 0)
dup3(7, 0, 0)
dup3(7, 1, 0)
dup3(7, 2, 0)
execve("/bin/sh", [sh], [])`);
});
