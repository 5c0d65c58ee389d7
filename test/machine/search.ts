// In the test ramdisk, run by the product's own executable: searches the writable memory of processes, and files, for bytes.
//   cml /test/search.js PIDS NAME=HEX …
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { found } from "../memory.ts";

/** The data partition but for images, and everything volatile. */
const FOLDERS = [
  "/data/cml/containers",
  "/data/cml/keys",
  "/data/cml/tokens",
  "/data/logs",
  "/data/audit",
  "/run",
  "/tmp",
];
const FILE_MAX = 8 << 20;

const [pids, ...named] = process.argv.slice(2);
const needles = new Map(
  named.map((text) => {
    const [name, hex] = text.split("=");
    return [name!, Buffer.from(hex!, "hex")] as const;
  }),
);

function* files(folder: string): Generator<string> {
  let entries: ReturnType<typeof list>;
  try {
    entries = list(folder);
  } catch {
    return; // not there
  }
  for (const entry of entries) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* files(path);
    else if (entry.isFile()) yield path;
  }
}
const list = (folder: string) => readdirSync(folder, { withFileTypes: true });

const places: string[] = [];
for (const pid of pids!.split(",")) {
  const name = readFileSync(`/proc/${pid}/comm`, "latin1").trim();
  for (const place of found(Number(pid), needles)) places.push(`${name}: ${place}`);
}
for (const folder of FOLDERS)
  for (const path of files(folder)) {
    const bytes = readFileSync(path);
    if (bytes.length > FILE_MAX) continue; // images
    for (const [what, needle] of needles) if (bytes.includes(needle)) places.push(`${path}: ${what}`);
  }
console.log(JSON.stringify(places));
