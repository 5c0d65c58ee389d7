import { afterAll, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { ContainerConfig, DeviceConfig } from "../proto/gen/proto.js";
import { parse } from "../src/lib/text.ts";
import { C0 } from "../src/lib/uuid.ts";
import { licence } from "./packages.ts";
import { CORE0, seed } from "./seed.ts";

const dir = mkdtempSync(`${tmpdir()}/seed-`);
afterAll(() => rmSync(dir, { recursive: true }));

test("seed() lays out a data folder that cmld's readers accept", () => {
  const from = `${dir}/built`;
  mkdirSync(`${from}/web-1`, { recursive: true });
  writeFileSync(`${from}/web-1/root.img`, "image");
  for (const extension of ["conf", "sig", "cert"])
    writeFileSync(`${from}/web-1.${extension}`, 'name: "web"\n');
  const base = `${dir}/base`;
  const uuids = seed(base, {
    from,
    guests: ["web-1"],
    containers: [CORE0, { name: "one", guest_os: "web", ram_limit: 64 }],
    device: { hostedmode: true },
  });
  expect(uuids.get("core0")).toBe(C0);
  const one = parse(ContainerConfig, readFileSync(`${base}/containers/${uuids.get("one")}.conf`));
  expect([one.name, one.guest_os, one.ram_limit, one.token_type]).toEqual(["one", "web", 64, 1]);
  expect(parse(DeviceConfig, readFileSync(`${base}/device.conf`)).hostedmode).toBe(true);
  expect(readFileSync(`${base}/operatingsystems/web-1/root.img`, "utf8")).toBe("image");
  expect(statSync(`${base}/operatingsystems`).mode & 0o777).toBe(0o700);
  expect(readdirSync(`${base}/operatingsystems`).toSorted()).toEqual([
    "web-1",
    "web-1.cert",
    "web-1.conf",
    "web-1.sig",
  ]);
  expect(readdirSync(`${base}/tokens`)).toContain("ssig_rootca.cert");
  expect(() => seed(base, { from, guests: ["none-1"] })).toThrow("none-1.conf is missing: make guests");
});

test("core0's example configuration is one", () => {
  const text = readFileSync("initramfs/files/core0/usr/share/cml/debian.conf");
  expect(parse(ContainerConfig, text).guest_os).toBe("debian");
});

test("licence() reads both kinds of copyright files", () => {
  const file = `${dir}/copyright`;
  writeFileSync(
    file,
    "Format: dep5\n\nFiles: *\nLicense: LGPL-2.1+\n\nFiles: x\nLicense: Expat\n text\nLicense: Expat\n",
  );
  expect(licence(file)).toBe("Expat, LGPL-2.1+");
  writeFileSync(
    file,
    "On Debian systems see /usr/share/common-licenses/GPL-2, or /usr/share/common-licenses/LGPL-2.1.\n",
  );
  expect(licence(file)).toBe("GPL-2, LGPL-2.1");
  writeFileSync(file, "nothing known\n");
  expect(licence(file)).toBe("see its copyright file");
  expect(licence(`${dir}/none`)).toBe("unknown");
  expect(existsSync(`${dir}/none`)).toBe(false);
});
