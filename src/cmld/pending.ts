// What a configuration may ask for and this cmld cannot give yet, or never will. It is said at each start, one line a
// field, so that nobody takes it for given. Each of these gives a container more than the usual; without it the
// container is held as tightly as any other, so it starts. (What would hold it less tightly than was asked for is
// refused where it is due: a limit that the kernel lacks, mac_filter, tokens.) Whoever brings one of them deletes its row.
import { GuestOSMount } from "../../proto/gen/proto.js";
import type { ContainerConfig, DeviceConfig, GuestOsConfig } from "./config.ts";

/** [the field, whether it is asked for, what is missing]. */
type Row<C> = readonly [field: keyof C & string, asked: (c: C) => boolean, instead: string];

const CONTAINER: readonly Row<ContainerConfig>[] = [
  ["userns", (c) => !c.userns, "it has a user namespace of its own all the same"],
];

const DEVICE: readonly Row<DeviceConfig>[] = [
  ["host_addr", (d) => d.host_addr !== "", "network cards are core0's, and so are their addresses"],
  ["host_gateway", (d) => d.host_gateway !== "", "network cards are core0's, and so are their routes"],
];

const asked = <C>(rows: readonly Row<C>[], c: C): string[] =>
  rows.filter(([, is]) => is(c)).map(([field, , instead]) => `${field}: ${instead}`);

const OWN: ReadonlySet<number> = new Set([GuestOSMount.Type.EMPTY, GuestOSMount.Type.OVERLAY_RW]);

/** One line for each field of a container's configuration that does nothing. */
export function withoutEffect(c: ContainerConfig, os: Pick<GuestOsConfig, "name" | "mounts">): string[] {
  const own = new Set(os.mounts.filter((m) => OWN.has(m.mount_type)).map((m) => m.image_file));
  const strange = c.image_sizes.filter((i) => !own.has(i.image_name));
  return [
    ...asked(CONTAINER, c),
    ...strange.map((i) => `image_sizes: ${os.name} has no volume ${JSON.stringify(i.image_name)}`),
  ];
}

/** One line for each field of device.conf that does nothing. */
export const withoutEffectHere = (d: DeviceConfig): string[] => asked(DEVICE, d);

/** The fields of each kind of file that do nothing, whatever they say (userns says no only in vain); for manual pages. */
export const WITHOUT_EFFECT: Readonly<Record<"ContainerConfig" | "DeviceConfig", ReadonlySet<string>>> = {
  ContainerConfig: new Set(CONTAINER.map(([field]) => field).filter((field) => field !== "userns")),
  DeviceConfig: new Set(DEVICE.map(([field]) => field)),
};
