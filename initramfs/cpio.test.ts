import { expect, test } from "bun:test";
import { cpio, type Entry } from "./cpio.ts";

const entries: Entry[] = [
  { kind: "dir", path: "dev", mode: 0o755 },
  { kind: "node", path: "dev/console", mode: 0o600, major: 5, minor: 1 },
  { kind: "file", path: "init", mode: 0o755, from: "stage0" },
  { kind: "link", path: "sbin", to: "usr/sbin" },
];
const archive = () => Buffer.concat([...cpio(entries, (from) => Buffer.from(`<${from}>`))]);

test("cpio() writes an archive that cpio(1) lists", async () => {
  const list = Bun.spawn(["cpio", "-tv", "--quiet", "--numeric-uid-gid"], {
    stdin: archive(),
    env: { TZ: "UTC" },
  });
  const lines = (await new Response(list.stdout).text()).trim().split("\n");
  expect(lines.map((l) => l.replace(/ +/g, " "))).toEqual([
    "drwxr-xr-x 1 0 0 0 Jan 1 1970 dev",
    "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
    "-rwxr-xr-x 1 0 0 8 Jan 1 1970 init",
    "lrwxrwxrwx 1 0 0 8 Jan 1 1970 sbin -> usr/sbin",
  ]);
});

test("cpio() writes the same bytes for the same entries", () => {
  expect(archive().equals(archive())).toBe(true);
  expect(archive().length % 4).toBe(0);
});

test("cpio() refuses a file whose directory is missing, and a second of the same name", () => {
  const all = (list: Entry[]) => [...cpio(list, () => new Uint8Array(0))];
  expect(() => all([{ kind: "dir", path: "a/b", mode: 0o755 }])).toThrow(
    "a/b: its directory is not in the archive",
  );
  expect(() => all([entries[0]!, entries[0]!])).toThrow("dev: twice in the archive");
});
