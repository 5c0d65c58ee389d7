// Mounts as descriptors (fsopen(2), fsmount(2)): a file system mounted nowhere, to be attached in a container's own
// tree. A mount that is nowhere ends with its last descriptor, so a crash leaves none behind.

import type { At } from "./calls.ts";
import {
  FSCONFIG_CMD_CREATE,
  FSCONFIG_SET_FLAG,
  FSCONFIG_SET_STRING,
  fsconfig,
  fsmount,
  fsopen,
} from "./calls.ts";
import { Fd } from "./fd.ts";
import { mem } from "./mem.ts";
import { attempt, now } from "./now.ts";
import type { Op, Reg } from "./op.ts";

/** "a,b=c" as the steps of fsconfig(2). */
export const options = (fs: At, text: string): Op[] =>
  text
    .split(",")
    .filter((o) => o !== "")
    .map((o) => {
      const at = o.indexOf("=");
      return at < 0
        ? fsconfig(fs, FSCONFIG_SET_FLAG, o)
        : fsconfig(fs, FSCONFIG_SET_STRING, o.slice(0, at), o.slice(at + 1));
    });

/** A whole mount as steps for a child, of `source` if the file system has one; the mount's descriptor lands in `mount`. */
export const mountSteps = (
  type: string,
  data: string,
  attributes: number,
  fs: Reg,
  mount: Reg,
  source?: string,
): Op[] => [
  fsopen(type, fs),
  ...(source === undefined ? [] : [fsconfig(fs, FSCONFIG_SET_STRING, "source", source)]),
  ...options(fs, data),
  fsconfig(fs, FSCONFIG_CMD_CREATE, null),
  fsmount(fs, attributes, mount),
  { call: "close", args: [fs] },
];

/** What the kernel says about a file system context, one sentence (fsopen(2): reading the descriptor). */
function said(fs: Fd): string {
  const lines: string[] = [];
  for (;;) {
    const line = mem(256);
    const n = attempt({ call: "read", args: [fs.n, line, line.length] });
    if (n <= 0) return lines.join("; ");
    lines.push(
      Buffer.from(line.subarray(0, n))
        .toString()
        .replace(/^[ewi] /, "")
        .trim(),
    );
  }
}

/** Mount `source` (undefined for file systems without one) as a descriptor. */
export function mountAsFd(type: string, source: string | undefined, data: string, attributes: number): Fd {
  using fs = new Fd(now(fsopen(type)));
  try {
    if (source !== undefined) now(fsconfig(fs.n, FSCONFIG_SET_STRING, "source", source));
    for (const option of options(fs.n, data)) now(option);
    now(fsconfig(fs.n, FSCONFIG_CMD_CREATE, null));
    return new Fd(now(fsmount(fs.n, attributes)));
  } catch (cause) {
    const why = said(fs);
    throw new Error(`mounting ${type}${source === undefined ? "" : ` from ${source}`}${why && ` (${why})`}`, {
      cause,
    });
  }
}
