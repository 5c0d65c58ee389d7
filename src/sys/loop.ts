// Loop devices (loop(4), linux/loop.h): a file as a block device, configured in one call and freed by the kernel
// when its last user is gone, so that a crash of ours leaves none behind.
import { fstatSync } from "node:fs";
import { AT_FDCWD, ioctl, O_RDONLY, O_RDWR, openat } from "./calls.ts";
import { EBUSY, ENXIO, SysError } from "./error.ts";
import { Fd } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import { show } from "./op.ts";

const LOOP_CTL_GET_FREE = 0x4c82;
const LOOP_CONFIGURE = 0x4c0a;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;

export interface Loop {
  /** Keeps the device while no mount does. */
  readonly fd: Fd;
  /** "/dev/loop7" */
  readonly path: string;
  /** Its number, as st_rdev is. */
  readonly device: number;
}

/** Attach the file open as `file`. `name` is what losetup(8) shows. */
export function attachLoop(file: Fd, readOnly: boolean, name: string): Loop {
  using control = new Fd(now(openat(AT_FDCWD, "/dev/loop-control", O_RDWR)));
  // struct loop_config: fd u32, block_size u32, struct loop_info64 (lo_flags at 52, lo_file_name at 56), reserved
  const config = mem(304);
  const view = new DataView(config.buffer);
  view.setUint32(0, file.n, true);
  view.setUint32(8 + 52, LO_FLAGS_AUTOCLEAR | (readOnly ? LO_FLAGS_READ_ONLY : 0), true);
  config.set(Buffer.from(name).subarray(0, 63), 8 + 56);
  for (;;) {
    const path = `/dev/loop${now(ioctl(control.n, LOOP_CTL_GET_FREE, 0))}`;
    const fd = new Fd(now(openat(AT_FDCWD, path, readOnly ? O_RDONLY : O_RDWR)));
    const configure = ioctl(fd.n, LOOP_CONFIGURE, config);
    const result = attempt(configure);
    if (result >= 0) return { fd, path, device: fstatSync(fd.n).rdev };
    fd.close();
    if (result !== -EBUSY && result !== -ENXIO)
      throw new SysError(-result, `${path}: ${show(configure)}: ${name}`);
  }
}
