import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chain } from "../sys/error.ts";
import { loadDevice, loadDeviceId } from "./device.ts";

const folder = mkdtempSync(join(tmpdir(), "device-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, "device.conf");

test("device.conf must be there and right; an error names file, line and field", async () => {
  expect(await loadDevice(path).catch(chain)).toBe(`${path} is missing`);
  writeFileSync(path, "# a machine\nhostedmode: true\nhost_addr: 1\n");
  expect(await loadDevice(path).catch(chain)).toBe(
    `${path}: line 3, column 12: DeviceConfig.host_addr: "1" where a string in quotes should be`,
  );
  writeFileSync(path, "hostedmode: true\ntpm_enabled: false\n");
  expect(await loadDevice(path)).toMatchObject({
    hostedmode: true,
    tpm_enabled: false,
    signed_configs: true,
  });
});

test("the machine's uuid is there once it has a certificate", async () => {
  expect(await loadDeviceId(folder)).toBeUndefined();
  expect(await loadDeviceId(new URL("../../test/data/golden/state", import.meta.url).pathname)).toMatch(
    /^[0-9a-f]{8}-/,
  );
});
