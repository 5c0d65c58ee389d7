// Which kernel modules the machine has, and what they say about themselves: dependencies and the devices they
// drive. Debian's package brings no modules.dep (depmod runs when it is installed, which we never do), and the
// whole one would name thousands of modules that are not here; so ours is made from the modules' own .modinfo.
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { isWide } from "../src/init/modules.ts";

/** What stage0 loads, before there is a runtime image. */
export const FIRST = ["loop", "squashfs"];

/** What ext4 and libcrc32c ask for by the name of an algorithm, not of a module. */
export const CRC32C = "crc32c_generic";

/** What the data partition needs, and the disk of a virtual machine: loaded while PID 1's runtime starts. */
export const DATA = [CRC32C, "ext4"];
export const DISK = ["virtio_pci", "virtio_blk"];

/** Loaded at every boot: no device announces that they are needed, and there is no modprobe that could be asked.
 * First what core0 needs, before cmld starts: */
export const CORE = [
  [CRC32C, "crc32c-intel", "libcrc32c", "ext4", "erofs", "overlay"],
  ["veth", "nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat"],
  ["nft_reject_inet", "nft_fib_inet", "nft_fwd_netdev", "sch_fq_codel"],
  ["dm-verity", ...["sha256-ssse3"].filter(() => process.arch === "x64")], // its image has a root hash
].flat();

/** Loaded by cmld when a volume is first opened (src/run/kmod.ts). */
export const ON_NEED = [
  ["dm-mod", "dm-bufio", "dm-crypt", "dm-integrity", "xts", "ecb", "cbc", "essiv", "authenc"],
  ["aesni-intel"].filter(() => process.arch === "x64"),
].flat();

/** Then, beside it, what other guests may use: links, their firewalls; and the power button. */
export const GUESTS = [
  ["button", "evdev", "fuse"],
  ["af_alg", "algif_skcipher", "algif_hash", "nls_ascii", "nls_cp437", "vfat", "exfat"],
  ["bridge", "br_netfilter", "tun", "macvlan", "dummy"],
  [
    "nft_redir",
    "nft_limit",
    "nft_log",
    "nft_quota",
    "nft_hash",
    "nft_compat",
    "nf_log_syslog",
    "xt_conntrack",
  ],
  ["xt_MASQUERADE", "xt_addrtype", "xt_comment", "xt_nat", "xt_mark", "xt_tcpudp"],
].flat();

/** Loaded when a device with one of their aliases is there. */
export const DRIVERS = [
  // virtual machines
  ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "virtio_scsi"],
  ["virtio_balloon", "vmw_pvscsi", "vmxnet3"],
  // disks
  [
    "ahci",
    "ata_piix",
    "sd_mod",
    "sr_mod",
    "nvme",
    "mmc_block",
    "sdhci-pci",
    "sdhci-acpi",
    "usb-storage",
    "uas",
  ],
  // USB and input
  ["xhci-pci", "ehci-pci", "ohci-pci", "uhci_hcd", "usbhid", "hid-generic", "uinput", "atkbd", "i8042"],
  // network cards
  ["e1000", "e1000e", "igb", "igc", "r8169", "tg3", "realtek"],
  ["cdc_ether", "cdc_ncm", "ax88179_178a", "r8152", "asix"],
  // watchdogs, TPM, clocks
  ["i6300esb", "iTCO_wdt", "sp5100_tco", "tpm_tis", "tpm_crb", "rtc-cmos"],
].flat();

export interface Module {
  /** With "_" for "-", as the kernel compares. */
  readonly name: string;
  /** Below the modules directory: "kernel/fs/ext4/ext4.ko". */
  readonly path: string;
  readonly size: number;
  readonly depends: readonly string[];
  readonly aliases: readonly string[];
}

export const canonical = (name: string): string => name.replaceAll("-", "_");

/** The strings of an ELF file's .modinfo section (linux/module.h, elf(5); 64-bit little-endian). */
export function modinfo(file: Uint8Array): string[] {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const table = Number(view.getBigUint64(40, true)); // e_shoff
  const [size, count, names] = [58, 60, 62].map((at) => view.getUint16(at, true)) as [number, number, number];
  const section = (i: number) => ({
    name: view.getUint32(table + i * size, true),
    offset: Number(view.getBigUint64(table + i * size + 24, true)),
    length: Number(view.getBigUint64(table + i * size + 32, true)),
  });
  const strings = section(names).offset;
  for (let i = 0; i < count; i++) {
    const s = section(i);
    const at = strings + s.name;
    if (Buffer.from(file.subarray(at, at + 9)).toString("latin1") !== ".modinfo\0") continue;
    return Buffer.from(file.subarray(s.offset, s.offset + s.length))
      .toString("latin1")
      .split("\0")
      .filter((line) => line !== "");
  }
  throw new Error("no .modinfo section");
}

/** Every module below `directory` by name: its path there. */
function index(directory: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const path of readdirSync(directory, { recursive: true }) as string[])
    if (path.endsWith(".ko")) found.set(canonical(basename(path, ".ko")), path);
  return found;
}

/** The named modules and all they depend on, dependencies first. Names that are built into the kernel are left
 * out; a name that is neither is an error. */
export function select(directory: string, names: readonly string[]): Module[] {
  const files = index(directory);
  const builtin = new Set(
    readFileSync(join(directory, "modules.builtin"), "utf8")
      .split("\n")
      .map((line) => canonical(basename(line, ".ko"))),
  );
  const done = new Map<string, Module>();
  const visit = (name: string, wanted: string): void => {
    if (done.has(name) || builtin.has(name)) return;
    const path = files.get(name);
    if (path === undefined) throw new Error(`kernel module ${name} (for ${wanted}): not in ${directory}`);
    const bytes = readFileSync(join(directory, path));
    const info = modinfo(bytes);
    const values = (key: string) =>
      info.filter((l) => l.startsWith(`${key}=`)).map((l) => l.slice(key.length + 1));
    // A soft dependency may be an alias, which the lists above name by its module.
    const soft = values("softdep")
      .filter((s) => s.startsWith("pre:"))
      .flatMap((s) => s.slice(4).trim().split(/\s+/))
      .map(canonical)
      .filter((s) => files.has(s));
    const depends = [
      ...values("depends")
        .flatMap((s) => s.split(","))
        .filter((s) => s !== "")
        .map(canonical),
      ...soft,
    ].filter((s) => !builtin.has(s));
    for (const d of depends) visit(d, name);
    done.set(name, { name, path, size: bytes.length, depends, aliases: values("alias") });
  };
  for (const name of names) visit(canonical(name), "the manifest");
  return [...done.values()];
}

/** modules.dep(5): each module's file, then the files it needs. */
export function modulesDep(modules: readonly Module[]): string {
  const paths = new Map(modules.map((m) => [m.name, m.path]));
  return modules
    .map((m) => `${m.path}:${m.depends.map((d) => ` ${paths.get(d)}`).join("")}\n`)
    .toSorted()
    .join("");
}

/** "alias PATTERN module", as depmod(8) writes it; those that begin with a wildcard first, then an empty line, then the rest:
 * src/init/modules.ts searches the latter by how they begin. */
export function modulesAlias(modules: readonly Module[]): string {
  const all = modules.flatMap((m) =>
    m.aliases
      .filter((a) => a.includes(":"))
      .map((a) => ({ wide: isWide(a), line: `alias ${a} ${m.name}\n` })),
  );
  const part = (wide: boolean) =>
    all
      .filter((a) => a.wide === wide)
      .map((a) => a.line)
      .toSorted()
      .join("");
  return `${part(true)}\n${part(false)}`;
}
