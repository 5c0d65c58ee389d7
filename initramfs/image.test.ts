import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { superblock } from "../src/init/disk.ts";
import { disk, uuidOf } from "./image.ts";

const folder = mkdtempSync(join(tmpdir(), "image-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("disk() makes a partition that init finds, with the folder in it, sparse", () => {
  mkdirSync(join(folder, "data/cml"), { recursive: true });
  writeFileSync(join(folder, "data/cml/device.conf"), "hostedmode: false\n");
  const image = join(folder, "disk.img");
  disk(image, 64, join(folder, "data"));
  const bytes = readFileSync(image);
  expect(bytes.length).toBe(64 << 20);
  expect(statSync(image).blocks * 512).toBeLessThan(16 << 20);
  expect(bytes.subarray(512, 520).toString()).toBe("EFI PART");
  expect(superblock(bytes.subarray((1 << 20) + 1024, (1 << 20) + 2048))).toEqual({
    label: "cml-data",
    clean: true,
  });
  const cat = Bun.spawnSync(["debugfs", "-R", "cat /cml/device.conf", `${image}?offset=1048576`], {
    env: { PATH: "/usr/sbin:/sbin" },
  });
  expect(cat.stdout.toString()).toBe("hostedmode: false\n");
});

test("uuidOf() gives the same UUID for the same text", () => {
  expect(uuidOf("x")).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  expect(uuidOf("x")).toBe(uuidOf("x"));
  expect(uuidOf("x")).not.toBe(uuidOf("y"));
});
