// Signed software in a machine: scd in its room on the machine's kernel and file system, an update that is fetched through
// core0's network, and what must be refused.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { developer } from "../../initramfs/pki.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { sign } from "../../src/guestos/sign.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "signed-"));
const at = (...parts: string[]) => join(folder, ...parts);
const disks = [at("disk.img")];
const SERVER = "10.0.2.100";
/** An HTTP server for an image and its hash tree, which QEMU starts for each connection. */
const CARD = [
  ...["-netdev", `user,id=n0,restrict=on,guestfwd=tcp:${SERVER}:80-cmd:${at("serve")}`],
  ...["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01"],
];

beforeAll(async () => {
  const signer = developer();
  const base = at("data/cml");
  seed(base, { guests: ["core0-1", "busybox-1"], containers: [CORE0] });
  const first = readFileSync(join(base, "operatingsystems/busybox-1.conf"), "utf8");
  const next = join(base, "shared/next.conf");
  writeFileSync(next, first.replace(/^version: 1$/m, `version: 2\nupdate_base_url: "http://${SERVER}"`));
  await sign(next, signer);
  for (const extension of ["conf", "sig", "cert"])
    copyFileSync(`test/data/signing/dmos-1.${extension}`, join(base, `shared/foreign.${extension}`));
  for (const file of ["root.img", "root.hash.img"])
    copyFileSync(join(base, "operatingsystems/busybox-1", file), at(file));
  writeFileSync(
    at("serve"),
    `#!/bin/sh
end=$(printf '\\r')
read -r method path version
while read -r line && [ "$line" != "$end" ]; do :; done
file="${folder}/$(basename "$path")"
printf 'HTTP/1.1 200 OK\\r\\nContent-Length: %s\\r\\nConnection: close\\r\\n\\r\\n' "$(stat -c %s "$file")"
exec cat "$file"
`,
  );
  chmodSync(at("serve"), 0o755);
  disk(disks[0]!, 512, at("data"));
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true }));

test("what is signed is SIGNED, an update comes through core0, a stranger's is refused", async () => {
  await using vm = Vm.boot({ disks, more: CARD });
  const control = async (...argv: string[]): Promise<string> => {
    const { stdout, stderr } = await vm.ask("run", { argv: ["/usr/sbin/control", ...argv] });
    return stdout + stderr;
  };
  const push = (name: string) =>
    control("push_guestos_config", ...["conf", "sig", "cert"].map((e) => `/data/cml/shared/${name}.${e}`));
  await vm.sees("core0: BOOTING → RUNNING");
  expect(vm.said).not.toContain("no Landlock"); // scd and fetch have it around them
  expect(await control("list_guestos")).toContain('name: "busybox"');
  expect(await push("foreign")).toContain("unable to get local issuer certificate");

  await vm.type("until ip -o addr | grep -q 'cmleth0.*10.0.2'; do sleep 0.2; done; echo address: there");
  await vm.seesInCore0("\naddress: there");
  expect(await push("next")).toContain("GUESTOS_MGR_INSTALL_COMPLETED");
  expect(await control("list_guestos")).toContain("version: 2");
});
