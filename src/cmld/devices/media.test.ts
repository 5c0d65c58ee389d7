import { afterAll, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { show } from "../../sys/op.ts";
import { mountOps, placeOf, probe } from "./media.ts";

const folder = mkdtempSync(join(tmpdir(), "cml-media-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** The first bytes of what a tool of the host has made. */
function made(argv: string[], MiB: number): Uint8Array {
  const file = join(folder, "image");
  writeFileSync(file, "");
  truncateSync(file, MiB * 2 ** 20);
  const run = Bun.spawnSync([...argv, file]);
  if (run.exitCode !== 0) throw new Error(`${argv.join(" ")}: ${run.stderr}`);
  const head = new Uint8Array(4096);
  const fd = openSync(file, "r");
  readSync(fd, head);
  closeSync(fd);
  return head;
}

test("probe() knows what the system's own tools make", () => {
  for (const bits of ["12", "16", "32"]) expect(probe(made(["mkfs.vfat", "-F", bits], 40))).toBe("vfat");
  for (const type of ["ext2", "ext4"])
    expect(probe(made(["mke2fs", "-q", "-F", "-t", type], 8))).toBe("ext4");
});

test("probe() takes nothing for a file system that does not look like one throughout", () => {
  expect(probe(new Uint8Array(4096))).toBeUndefined();
  expect(probe(new Uint8Array(0))).toBeUndefined();
  const exfat = new Uint8Array(4096);
  exfat.set(Buffer.from("EXFAT   "), 3);
  expect(probe(exfat)).toBeUndefined();
  exfat.set([0x55, 0xaa], 510);
  expect(probe(exfat)).toBe("exfat");
  const fat = made(["mkfs.vfat", "-F", "32"], 40);
  expect(probe(fat.subarray(0, 4095))).toBeUndefined();
  for (const [at, value] of [
    [510, 0],
    [11, 1],
    [13, 3],
    [16, 0],
    [82, 0x78],
  ] as const) {
    const broken = Uint8Array.from(fat);
    broken[at] = value;
    expect(probe(broken)).toBeUndefined();
  }
  const table = new Uint8Array(4096); // a partition table alone
  table.set([0x55, 0xaa], 510);
  expect(probe(table)).toBeUndefined();
});

test("mountOps() names one file system and keeps its programs and devices from working", () => {
  expect(mountOps("ext4", "/proc/self/fd/9", 100000, true, 7, 8).map(show).join("\n")).toBe(
    `openat(-100, "/proc/self/fd/9", 526464, 0) -> r1
close(r1)
fsopen("ext4", 1) -> r0
fsconfig(r0, 1, "source", "/proc/self/fd/9", 0)
fsconfig(r0, 0, "ro", 0, 0)
fsconfig(r0, 1, "errors", "remount-ro", 0)
fsconfig(r0, 6, 0, 0, 0)
fsmount(r0, 1, 14) -> r1
dup3(r1, 8, 0)
sendmsg(7, {SCM_RIGHTS, [8]}, 16384)`,
  );
  expect(placeOf({ node: "cciss/c0d0p1" })).toBe("cciss!c0d0p1");
});
