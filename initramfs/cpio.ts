// The "newc" archive that the kernel unpacks as its first file system (Documentation/driver-api/early-userspace/
// buffer-format.rst of Linux): entries in, bytes out. Same entries, same bytes: no clock, no owner but root, inode
// numbers by position.
export type Entry =
  | { readonly kind: "dir"; readonly path: string; readonly mode: number }
  | { readonly kind: "file"; readonly path: string; readonly mode: number; readonly from: string }
  | { readonly kind: "link"; readonly path: string; readonly to: string }
  | {
      readonly kind: "node";
      readonly path: string;
      readonly mode: number;
      readonly major: number;
      readonly minor: number;
    };

/** File types, linux/stat.h. */
const TYPE = { dir: 0o040000, file: 0o100000, link: 0o120000, node: 0o020000 } as const;

const pad = (n: number): Uint8Array => new Uint8Array(-n & 3);

function header(inode: number, mode: number, size: number, path: string, major = 0, minor = 0): Uint8Array {
  const name = Buffer.from(path + "\0");
  const fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name.length, 0];
  const text = "070701" + fields.map((n) => n.toString(16).padStart(8, "0")).join("");
  return Buffer.concat([Buffer.from(text), name, pad(text.length + name.length)]);
}

/** The archive in pieces; `read` gives a file's content. A directory stands before what is in it. */
export function* cpio(entries: readonly Entry[], read: (from: string) => Uint8Array): Generator<Uint8Array> {
  const seen = new Set<string>();
  let inode = 1;
  for (const e of entries) {
    const parent = e.path.includes("/") ? e.path.slice(0, e.path.lastIndexOf("/")) : undefined;
    if (seen.has(e.path)) throw new Error(`${e.path}: twice in the archive`);
    if (parent !== undefined && !seen.has(parent))
      throw new Error(`${e.path}: its directory is not in the archive`);
    seen.add(e.path);
    const content =
      e.kind === "file" ? read(e.from) : e.kind === "link" ? Buffer.from(e.to) : new Uint8Array(0);
    if (content.length > 0xffffffff) throw new Error(`${e.path}: ${content.length} bytes, at most 4 GiB`);
    const mode = TYPE[e.kind] | (e.kind === "link" ? 0o777 : e.mode);
    yield header(
      inode++,
      mode,
      content.length,
      e.path,
      ...(e.kind === "node" ? ([e.major, e.minor] as const) : []),
    );
    yield content;
    yield pad(content.length);
  }
  yield header(0, 0, 0, "TRAILER!!!");
}
