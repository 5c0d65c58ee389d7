// Every recorded call of the original's client, made by ours: the same requests, the same words on standard output.
import { expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { ControllerToDaemon } from "../../proto/gen/proto.js";
import { isAdded, type Recorded, recorded, replay } from "../../test/replay.ts";

const MAIN = `${import.meta.dir}/../main.ts`;

/** Calls that the daemon refused, or that failed before: ours say so with their exit status. */
const REFUSED = new Set([
  "09-push_guestos_config-badsig",
  "102-pull_csr",
  "105-remove_guestos-inuse",
  "120-state-unknown",
  "20-create-unknown-os",
  "202-push_cert-garbage",
  "21-create-garbage",
  "24-start-before-pinchange",
  "25-change_pin-soft1-wrong",
  "26-change_pin-soft1-mismatch",
  "33-change_pin-none1",
  "34-start-soft1-wrongpin",
  "38-start-soft1-again",
  "40-start-svc1",
  "70-assign_iface-persistent",
  "73-dev_access-deny",
  "92-stop-soft1-notrunning",
]);
/** Wrong usage: the text is each client's own. */
const USAGE = new Set(["121-nocommand", "122-usage"]);

/** The files that the command line names, with what the original's client sent of them. */
function writeFiles(folder: string, r: Recorded): void {
  const sent = r.requests
    .map((bytes) => ControllerToDaemon.decode(bytes))
    .flatMap((m) => [
      m.container_config_file ?? m.guestos_config_file ?? m.device_cert ?? m.guestos_rootcert,
      m.container_config_signature ?? m.guestos_config_signature,
      m.container_config_certificate ?? m.guestos_config_certificate,
    ])
    .filter((bytes) => bytes !== undefined);
  const names = r.arguments.filter((w) => /\.(conf|sig|cert)$/.test(w));
  names.forEach((name, i) => {
    writeFileSync(`${folder}/${name}`, sent[i]!);
  });
}

test.each(recorded)("$call", async (r) => {
  using daemon = replay(r);
  writeFiles(daemon.folder, r);
  const client = Bun.spawn([process.execPath, MAIN, "control", "--socket", daemon.socket, ...r.arguments], {
    cwd: daemon.folder,
    stdin: Buffer.from(r.stdin),
    stdout: "pipe",
    stderr: "pipe",
    env: {},
  });
  const [stdout, stderr] = await Promise.all([client.stdout.bytes(), client.stderr.text()]);
  const exit = await client.exited;

  if (USAGE.has(r.call)) {
    expect(Buffer.from(stdout).toString()).toContain("USAGE");
    expect(exit).toBe(255);
    expect(daemon.requests).toEqual([]);
    return;
  }
  const theirs = daemon.requests.filter(({ message }) => !isAdded(message) || r.arguments[0] === "config");
  expect(theirs.map(({ bytes }) => Buffer.from(bytes).toString("hex"))).toEqual(
    r.requests.map((bytes) => Buffer.from(bytes).toString("hex")),
  );
  expect(Buffer.from(stdout).toString("latin1")).toBe(Buffer.from(r.stdout).toString("latin1"));
  expect({ exit, stderr }).toEqual(
    REFUSED.has(r.call)
      ? { exit: 1, stderr: expect.stringMatching(/^control: .+\n/) }
      : { exit: 0, stderr: expect.any(String) },
  );
  expect(stderr).not.toContain("Abort");
  if (r.call === "102-pull_csr") expect(existsSync(`${daemon.folder}/pulled.csr`)).toBe(false);
  if (r.call === "206-pull_csr-again")
    expect(readFileSync(`${daemon.folder}/x.csr`, "utf8")).toStartWith(
      "-----BEGIN CERTIFICATE REQUEST-----\n",
    );
});
