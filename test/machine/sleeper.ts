// A signed GuestOS for tests in a machine: a shell's programs, and an init that does nothing.
import {
  chmodSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { signed } from "../../initramfs/pki.ts";
import { build, HARDWARE, hashTree } from "../../src/guestos/image.ts";
import { BLOCK } from "../../src/sys/verity.ts";
import { busyboxRoot } from "../host/world.ts";

export interface Sleeper {
  readonly name: string;
  /** The folder that it is built into, beside others. */
  readonly out: string;
  /** What else is in its image. */
  readonly fill?: (tree: string) => void;
  /** What becomes of its configuration before it is signed. */
  readonly change?: (text: string) => string;
  /** Bytes that its image is made to have, with nothing in what is added; only its hash tree proves it then. */
  readonly size?: number;
}

export async function sleeper({ name, out, fill, change = (text) => text, size }: Sleeper): Promise<void> {
  const tree = mkdtempSync(join(tmpdir(), "sleeper-"));
  chmodSync(tree, 0o755); // it becomes the root folder
  busyboxRoot(tree);
  fill?.(tree);
  const { confPath, imagePath } = await build({
    name,
    version: 1,
    from: tree,
    out,
    fs: "erofs",
    root: "shared",
    hardware: HARDWARE.x86_64!,
    compress: false,
    allRoot: true,
    force: false,
    config: { init_path: "/bin/sleep", init_param: ["1000000"], init_env: ["PATH=/bin"] },
  });
  rmSync(tree, { recursive: true });
  let text = change(readFileSync(confPath, "utf8"));
  if (size !== undefined) {
    truncateSync(imagePath, size);
    const blank = { image_size: size, image_sha1: "", image_sha2_256: name };
    const root = hashTree(imagePath, imagePath.replace(/\.img$/, ".hash.img"), blank);
    text = without("image_sha1")(without("image_sha2_256")(text))
      .replace(/(image_size: )\d+/, `$1${Math.ceil(size / BLOCK) * BLOCK}`)
      .replace(/(image_verity_sha256: ")[^"]*/, `$1${root}`);
  }
  writeFileSync(confPath, text);
  signed(confPath);
}

/** The text of a configuration without a field. */
export const without =
  (field: string) =>
  (text: string): string =>
    text.replace(new RegExp(`^\\s*${field}: .*\n`, "m"), "");

/** A guest of `make guests`, beside those that a test builds. */
export function beside(out: string, name: string): void {
  for (const file of [name, `${name}.conf`, `${name}.sig`, `${name}.cert`])
    symlinkSync(resolve("out/guests", file), join(out, file));
}
