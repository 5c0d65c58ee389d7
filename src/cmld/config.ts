// Configurations, judged once: a text file's bytes → a message as it was written (to be written back) and a frozen
// value that is checked and complete. Whoever holds such a value checks nothing again.
//
// What the original takes is taken, unless a value would end in a file that we generate, in a path or in a kernel table:
// there it must be what that place can hold. Files that are on the disk already may break the rule of names alone; such
// names are shown in quotes.

import * as proto from "../../proto/gen/proto.js";
import { nodeNet } from "../lib/ondemand.ts";
import { EnumType, type Field, type Message, Schema } from "../lib/protobuf.ts";
import { parse } from "../lib/text.ts";
import { parseUuid } from "../lib/uuid.ts";
import { BLOCK } from "../sys/verity.ts";
import { parseDeviceRule } from "./devices/rules.ts";

/** A message with every field: what was not written and has no default is "", 0, false or empty. */
export type Checked<M> = {
  readonly [K in keyof M]-?: NonNullable<M[K]> extends readonly (infer E)[]
    ? readonly Value<E>[]
    : Value<NonNullable<M[K]>>;
};
type Value<T> = T extends string | number | boolean | Uint8Array ? T : Checked<T>;

export type ContainerConfig = Checked<proto.ContainerConfig>;
export type GuestOsConfig = Checked<proto.GuestOSConfig> & {
  /** def_ram_limit stands in the file; its default alone limits nobody. */
  readonly def_ram_limit_written: boolean;
};
export type DeviceConfig = Checked<proto.DeviceConfig>;
export type GuestOsMount = GuestOsConfig["mounts"][number];

/** What a file says and what it comes to. */
export interface Read<M, C> {
  readonly message: M;
  readonly config: C;
}

/** One line: the field and why its value is refused. */
export class BadConfig extends Error {}

const { ContainerTokenType, ContainerType, ContainerUsbType } = proto;
const { Type: MountType } = proto.GuestOSMount;

// --- limits ----------------------------------------------------------------------

/** Entries of any list. */
const LIST_MAX = 256;
/** Bytes of any string: MAX_ARG_STRLEN of linux/binfmts.h, the most that execve takes. */
const STRING_MAX = 131_071;
/** MiB: 16 TiB, the most that an ext4 file can hold. */
const SIZE_MAX = 2 ** 24;
/** Bytes. */
const IMAGE_MAX = SIZE_MAX * 2 ** 20;
/** linux/threads.h, PID_MAX_LIMIT on 64-bit machines. */
const PIDS_MAX = 4_194_304;
/** Documentation/admin-guide/cgroup-v2.rst, cpu.weight and io.weight. */
const WEIGHT_MAX = 10_000;
/** linux/if.h: IFNAMSIZ less its NUL. */
const IFNAME_MAX = 15;
/** "<uuid>-<image>-integrity" must fit DM_NAME_LEN (128) of linux/dm-ioctl.h. */
const IMAGE_NAME_MAX = 80;

const NAME = /^[A-Za-z0-9._-]{1,63}$/;
const CONTROL = /[\x00-\x1f\x7f-\x9f]/;
/** Free text, and arguments of a guest's own programs: lines are fine there. */
const LINES = new Set(["en", "de", "fr", "init_env", "init_param"]);

const quote = (value: string): string => JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);

function refuse(field: string, reason: string): never {
  throw new BadConfig(`${field}: ${reason}`);
}

// --- completion --------------------------------------------------------------------

function zero(type: Field["type"]): unknown {
  if (type instanceof Schema) return complete(type, {});
  if (type instanceof EnumType) return 0;
  return type === "string" ? "" : type === "bytes" ? new Uint8Array(0) : type === "bool" ? false : 0;
}

/** Every field present, everything frozen; and what holds for every field of its kind. */
function complete(schema: Schema, m: Message, at = ""): Message {
  const out: Message = {};
  for (const f of schema.fields) {
    const where = at + f.name;
    const own = Object.hasOwn(m, f.name) ? m[f.name] : undefined;
    const one = (value: unknown, place: string): unknown => {
      if (f.type instanceof Schema) return complete(f.type, value as Message, `${place}.`);
      if (typeof value === "string") {
        if (Buffer.byteLength(value) > STRING_MAX) refuse(place, `more than ${STRING_MAX} bytes`);
        if (CONTROL.test(value) && !LINES.has(f.name))
          refuse(place, `${quote(value)} contains a control character`);
      }
      if (f.type === "uint64" && !Number.isSafeInteger(value)) refuse(place, "larger than 9007199254740991");
      return value;
    };
    if (f.label === "repeated") {
      const list = (own ?? []) as unknown[];
      if (list.length > LIST_MAX) refuse(where, `${list.length} entries, at most ${LIST_MAX}`);
      out[f.name] = Object.freeze(list.map((v, i) => one(v, `${where}[${i}]`)));
    } else out[f.name] = own === undefined ? (f.fallback ?? zero(f.type)) : one(own, where);
  }
  return Object.freeze(out);
}

const checked = <M extends object>(type: { readonly schema: Schema }, m: M): Checked<M> =>
  complete(type.schema, m as Message) as Checked<M>;

const own = (m: object, field: string): boolean => Object.hasOwn(m, field);

// --- what several configurations need --------------------------------------------------

/** The rule of container names; a name in the form of a uuid would be taken for one. */
export const isName = (name: string): boolean =>
  NAME.test(name) && name !== "." && name !== ".." && parseUuid(name) === undefined;

/** A name for people: as it is, or in quotes if it breaks the rule. */
export const shownName = (name: string): string => (isName(name) ? name : JSON.stringify(name));

/** A name for a generated file, a host name for instance: other characters become "-". */
export const plainName = (name: string): string =>
  name.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 63) || "container";

/** "aa:bb:cc:dd:ee:ff" → six bytes. */
export function parseMac(text: string): Uint8Array | undefined {
  return /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text)
    ? Uint8Array.from(text.split(":"), (b) => Number.parseInt(b, 16))
    : undefined;
}

/** A link's name as the kernel takes it (net/core/dev.c, dev_valid_name). */
export const isInterface = (name: string): boolean =>
  /^[^\s/:%\x00-\x20\x7f-\uffff]+$/.test(name) && name.length <= IFNAME_MAX && name !== "." && name !== "..";

/** A path that stays beneath where it is put. */
const climbs = (path: string): boolean => path.split("/").includes("..");

/** Part of the name of a file that we make. */
function imageName(field: string, name: string): void {
  if (name === "" || name === "." || name === ".." || name.includes("/"))
    refuse(field, `${quote(name)} is no name of an image`);
  if (Buffer.byteLength(name) > IMAGE_NAME_MAX)
    refuse(field, `${quote(name)} is longer than ${IMAGE_NAME_MAX} bytes`);
}

const address = (field: string, value: string): void => {
  if (value !== "" && nodeNet().isIP(value) === 0) refuse(field, `${quote(value)} is no IP address`);
};
const within = (field: string, n: number, min: number, max: number): void => {
  if (n < min || n > max) refuse(field, `${n} is not within ${min} to ${max}`);
};
const isNamed = (table: object, value: number): boolean => value in table;

// --- containers --------------------------------------------------------------------------

/** What the machine allows its containers. */
export interface ContainerRules {
  readonly device: DeviceConfig;
  readonly provisioned: boolean;
  /** It lies on the disk already: any name will do. */
  readonly loaded: boolean;
}

export function readContainer(
  source: Uint8Array,
  rules: ContainerRules,
): Read<proto.ContainerConfig, ContainerConfig> {
  const message = parse(proto.ContainerConfig, source);
  return { message, config: checkContainer(message, rules) };
}

export function checkContainer(m: proto.ContainerConfig, rules: ContainerRules): ContainerConfig {
  // A name that is there already may be anything; everywhere else a control character is refused.
  const c = rules.loaded
    ? { ...checked(proto.ContainerConfig, { ...m, name: "" }), name: m.name }
    : checked(proto.ContainerConfig, m);
  if (!rules.loaded && !isName(c.name))
    refuse(
      "name",
      `${quote(c.name)} is not 1 to 63 of A-Z a-z 0-9 . _ -${parseUuid(c.name) ? ", but a uuid" : ""}`,
    );
  guestOsName("guest_os", c.guest_os);
  if (c.type === ContainerType.KVM) refuse("type", "KVM is not supported, only CONTAINER");
  if (!isNamed(ContainerType, c.type)) refuse("type", `${c.type} is not known`);
  if (!isNamed(ContainerTokenType, c.token_type)) refuse("token_type", `${c.token_type} is not known`);
  if (!c.userns && !(rules.device.allow_host_userns && !rules.provisioned))
    refuse(
      "userns",
      rules.provisioned
        ? "false is refused on a provisioned device"
        : "false is refused: every container has its own user namespace (device.conf: allow_host_userns)",
    );

  for (const [i, size] of c.image_sizes.entries()) {
    imageName(`image_sizes[${i}].image_name`, size.image_name);
    if (size.image_file !== "") imageName(`image_sizes[${i}].image_file`, size.image_file);
    within(`image_sizes[${i}].image_size`, size.image_size, 0, SIZE_MAX);
  }
  for (const [i, entry] of c.init_env.entries())
    if (!/^[^=]+=/.test(entry)) refuse(`init_env[${i}]`, `${quote(entry)} is not like NAME=value`);
  if (c.assign_cpus !== "") cpus(c.assign_cpus);
  address("dns_server", c.dns_server);
  for (const [i, net] of c.net_ifaces.entries())
    if (!isInterface(net.netif) && !parseMac(net.netif))
      refuse(`net_ifaces[${i}].netif`, `${quote(net.netif)} is neither an interface nor a MAC address`);
  for (const [i, name] of c.allow_module.entries())
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(name))
      refuse(`allow_module[${i}]`, `${quote(name)} is no name of a module`);
  for (const list of ["allow_dev", "assign_dev"] as const)
    for (const [i, rule] of c[list].entries()) {
      try {
        parseDeviceRule(rule);
      } catch (e) {
        refuse(`${list}[${i}]`, (e as Error).message);
      }
    }
  const seen = new Set<string>();
  for (const [i, v] of c.vnet_configs.entries()) {
    if (!isInterface(v.if_name))
      refuse(`vnet_configs[${i}].if_name`, `${quote(v.if_name)} is no name of an interface`);
    if (seen.has(v.if_name)) refuse(`vnet_configs[${i}].if_name`, `${quote(v.if_name)} is there twice`);
    seen.add(v.if_name);
    if (v.if_rootns_name !== "" && !isInterface(v.if_rootns_name))
      refuse(`vnet_configs[${i}].if_rootns_name`, `${quote(v.if_rootns_name)} is no name of an interface`);
  }
  for (const [i, usb] of c.usb_configs.entries()) {
    if (!/^[0-9a-f]{1,4}:[0-9a-f]{1,4}$/i.test(usb.id))
      refuse(`usb_configs[${i}].id`, `${quote(usb.id)} is not like "1050:0407"`);
    if (usb.port !== "" && !/^\d{1,3}-\d{1,3}(\.\d{1,3}){0,6}$/.test(usb.port))
      refuse(`usb_configs[${i}].port`, `${quote(usb.port)} is not like "1-4.2"`);
    if (!isNamed(ContainerUsbType, usb.type)) refuse(`usb_configs[${i}].type`, `${usb.type} is not known`);
  }
  if (
    c.token_type === ContainerTokenType.USB &&
    !c.usb_configs.some((u) => u.type === ContainerUsbType.TOKEN)
  )
    refuse("token_type", "USB needs a usb_configs entry of type TOKEN");
  for (const [i, name] of c.fifos.entries())
    if (!NAME.test(name) || name === "." || name === "..")
      refuse(`fifos[${i}]`, `${quote(name)} is no name of a fifo`);

  within("ram_limit", c.ram_limit, 0, SIZE_MAX);
  if (own(m, "pids_limit")) within("pids_limit", c.pids_limit, 1, PIDS_MAX);
  if (own(m, "cpu_weight")) within("cpu_weight", c.cpu_weight, 1, WEIGHT_MAX);
  if (own(m, "io_weight")) within("io_weight", c.io_weight, 1, WEIGHT_MAX);
  if (own(m, "tmpfs_size")) within("tmpfs_size", c.tmpfs_size, 1, SIZE_MAX);
  within("swap_limit", c.swap_limit, 0, SIZE_MAX);
  return Object.freeze(c);
}

/** "0-3,6", as cpuset.cpus takes it. */
function cpus(list: string): void {
  for (const range of list.split(",")) {
    const found = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(range);
    if (!found || Number(found[2] ?? found[1]) < Number(found[1]))
      refuse("assign_cpus", `${quote(list)} is not like "0-3,6"`);
  }
}

// --- guest operating systems ---------------------------------------------------------------

/** It becomes the name of a folder and of files beside it. */
function guestOsName(field: string, name: string): void {
  if (name === "" || name.startsWith(".") || name.includes("/") || Buffer.byteLength(name) > 200)
    refuse(field, `${quote(name)} is no name of a guest operating system`);
}

export function readGuestOs(source: Uint8Array): Read<proto.GuestOSConfig, GuestOsConfig> {
  const message = parse(proto.GuestOSConfig, source);
  return { message, config: checkGuestOs(message) };
}

/** Types whose image lies among the GuestOS' own files. */
export const SHIPPED: ReadonlySet<proto.GuestOSMount.Type> = new Set([
  MountType.SHARED,
  MountType.COPY,
  MountType.FLASH,
  MountType.OVERLAY_RO,
  MountType.SHARED_RW,
  MountType.STORE_ONLY,
]);

export function checkGuestOs(m: proto.GuestOSConfig): GuestOsConfig {
  const c = checked(proto.GuestOSConfig, m);
  guestOsName("name", c.name);
  if (!c.init_path.startsWith("/") || climbs(c.init_path))
    refuse("init_path", `${quote(c.init_path)} is no absolute path without ".."`);
  for (const [i, entry] of c.init_env.entries())
    if (!/^[^=]+=/.test(entry)) refuse(`init_env[${i}]`, `${quote(entry)} is not like NAME=value`);
  for (const list of ["mounts", "mounts_setup"] as const)
    for (const [i, mount] of c[list].entries()) checkMount(`${list}[${i}]`, mount);
  oneFile(c);
  if (c.update_base_url !== "" && !/^[a-z]+:\/\/[^\s"'\\]*$/.test(c.update_base_url))
    refuse("update_base_url", `${quote(c.update_base_url)} is no URL`);
  return Object.freeze({ ...c, def_ram_limit_written: own(m, "def_ram_limit") });
}

/** Mounts of the same image are of the same bytes. */
function oneFile(c: GuestOsConfig | Checked<proto.GuestOSConfig>): void {
  const first = new Map<string, readonly [at: string, mount: GuestOsMount]>();
  for (const list of ["mounts", "mounts_setup"] as const)
    for (const [i, mount] of c[list].entries()) {
      if (!SHIPPED.has(mount.mount_type)) continue;
      const at = `${list}[${i}]`;
      const [where, other] = first.get(mount.image_file) ?? [at, mount];
      first.set(mount.image_file, [where, other]);
      for (const field of ["image_size", "image_sha1", "image_sha2_256", "image_verity_sha256"] as const)
        if (String(mount[field]).toLowerCase() !== String(other[field]).toLowerCase())
          refuse(
            `${at}.${field}`,
            `${quote(mount.image_file)} has ${shown(mount[field])} here, and ${shown(other[field])} in ${where}`,
          );
    }
}
const shown = (value: string | number): string => (value === "" ? "none" : String(value));

function checkMount(at: string, m: GuestOsMount): void {
  const type = m.mount_type;
  if (!isNamed(MountType, type))
    refuse(`${at}.mount_type`, (type as number) === 0 ? "missing" : `${type} is not known`);
  if (type === MountType.DEVICE || type === MountType.DEVICE_RW) {
    if (!m.image_file.startsWith("/dev/") || climbs(m.image_file))
      refuse(`${at}.image_file`, `${quote(m.image_file)} is no device below /dev`);
  } else if (type === MountType.BIND_FILE || type === MountType.BIND_FILE_RW) {
    if (m.image_file === "" || m.image_file.startsWith("/") || climbs(m.image_file))
      refuse(`${at}.image_file`, `${quote(m.image_file)} is no relative path without ".."`);
  } else imageName(`${at}.image_file`, m.image_file);
  // Where a device is flashed is a path of the host; everything else is beneath the guest's root.
  if (climbs(m.mount_point)) refuse(`${at}.mount_point`, `${quote(m.mount_point)} contains ".."`);
  if (!m.mount_point.startsWith("/") && type !== MountType.STORE_ONLY)
    refuse(`${at}.mount_point`, `${quote(m.mount_point)} is no absolute path`);
  if (!/^[A-Za-z0-9_.-]{0,32}$/.test(m.fs_type))
    refuse(`${at}.fs_type`, `${quote(m.fs_type)} is no file system`);
  if (m.mount_data.length > 1024) refuse(`${at}.mount_data`, "longer than 1024 bytes");
  within(`${at}.def_size`, m.def_size, 0, SIZE_MAX);
  within(`${at}.image_size`, m.image_size, 0, IMAGE_MAX);
  hash(`${at}.image_sha1`, m.image_sha1, 40);
  hash(`${at}.image_sha2_256`, m.image_sha2_256, 64);
  hash(`${at}.image_verity_sha256`, m.image_verity_sha256, 64);
  if (m.image_verity_sha256 !== "" && m.image_size % BLOCK !== 0)
    refuse(
      `${at}.image_size`,
      `${m.image_size} is no number of whole blocks of ${BLOCK}, and its hash tree is over blocks`,
    );
}

function hash(field: string, value: string, digits: number): void {
  if (value !== "" && !(value.length === digits && /^[0-9a-fA-F]+$/.test(value)))
    refuse(field, `${quote(value)} is not ${digits} hexadecimal digits`);
}

// --- the machine ---------------------------------------------------------------------------

export function readDevice(source: Uint8Array): Read<proto.DeviceConfig, DeviceConfig> {
  const message = parse(proto.DeviceConfig, source);
  return { message, config: checkDevice(message) };
}

export function checkDevice(m: proto.DeviceConfig): DeviceConfig {
  const c = checked(proto.DeviceConfig, m);
  guestOsName("c0os", c.c0os);
  for (const field of ["host_addr", "host_gateway", "host_dns"] as const) address(field, c[field]);
  within("host_subnet", c.host_subnet, 0, 128);
  if (c.host_if !== "" && !isInterface(c.host_if))
    refuse("host_if", `${quote(c.host_if)} is no name of an interface`);
  if (c.update_base_url !== "" && !/^[a-z]+:\/\/[^\s"'\\]*$/.test(c.update_base_url))
    refuse("update_base_url", `${quote(c.update_base_url)} is no URL`);
  within("audit_size", c.audit_size, 0, SIZE_MAX);
  if (c.pkcs11_module !== "" && !/^\/(usr|lib|lib64)\/[\w./+-]{1,200}\.so[\w.]*$/.test(c.pkcs11_module))
    refuse("pkcs11_module", `${quote(c.pkcs11_module)} is no library below /usr or /lib`);
  if (c.ntp_server !== "" && !/^[A-Za-z0-9.:-]{1,253}$/.test(c.ntp_server))
    refuse("ntp_server", `${quote(c.ntp_server)} is neither a host name nor an address`);
  return c;
}

/** tokens/device_id.conf → the machine's uuid. */
export function readDeviceId(source: Uint8Array): string {
  const { uuid } = parse(proto.DeviceId, source);
  return parseUuid(uuid) ?? refuse("uuid", `${quote(uuid)} is no uuid`);
}
