// Numbers of devices as st_rdev, st_dev and mknod(2) pack them (linux/kdev_t.h: new_encode_dev).

export const packed = (major: number, minor: number): number =>
  ((major << 8) | (minor & 0xff) | ((minor & ~0xff) << 12)) >>> 0;

export const unpacked = (device: number): { major: number; minor: number } => ({
  major: (device >>> 8) & 0xfff,
  minor: (device & 0xff) | ((device >>> 12) & 0xfff00),
});

/** As /sys and the tables of the device-mapper name it: "253:0". */
export function numbered(device: number): string {
  const { major, minor } = unpacked(device);
  return `${major}:${minor}`;
}
