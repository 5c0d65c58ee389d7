import { afterAll, expect, spyOn, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { GuestOSConfig, GuestOSMount } from "../../proto/gen/proto.js";
import { Chance, SEED } from "../../test/chance.ts";
import { parse } from "../lib/text.ts";
import { BLOCK } from "../sys/verity.ts";
import { build, check, type Guest, hasFile } from "./image.ts";
import { main } from "./main.ts";

const dir = mkdtempSync(`${tmpdir()}/guestos-`);
afterAll(() => rmSync(dir, { recursive: true }));

const tree = `${dir}/tree`;
mkdirSync(`${tree}/usr/sbin`, { recursive: true });
symlinkSync("usr/sbin", `${tree}/sbin`);
symlinkSync("/usr/sbin/real", `${tree}/usr/sbin/init`);
writeFileSync(`${tree}/usr/sbin/real`, "#!/bin/sh\n", { mode: 0o755 });
symlinkSync("../../../../../../etc/passwd", `${tree}/outside`);
symlinkSync("loop", `${tree}/loop`);
for (let i = 0; i < 40; i++) writeFileSync(`${tree}/usr/${i}`, "x".repeat(i * 1000));
writeFileSync(`${tree}/usr/noise`, new Chance(SEED).bytes(100_000)); // blocks that do not vanish

const guest: Guest = {
  name: "demo",
  version: 3,
  from: tree,
  out: `${dir}/out`,
  fs: "erofs",
  root: "shared_rw",
  hardware: "x86",
  compress: true,
  allRoot: true,
  force: false,
  config: { init_path: "/sbin/init" },
};

test("hasFile() follows links as if the tree were the root", () => {
  expect(hasFile(tree, "/sbin/init")).toBe(true);
  expect(hasFile(tree, "/usr/sbin/../sbin/real")).toBe(true);
  for (const path of ["/sbin/none", "/sbin", "/outside", "/loop", "/usr/1/init"])
    expect(hasFile(tree, path)).toBe(false);
});

test.each(["erofs", "squashfs"] as const)(
  "build() of %s: a configuration that says what the image is",
  async (fs) => {
    const built = await build({ ...guest, fs, out: `${dir}/${fs}` });
    const config = parse(GuestOSConfig, readFileSync(built.confPath));
    expect(config.mounts).toHaveLength(1);
    const root = config.mounts[0]!;
    expect([config.name, config.version, root.fs_type]).toEqual(["demo", 3, fs]);
    expect(root.mount_type).toBe(GuestOSMount.Type.SHARED_RW);
    const bytes = readFileSync(`${dir}/${fs}/demo-3/root.img`);
    expect(root.image_size).toBe(bytes.length);
    expect(root.image_sha2_256).toBe(new Bun.CryptoHasher("sha256").update(bytes).digest("hex"));
    expect(root.image_sha1).toBe(new Bun.CryptoHasher("sha1").update(bytes).digest("hex"));
    expect(await check(config, built.confPath)).toEqual([]);
    const image = `${dir}/${fs}/demo-3/root.img`;
    const tree = `${dir}/${fs}/demo-3/root.hash.img`;
    // The reference: it takes the tree, and with the image it takes nothing else.
    const veritysetup = (root: string) =>
      Bun.spawnSync(["veritysetup", "verify", image, tree, root]).exitCode;
    expect(veritysetup(String(root.image_verity_sha256))).toBe(0);
    expect(veritysetup(String(root.image_sha2_256))).not.toBe(0);
    const whole = readFileSync(tree);
    writeFileSync(tree, whole.with(BLOCK, whole[BLOCK]! ^ 1));
    expect((await check(config, built.confPath))[0]).toContain("Verification");
    writeFileSync(tree, whole.with(32, 0x63)); // another algorithm
    expect((await check(config, built.confPath))[0]).toContain('only "sha256" is taken');
    writeFileSync(image, "other");
    expect((await check(config, built.confPath))[0]).toContain("image_size is 5");
  },
);

test.each(["erofs", "squashfs"] as const)("build() of %s: same input, same bytes", async (fs) => {
  const copy = `${dir}/copy-${fs}`;
  cpSync(tree, copy, { recursive: true, verbatimSymlinks: true });
  for (const name of readdirSync(`${copy}/usr`)) utimesSync(`${copy}/usr/${name}`, 0, 1_000_000);
  const date = 1_700_000_000;
  const one = await build({ ...guest, fs, date, out: `${dir}/one-${fs}` });
  const two = await build({ ...guest, fs, date, out: `${dir}/two-${fs}`, from: copy });
  expect(readFileSync(two.imagePath).equals(readFileSync(one.imagePath))).toBe(true);
  const hashes = (path: string) => readFileSync(path.replace("root.img", "root.hash.img"));
  expect(hashes(two.imagePath).equals(hashes(one.imagePath))).toBe(true);
  expect(readFileSync(two.confPath, "utf8")).toBe(readFileSync(one.confPath, "utf8"));
  expect(one.config.build_date).toBe("2023-11-14T22:13:20UTC");
});

test("build() from a tar file is the same as from its folder", async () => {
  Bun.spawnSync(["tar", "-czf", `${dir}/tree.tar.gz`, "-C", tree, "."]);
  const one = await build({ ...guest, date: 1, out: `${dir}/folder` });
  const two = await build({ ...guest, date: 1, out: `${dir}/tar`, from: `${dir}/tree.tar.gz` });
  expect(readFileSync(two.imagePath).equals(readFileSync(one.imagePath))).toBe(true);
});

test("build() leaves nothing behind when it fails, and what was there when it is refused", async () => {
  const out = `${dir}/fails`;
  await expect(build({ ...guest, out, config: { init_path: "/sbin/none" } })).rejects.toThrow("build demo-3");
  expect(readdirSync(out)).toEqual([]);
  writeFileSync(`${dir}/broken.tar`, "this is no tar file");
  await expect(build({ ...guest, out, from: `${dir}/broken.tar` })).rejects.toThrow("build demo-3");
  expect(readdirSync(out)).toEqual([]);
  await build({ ...guest, out });
  await expect(build({ ...guest, out })).rejects.toThrow("demo-3 is there already");
  const before = readFileSync(`${out}/demo-3.conf`, "utf8");
  await expect(build({ ...guest, out, force: true, config: { init_path: "/no" } })).rejects.toThrow();
  expect(readFileSync(`${out}/demo-3.conf`, "utf8")).toBe(before);
  await build({ ...guest, out, force: true, config: { init_path: "/sbin/cservice", init_param: ["init"] } });
  expect(readdirSync(out).toSorted()).toEqual(["demo-3", "demo-3.conf"]);
  expect(readFileSync(`${out}/demo-3.conf`, "utf8")).toContain('init_param: "init"');
});

test("build() that is interrupted leaves nothing behind", async () => {
  const out = `${dir}/interrupted`;
  Bun.spawnSync(["mkfifo", `${dir}/stuck.tar`]); // tar waits for a writer that never comes
  const words = ["guestos", "build", "web", `${dir}/stuck.tar`, "--version", "1", "-o", out, "--all-root"];
  const child = Bun.spawn([process.execPath, "src/main.ts", ...words], { stderr: "pipe" });
  for await (const chunk of child.stderr) if (Buffer.from(chunk).includes("unpacking")) break;
  expect(readdirSync(out)).toHaveLength(1);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(143);
  expect(readdirSync(out)).toEqual([]);
});

test("build() does not put its own output into the image", async () => {
  const words = (out: string) => ["guestos", "build", "web", tree, "--version", "1", "-o", out];
  for (const out of [tree, `${tree}/out`]) {
    const child = Bun.spawn([process.execPath, "src/main.ts", ...words(out)], { stderr: "pipe" });
    expect(await child.stderr.text()).toContain(`${out} lies in ${tree}, and would become part of the image`);
  }
  expect(existsSync(`${tree}/out`)).toBe(false);
});

test("build() names tar's reason, not its farewell", async () => {
  writeFileSync(`${dir}/junk.tar`, "no archive".repeat(100));
  const words = ["build", "junk", `${dir}/junk.tar`, "--version", "1", "-o", `${dir}/junk`, "--all-root"];
  const child = Bun.spawn([process.execPath, "src/main.ts", "guestos", ...words], { stderr: "pipe" });
  expect(await child.stderr.text()).toEndWith("tar: This does not look like a tar archive\n");
});

test("the command line: what is wrong with it is said before anything is made", async () => {
  const out = `${dir}/cli`;
  const cml = (...words: string[]) => main(["build", "web", tree, "-o", out, ...words]);
  for (const words of [
    ["--version", "0"],
    ["--version", "1", "--fs", "ext4"],
    ["--version", "1", "--vesion", "2"],
    ["--version", "1", "--volume", "data"],
    ["--version", "1", "--volume", "data:relative"],
    ["--version", "1", "--volume", "data:/a/../b"],
    ["--version", "1", "--volume", "data:/d:5"],
    ["--version", "1", "--tmpfs", "/tmp:0"],
    ["--version", "1", "--env", "=x"],
    ["--version", "1", "--bind", "a/b:/x"],
    ["--version", "1", "--update-url", "ftp://images.example.org"],
    ["--version", "1", "--update-url", "https://images.example.org/a b"],
    [],
  ])
    expect(await cml(...words)).toBe(255);
  for (const [option, value, shown] of [
    ["--update-url", "https://images.example.org/\u0007", '"\\u0007"'],
    ["--update-url", "https://images.example.org/\n", '"\\n"'],
    ["--description", "one\ntwo", '"\\n"'],
    ["--upstream", "1\u009b2J", '"\\x9b"'],
    ["--init", "/sbin/in\tit", '"\\t"'],
    ["--param", "\u001b[2J", '"\\u001b"'],
    ["--env", "A=\u007f", '"\\x7f"'],
    ["--volume", "data:/da\rta", '"\\r"'],
    ["--tmpfs", "/tm\np", '"\\n"'],
    ["--bind", "keys:/etc/\u0001keys", '"\\u0001"'],
  ] as const) {
    const said = spyOn(console, "error").mockImplementation(() => {});
    expect(await cml("--version", "1", option, value)).toBe(255);
    expect(said.mock.calls[0]![0]).toStartWith(`guestos: ${option} `);
    expect(said.mock.calls[0]![0]).toEndWith(`: a control character (${shown})`);
    said.mockRestore();
  }
  expect(existsSync(out)).toBe(false);
  const mounts = [
    "--volume",
    "data:/data:64",
    "--volume=log:/var/log",
    "--tmpfs",
    "/tmp:8",
    "--bind",
    "keys:/etc/keys:rw",
  ];
  expect(
    await cml(
      "--version",
      "1",
      "--init",
      "/sbin/init",
      "--param",
      "a",
      "--param=b",
      "--env",
      "X=a=b",
      ...mounts,
    ),
  ).toBe(0);
  const config = parse(GuestOSConfig, readFileSync(`${out}/web-1.conf`));
  expect(config.init_param).toEqual(["a", "b"]);
  expect(config.init_env).toEqual(["X=a=b"]);
  expect(
    config.mounts.map(
      (m) => `${m.image_file} ${m.mount_point} ${GuestOSMount.Type[m.mount_type]} ${m.def_size}`,
    ),
  ).toEqual([
    "root / SHARED_RW 1024",
    "data /data EMPTY 64",
    "log /var/log EMPTY 1024",
    "tmpfs /tmp EMPTY 1024",
    "keys /etc/keys BIND_FILE_RW 1024",
  ]);
  expect(await main(["inspect", `${out}/web-1.conf`])).toBe(0);
  writeFileSync(`${out}/web-1/root.img`, "");
  expect(await main(["inspect", `${out}/web-1.conf`])).toBe(1);
  expect(await main(["inspect", `${out}/none.conf`])).toBe(1);
});
