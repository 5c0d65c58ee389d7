// Fills a data folder of cmld's (the layout of the original: core 6.1) as if guests had been installed and containers
// created: for the data disk of `make run`, and for tests. It believes the development PKI (pki.ts), with which the guests
// are signed.
import {
  constants,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { IContainerConfig, IDeviceConfig } from "../proto/gen/proto.js";
import { ContainerConfig, ContainerTokenType, ContainerType, DeviceConfig } from "../proto/gen/proto.js";
import { print } from "../src/lib/text.ts";
import { C0, newUuid } from "../src/lib/uuid.ts";
import { believe, identity } from "./pki.ts";

/** Where `make guests` puts them. */
const BUILT = "out/guests";

export interface SeedContainer extends Partial<IContainerConfig> {
  readonly name: string;
  /** "debian"; the guest must be among the seeded ones to start. */
  readonly guest_os: string;
  readonly uuid?: string;
}

export interface Seed {
  /** Guests by name and version: "debian-1". */
  readonly guests: readonly string[];
  readonly containers?: readonly SeedContainer[];
  readonly device?: Partial<IDeviceConfig>;
  /** Where the guests are, if not in out/guests. */
  readonly from?: string;
  /** A device that makes its key when it starts, as a new one does; others have a settled identity. */
  readonly fresh?: true;
}

/** core0 as `make run` has it. */
export const CORE0: SeedContainer = { uuid: C0, name: "core0", guest_os: "core0", color: 0xffffff00 };

/** Lay everything into `base`; gives the containers' uuids by name. */
export function seed(base: string, what: Seed): ReadonlyMap<string, string> {
  const from = what.from ?? BUILT;
  for (const dir of ["operatingsystems", "containers", "keys", "tokens", "shared"])
    mkdirSync(join(base, dir), { recursive: true, mode: 0o700 });
  const device: IDeviceConfig = {
    c0os: "core0",
    hostedmode: false,
    signed_configs: false,
    tpm_enabled: false,
    ...what.device,
  };
  writeFileSync(join(base, "device.conf"), print(DeviceConfig, device));
  believe(base);
  if (!what.fresh) identity(base);

  for (const guest of what.guests) {
    const files = ["conf", "sig", "cert"].map((extension) => `${guest}.${extension}`);
    for (const file of files)
      if (!existsSync(join(from, file))) throw new Error(`${join(from, file)} is missing: make guests`);
    const to = join(base, "operatingsystems", guest);
    mkdirSync(to, { recursive: true, mode: 0o755 });
    for (const file of readdirSync(join(from, guest))) place(join(from, guest, file), join(to, file));
    for (const file of files) copyFileSync(join(from, file), join(base, "operatingsystems", file));
  }

  const uuids = new Map<string, string>();
  for (const { uuid = newUuid(), ...own } of what.containers ?? []) {
    const config: IContainerConfig = {
      guestos_version: 1,
      color: 0,
      type: ContainerType.CONTAINER,
      token_type: ContainerTokenType.NONE,
      ...own,
    };
    writeFileSync(join(base, "containers", `${uuid}.conf`), print(ContainerConfig, config));
    uuids.set(own.name, uuid);
  }
  return uuids;
}

/** Images are only ever read: a second name will do where the folder is on the same file system. */
function place(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch {
    copyFileSync(from, to, constants.COPYFILE_FICLONE);
  }
}
