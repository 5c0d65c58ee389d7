// The executable as it is built: its names, and that nothing which lies around changes what it runs.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Cmld, Command } from "./daemon.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "executable-"));
  for (const name of ["cml", "control", "cml-control", "cmld", "something"])
    symlinkSync(resolve("out/cml"), join(folder, name));
});
afterAll(() => rmSync(folder, { recursive: true }));

function run(name: string, ...args: string[]): { status: number; said: string } {
  return ran(`./${name}`, ...args);
}

function ran(...argv: string[]): { status: number; said: string } {
  const { exitCode, stdout, stderr } = Bun.spawnSync(argv, {
    cwd: folder,
    env: { PATH: "/usr/bin:/bin" },
  });
  return { status: exitCode, said: `${stdout}${stderr}` };
}

test("the name selects the program, or the first argument does", () => {
  for (const [name, ...args] of [
    ["control"],
    ["cml-control"],
    ["cml", "control"],
    ["something", "control"],
  ]) {
    const { status, said } = run(name!, ...args, "help");
    expect([name, status, said.split("\n")[0]]).toEqual([
      name,
      0,
      "control client of the container management layer (control)",
    ]);
  }
  expect(run("cmld", "--help").said).toStartWith("usage: cmld ");
  expect(
    ran("setpriv", "--reuid", "65534", "--clear-groups", resolve("out/cml"), "cmld", "--base", folder),
  ).toEqual({
    status: 1,
    said: "cmld: only root can make containers\n",
  });
  expect(run("cml")).toEqual({ status: 0, said: expect.stringMatching(/^usage: cml .*\n\nprograms: init /) });
  expect(run("cml", "--version")).toEqual({
    status: 0,
    said: expect.stringMatching(/^cml \d+\.\d+\.\d+\n$/),
  });
  for (const word of ["nothing", "toString", "constructor"])
    expect(run("cml", word)).toEqual({
      status: 100,
      said: expect.stringMatching(new RegExp(`^cml: ${word}: no such program\n`)),
    });
});

test("files in the folder that it is started in run nothing and set nothing", () => {
  const ran = join(folder, "ran");
  writeFileSync(join(folder, "evil.ts"), `require("node:fs").writeFileSync(${JSON.stringify(ran)}, "");\n`);
  writeFileSync(join(folder, "bunfig.toml"), 'preload = ["./evil.ts"]\n');
  writeFileSync(join(folder, ".env"), "BUN_OPTIONS=--preload=./evil.ts\nNO_COLOR=1\nBUN_BE_BUN=1\n");
  writeFileSync(join(folder, "tsconfig.json"), '{ "compilerOptions": { "paths": { "*": ["./evil.ts"] } } }');
  writeFileSync(join(folder, "package.json"), '{ "name": "evil", "main": "./evil.ts", "type": "commonjs" }');
  expect(run("control", "help").status).toBe(0);
  expect(run("cml", "guestos", "--help").status).toBe(0);
  expect(existsSync(ran)).toBe(false);
  // The trap works: it is the runtime's own bunfig.toml that would have run it.
  const bun = Bun.spawnSync([process.execPath, "-e", "0"], { cwd: folder, env: { PATH: "/usr/bin:/bin" } });
  expect([bun.exitCode, existsSync(ran)]).toEqual([0, true]);
});

test("an upgrade puts another one in its place: what still runs starts its other programs", async () => {
  const executable = join(folder, "installed");
  const install = (): void => {
    copyFileSync("out/cml", `${executable}.new`);
    renameSync(`${executable}.new`, executable); // as dpkg does
  };
  install();
  await using cmld = await Cmld.begin(undefined, { executable });
  install();
  using c = await cmld.client();
  const text = 'name: "sealed"\nguest_os: "busybox"\ntoken_type: SOFT\n';
  const made = await c.ask(Command.CREATE_CONTAINER, { container_config_file: Buffer.from(text) });
  const pins = { device_pin: Buffer.from("trustme"), device_newpin: Buffer.from("another") };
  const { container_uuids } = made;
  expect(await c.say(Command.CONTAINER_CHANGE_TOKEN_PIN, { container_uuids, ...pins })).toBe(
    "CONTAINER_CHANGE_PIN_SUCCESSFUL",
  );
}, 60_000);
