// xorg: what an X server needs to use the firmware's framebuffer (enable_xorg_compat). It takes a framebuffer below a
// PCI device for that device's own, and wants the device itself. So the container sees a /sys/class/graphics in which
// fb0 is the platform device that it is as well. The tmpfs is attached in the container's mount namespace alone, after
// masks, beneath an opened /sys; /dev/fb0 comes with `allow_dev: "c 29:0 rwm"`.
import { readlinkSync } from "node:fs";
import {
  AT_FDCWD,
  close,
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY,
  mountSetattr,
  moveMount,
  O_DIRECTORY,
  O_PATH,
  openat2,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
  symlinkat,
} from "../../sys/calls.ts";
import { ENOENT, isErrno } from "../../sys/error.ts";
import { mountSteps } from "../../sys/mounts.ts";
import { Reg } from "../../sys/op.ts";
import { type Module, Slot } from "../module.ts";

const LOCKED = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
const [FS, MNT, SYS] = [0, 1, 2].map((n) => new Reg(n)) as [Reg, Reg, Reg];

/** Where fb0 leads, or undefined if there is none. */
function framebuffer(): string | undefined {
  try {
    return readlinkSync("/sys/class/graphics/fb0");
  } catch (e) {
    if (isErrno(e, ENOENT)) return undefined;
    throw e;
  }
}

const FIRMWARES = /\/((?:efi|vesa)-framebuffer\.\d+)\/graphics\/fb0$/;

/** The platform device of a framebuffer that shows as part of a PCI device. */
export const platformDevice = (link: string | undefined): string | undefined =>
  link?.includes("devices/pci") ? FIRMWARES.exec(link)?.[1] : undefined;

/** It shows as a platform device already, as before Linux 6.9 on any machine: there is nothing to do. */
export const shown = (link: string | undefined): boolean =>
  link?.includes("devices/platform/") === true && FIRMWARES.test(link);

/** `look`: where the machine's fb0 leads; `folder`: of /sys. Tests pretend: not every machine has a framebuffer. */
export const xorgWith = (look: () => string | undefined, folder: string): Module => {
  const found = new Slot<string>();
  return {
    name: "xorg",
    prepare(s) {
      if (!s.config.enable_xorg_compat) return;
      const link = look();
      const name = platformDevice(link);
      if (name) found.set(s, name);
      else if (!shown(link)) s.log("enable_xorg_compat: the machine has no framebuffer of the firmware's");
    },
    child(s) {
      const name = found.get(s);
      if (name === undefined) return [];
      return [
        ...mountSteps("tmpfs", "mode=0555,size=16k,nr_inodes=8", LOCKED, FS, MNT),
        symlinkat("../../devices/virtual/graphics/fbcon", MNT, "fbcon"),
        symlinkat(`../../bus/platform/devices/${name}/graphics/fb0`, MNT, "fb0"),
        mountSetattr(MNT, MOUNT_ATTR_RDONLY),
        openat2(AT_FDCWD, "sys", O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, 0, SYS),
        moveMount(MNT, SYS, folder),
        close(SYS),
        close(MNT),
      ];
    },
  };
};

export const xorg = xorgWith(framebuffer, "class/graphics");
