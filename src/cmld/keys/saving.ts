// Recovery keys, backups and what is restored from them, for the daemon: which key, which files, where to. What a backup is
// made of is in backup.ts.
import { existsSync } from "node:fs";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isUuid } from "../../lib/uuid.ts";
import { readBounded, removeSynced, synced, writeAtomic } from "../../sys/file.ts";
import { seal } from "../../sys/sealed.ts";
import { Secret } from "../../sys/secret.ts";
import { FILLING } from "../containers.ts";
import { type About, backup, isPart } from "./backup.ts";
import { STACKED } from "./crypt.ts";
import { forgetKey, heldKey } from "./machine.ts";
import { RECOVERY_BYTES, RECOVERY_MAX, unwrap, wrap } from "./recovery.ts";

/** Whose volumes they are. */
export interface Owner {
  readonly uuid: string;
  readonly imageDir: string;
}

const keysOf = (base: string): string => join(base, "keys");
const recoveryFile = (base: string, uuid: string): string => join(keysOf(base), `${uuid}.recovery`);

/** The key of volumes that no token protects. */
export function keyWithoutToken(base: string, c: Owner, log: (line: string) => void): Promise<Secret> {
  if (!existsSync(join(c.imageDir, STACKED)))
    throw new Error("it has no sealed volumes: they are made when it starts for the first time");
  return heldKey({ folder: keysOf(base), uuid: c.uuid, images: c.imageDir, log });
}

/** The key of volumes whose token is lost. */
export async function recovered(base: string, c: Owner, recovery: Secret): Promise<Secret> {
  const wrapped = await readBounded(recoveryFile(base, c.uuid), RECOVERY_MAX);
  if (!wrapped) throw new Error("it has no recovery key");
  return unwrap(wrapped, recovery);
}

/** A new recovery key; one that was there before opens nothing any more. */
export async function makeRecoveryKey(base: string, c: Owner, key: Secret): Promise<Secret> {
  const recovery = Secret.random(RECOVERY_BYTES);
  try {
    await writeAtomic(recoveryFile(base, c.uuid), wrap(key, recovery));
    return recovery;
  } catch (e) {
    recovery[Symbol.dispose]();
    throw e;
  }
}

/** A container that stands still, as a stream. The key is the caller's. */
export async function* save(
  base: string,
  c: Owner,
  about: Omit<About, "version" | "uuid">,
  key: Secret,
): AsyncGenerator<Uint8Array> {
  const wrapped = await readBounded(recoveryFile(base, c.uuid), RECOVERY_MAX);
  if (!wrapped) throw new Error("it has no recovery key, and nothing else would open the backup");
  const names = (await readdir(c.imageDir)).filter(isPart).sort();
  yield* backup({ version: 1, uuid: c.uuid, ...about }, key, wrapped, c.imageDir, names);
}

/** Where a restoration keeps its files until it is whole; one at a time. */
export const restoringFolder = (base: string): string => join(base, "restoring");

/** Give a container that is being created the volumes of a whole restoration, and their keys: by its token's first PIN the key
 * becomes the token's. */
export async function settle(base: string, c: Owner, key: Secret, recovery: Secret): Promise<void> {
  await writeAtomic(join(restoringFolder(base), FILLING), "");
  await rename(restoringFolder(base), c.imageDir); // all of them at once
  await synced(dirname(c.imageDir));
  await mkdir(keysOf(base), { recursive: true, mode: 0o700 });
  await writeAtomic(join(keysOf(base), `${c.uuid}.sealed`), seal(key, c.uuid));
  await writeAtomic(recoveryFile(base, c.uuid), wrap(key, recovery));
}

/** What interrupted restorations left, before the containers are loaded, which removes the rest of it. */
export async function clearUnfinished(base: string): Promise<void> {
  await rm(restoringFolder(base), { recursive: true, force: true });
  const folder = join(base, "containers");
  for (const uuid of existsSync(folder) ? await readdir(folder) : []) {
    if (!isUuid(uuid) || !existsSync(join(folder, uuid, FILLING))) continue;
    if (existsSync(join(folder, `${uuid}.conf`))) await removeSynced(join(folder, uuid), [FILLING]);
    else await forgetKey(keysOf(base), uuid);
  }
}
