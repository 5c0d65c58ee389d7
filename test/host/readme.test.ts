// What the README tells a newcomer to type, typed at a terminal: a shell, `control`, an unmodified Debian. Here in hosted mode; in
// a machine core0's shell is the same busybox (test/machine/run.test.ts).
import { expect, test } from "bun:test";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Seat } from "../seat.ts";
import { Cmld } from "./daemon.ts";

const IN_CORE0 = "/usr/share/cml/debian.conf";
const STATUS = 'echo "status: $?"';
const STATUS_SAID = /\nstatus: (\d+)\r\n/;

/** Up to where a password is asked for. */
function walk(): string[] {
  const lines = readFileSync("README.md", "utf8").split("\n");
  const first = lines.findIndex((line) => line.startsWith("    control list"));
  const last = lines.findIndex((line) => line.startsWith("    sed "));
  return lines
    .slice(first, last)
    .map((line) => line.slice(4).replace(" -f ", " ")) // that would go on until Ctrl-C
    .filter((line) => line !== "");
}

test("the README's walk does what it says", async () => {
  const prepare = async (base: string): Promise<void> => {
    for (const name of ["debian-1", "debian-1.conf", "debian-1.sig", "debian-1.cert"])
      cpSync(join("out/guests", name), join(base, "operatingsystems", name), { recursive: true });
  };
  await using cmld = await Cmld.begin(undefined, { prepare });
  const home = join(cmld.folder, "home");
  mkdirSync(home);
  const program = `exec ${process.execPath} ${resolve("src/main.ts")} control -s ${cmld.socket} "$@"`;
  writeFileSync(join(home, "control"), `#!/bin/sh\n${program}\n`, { mode: 0o755 });
  const environment = [`PATH=${home}:/usr/bin:/bin`, `HOME=${home}`, "TERM=linux"];
  const argv = ["/bin/busybox", "sh", "-c", `cd ${home} && exec busybox sh`];
  await using user = new Seat(argv, environment, { rows: 24, columns: 120 });

  let seen = 0;
  const sees = async (words: RegExp): Promise<string> => {
    for (;;) {
      const unseen = Bun.stripANSI(user.text).slice(seen);
      const found = words.exec(unseen);
      if (found) {
        const text = unseen.slice(0, found.index + found[0].length);
        seen += text.length;
        return text;
      }
      await Bun.sleep(20); // a terminal tells nobody that it has changed
    }
  };
  const said = new Map<string, string>();
  let inDocument = false;
  for (const line of walk()) {
    const [command] = line.split(/ +#/) as [string];
    inDocument ||= line.endsWith("<<EOF");
    if (inDocument) user.type(`${line}\n`);
    if (inDocument && line !== "EOF") continue;
    const typed = command.replace(IN_CORE0, resolve(`initramfs/files/core0${IN_CORE0}`));
    // Not ahead: `control run` would take it for its command's.
    user.type(inDocument ? `${STATUS}\n` : `${typed}; ${STATUS}\n`);
    inDocument = false;
    if (command === "control run debian") {
      await sees(/\n# /); // Debian's /bin/sh
      user.type("exit\n");
    }
    const text = await sees(STATUS_SAID);
    expect([command, STATUS_SAID.exec(text)?.[1], text]).toEqual([command, "0", text]);
    said.set(command, text);
  }
  expect(said.get("control list")).toContain("no containers");
  expect(said.get("control start debian --wait")).toContain("debian: running");
  expect(said.get("control run debian systemctl is-system-running")).toContain("\nrunning\r\n");
  expect(said.get("control stats")).toMatch(/\ndebian /);
  expect(said.get("control logs")).toContain("debian: BOOTING → RUNNING");
  expect(said.get("control stop debian")).toContain("debian: stopping");
  expect(said.get("control start web --explain")).toContain('execve("/sbin/init"');
  expect(said.get("control remove web")).toContain("web: removed");
}, 120_000);
