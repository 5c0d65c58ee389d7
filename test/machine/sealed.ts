// What tests of sealed volumes share: a guest with a volume of its own, a container of it, and words for what happens in
// the machine.
import { expect } from "bun:test";
import { copyFileSync, linkSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { signed } from "../../initramfs/pki.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import type { IDeviceConfig } from "../../proto/gen/proto.js";
import type { Vm } from "./qemu.ts";

export const WEB = "11111111-1111-4111-8111-111111111111";
export const MIB = 16;

/** busybox under another name, with one mount more, on /data. */
export function guest(base: string, name: string, image: string, type: string): void {
  const at = (...parts: string[]) => join(base, "operatingsystems", ...parts);
  mkdirSync(at(`${name}-1`));
  for (const file of readdirSync(at("busybox-1"))) linkSync(at("busybox-1", file), at(`${name}-1`, file));
  const what = `image_file: "${image}"\n  mount_point: "/data"\n  fs_type: "ext4"\n  mount_type: ${type}`;
  const conf = readFileSync(at("busybox-1.conf"), "utf8").replace('name: "busybox"', `name: "${name}"`);
  const own = `mounts {\n  ${what}\n  def_size: ${MIB}\n}\n`;
  writeFileSync(at(`${name}-1.conf`), conf.replace("init_path", `${own}init_path`));
  signed(at(`${name}-1.conf`));
}

export interface Sealed {
  /** core0's GuestOS: vault has a volume of its own. */
  readonly core0?: "core0" | "vault";
  readonly device?: Partial<IDeviceConfig>;
  /** Without web. */
  readonly empty?: true;
  /** A file to put beside /data/cml. */
  readonly file?: string;
}

/** A data disk with core0 and web, a container of vault, laid out in `folder`. */
export function sealedDisk(folder: string, image: string, mib: number, what: Sealed = {}): void {
  const data = join(folder, "data");
  const base = join(data, "cml");
  const c0os = what.core0 ?? "core0";
  seed(base, {
    guests: ["core0-1", "busybox-1"],
    containers: [
      { ...CORE0, guest_os: c0os },
      ...(what.empty ? [] : [{ uuid: WEB, name: "web", guest_os: "vault" }]),
    ],
    device: { c0os, ...what.device },
  });
  guest(base, "vault", "data", "EMPTY");
  if (what.file !== undefined) copyFileSync(what.file, join(data, basename(what.file)));
  disk(image, mib, data);
}

export function inside(vm: Vm) {
  const run = async (...argv: string[]): Promise<string> => {
    const { status, stdout, stderr } = await vm.ask("run", { argv });
    return `${status} ${stdout}${stderr}`;
  };
  const control = (...args: string[]) => run("/usr/sbin/control", ...args);
  return {
    run,
    control,
    dmsetup: (...args: string[]) => run("/test/dmsetup", ...args),
    /** test/machine/volumes.ts */
    async volumes(...args: (string | number)[]): Promise<unknown> {
      const { stdout, stderr } = await vm.ask("run", {
        argv: ["/usr/sbin/cml", "/test/volumes.js", ...args.map(String)],
        env: { BUN_BE_BUN: "1" },
      });
      if (!stdout.startsWith("{")) throw new Error(`${args.join(" ")}: ${stdout}${stderr}`);
      const { answer, error } = JSON.parse(stdout) as { answer?: unknown; error?: string };
      if (error !== undefined) throw new Error(error);
      return answer;
    },
    async start(): Promise<void> {
      expect(await control("start", "web")).toMatch(/^0 .*\n.*CONTAINER_START_OK/);
      await vm.sees("web: BOOTING → RUNNING");
    },
    async stop(): Promise<void> {
      expect(await control("stop", "web")).toMatch(/^0 .*\n.*CONTAINER_STOP_OK/);
      await vm.sees("web: SHUTDOWN → STOPPED");
    },
    sh: (command: string) => control("run", "web", "nopty", "sh", "-c", command),
  };
}

/** What the machine said is the first thing to look at. */
export async function telling(vm: Vm, act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (e) {
    console.error(vm.said.slice(-4000));
    throw e;
  }
}
