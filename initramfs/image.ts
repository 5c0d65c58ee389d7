// A disk for the machine: GPT with one partition, ext4, labelled as init looks for it, with the folder that is to be
// /data. Made without mounting anything and without root; sparse; the same input gives the same bytes.
//
//   bun initramfs/image.ts IMAGE SIZE-MiB [FOLDER]
import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { LABEL } from "../src/init/disk.ts";
import { chain } from "../src/sys/error.ts";
import { CORE0, seed } from "./seed.ts";

const MIB = 1 << 20;
/** Before the partition, and after it for the second table. */
const EDGE = MIB;
/** 2026-11-01T00:00:00Z: the date of everything in the file system. */
const DATE = 1793491200;

/** A UUID that follows from a text: disks of the same name are the same disk. */
export function uuidOf(text: string): string {
  const b = createHash("sha256").update(text).digest().subarray(0, 16);
  b[6] = (b[6]! & 0x0f) | 0x80; // version 8: our own, RFC 9562
  b[8] = (b[8]! & 0x3f) | 0x80;
  return b.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function run(argv: string[], input = ""): void {
  const p = Bun.spawnSync(argv, {
    stdin: Buffer.from(input),
    env: {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      LC_ALL: "C",
      SOURCE_DATE_EPOCH: String(DATE),
      E2FSPROGS_FAKE_TIME: String(DATE),
    },
  });
  if (p.exitCode === 0) return;
  throw new Error(
    `${argv.join(" ")}: ${p.stderr.toString().trim() || p.stdout.toString().trim()} (${p.exitCode})`,
  );
}

/** Make `image`, `size` MiB large, with `folder` as its file system's root. */
export function disk(image: string, size: number, folder: string): void {
  mkdirSync(dirname(image), { recursive: true });
  rmSync(image, { force: true });
  const fd = openSync(image, "wx");
  ftruncateSync(fd, size * MIB);
  closeSync(fd);
  const table = [
    "label: gpt",
    `label-id: ${uuidOf("cml disk")}`,
    `start=${EDGE / 512}, size=${(size * MIB - 2 * EDGE) / 512}, type=linux, name=${LABEL}, uuid=${uuidOf("cml data partition")}`,
  ];
  run(["sfdisk", "--quiet", image], `${table.join("\n")}\n`);
  const uuid = uuidOf("cml data file system");
  run([
    ...["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-U", uuid, "-d", folder],
    ...["-m", "1", "-E", `offset=${EDGE},hash_seed=${uuid},root_owner=0:0,lazy_itable_init=1`],
    ...[image, `${(size * MIB - 2 * EDGE) / 1024}k`],
  ]);
}

if (import.meta.main) {
  const [image, size, folder] = process.argv.slice(2);
  try {
    if (image === undefined || !(Number(size) >= 16))
      throw new Error("usage: image.ts IMAGE SIZE-MiB [FOLDER]");
    if (folder !== undefined) disk(image, Number(size), folder);
    else {
      // The disk of `make run`: both guests, and core0 as a container.
      const data = mkdtempSync(join(tmpdir(), "data-"));
      try {
        seed(join(data, "cml"), { guests: ["core0-1", "debian-1"], containers: [CORE0], fresh: true });
        mkdirSync(join(data, "logs"));
        disk(image, Number(size), data);
      } finally {
        rmSync(data, { recursive: true, force: true });
      }
    }
  } catch (e) {
    console.error(`image: ${chain(e)}`);
    process.exit(1);
  }
}
