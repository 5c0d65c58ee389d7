import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { ContainerTrust } from "../../../proto/gen/proto.js";
import { judge } from "../../../test/scd.ts";
import { AT_FDCWD, O_DIRECTORY, O_PATH, openat } from "../../sys/calls.ts";
import { chain } from "../../sys/error.ts";
import { Fd } from "../../sys/fd.ts";
import { now } from "../../sys/now.ts";
import { BLOCK, makeTree } from "../../sys/verity.ts";
import { readContainer, readDevice } from "../config.ts";
import type { Web } from "./download.ts";
import { GuestOses, titleOf } from "./guestos.ts";
import { Trust } from "./trust.ts";

// In memory: a fifth of the file system must stay free, which a disk of somebody else's may not have.
const top = mkdtempSync("/dev/shm/guestos-test-");
afterAll(() => rmSync(top, { recursive: true }));
const device = readDevice(Buffer.from("hostedmode: true signed_configs: false")).config;

const image = Buffer.alloc(300_000, "image");
const digest = (algorithm: string, bytes = image) => createHash(algorithm).update(bytes).digest("hex");
const conf = (version: number, more = `image_sha2_256: "${digest("sha256")}"`, name = "debian") =>
  Buffer.from(`name: "${name}" hardware: "x86" version: ${version} description { en: "x" }
mounts { image_file: "root" mount_point: "/" fs_type: "erofs" mount_type: SHARED_RW image_size: ${image.length} ${more} }`);

const web: Web = { dns: "", network: () => "ours" };
let count = 0;
async function fresh(used: Record<string, string[]> = {}, settings = device) {
  const folder = join(top, String(count++));
  mkdirSync(folder);
  const lines: string[] = [];
  const users = (name: string, version?: number) =>
    Object.entries(used).flatMap(([title, names]) =>
      version === undefined
        ? title.startsWith(`${name}-`)
          ? names
          : []
        : title === `${name}-${version}`
          ? names
          : [],
    );
  const make = async () => {
    const guestOs = async (source: Uint8Array) =>
      Buffer.from(source).includes("# local") ? ContainerTrust.LOCALLY_SIGNED : ContainerTrust.SIGNED;
    const trust = { guestOs }; // who signs what: trust.ts and test/host/signed
    const store = new GuestOses({
      folder,
      device: settings,
      trust,
      web,
      scd: judge(),
      log: (l) => lines.push(l),
      forget: () => {},
      users,
    });
    await store.load();
    return store;
  };
  const place = (version: number, bytes = image) => {
    mkdirSync(join(folder, `debian-${version}`), { recursive: true });
    writeFileSync(join(folder, `debian-${version}/root.img`), bytes);
  };
  return { folder, lines, store: await make(), make, place, used };
}
const install = async (store: GuestOses, source: Uint8Array) => (await store.push(source)).finished;
const container = (more: string, settings = device) =>
  readContainer(Buffer.from(`name: "web" guest_os: "debian" ${more}`), {
    device: settings,
    provisioned: false,
    loaded: false,
  }).config;

test("images in place: installed, listed, loaded again byte for byte", async () => {
  const { folder, store, make, place } = await fresh();
  place(1);
  const { os, finished } = await store.push(conf(1));
  expect(await store.push(conf(1)).catch(chain)).toBe("debian is being installed or removed");
  await finished;
  expect(titleOf(os)).toBe("debian-1");
  expect(os.trust).toBe(ContainerTrust.SIGNED);
  expect(readFileSync(join(folder, "debian-1.conf"))).toEqual(conf(1));
  expect(await store.wrong(os)).toBeUndefined();
  await install(store, conf(1)); // the same again
  const changed = Buffer.concat([conf(1), Buffer.from('init_param: "new"')]);
  expect(await install(store, changed).catch(chain)).toBe(
    "debian-1 is installed with another configuration; what has changed is a new version",
  );
  expect(readFileSync(join(folder, "debian-1.conf"))).toEqual(conf(1));
  const again = await make();
  expect(again.all().map(titleOf)).toEqual(["debian-1"]);
  expect(await again.missing(again.all()[0]!)).toBeUndefined();
});

test("what is to be written to a partition is refused before anything is fetched", async () => {
  const { folder, store } = await fresh();
  const flash = Buffer.from(conf(1).toString().replace("SHARED_RW", "FLASH"));
  expect(await store.push(flash).catch(chain)).toBe(
    "debian-1 has images of type FLASH, which are not written here",
  );
  expect(readdirSync(folder)).toEqual([]);
});

test("an image of which nothing could be judged is not fetched", async () => {
  const { store } = await fresh();
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response(image) });
  const source = Buffer.concat([
    conf(1, ""),
    Buffer.from(`update_base_url: "http://127.0.0.1:${server.port}"`),
  ]);
  expect(await install(store, source).catch(chain)).toBe(
    "install debian-1: root.img has no hash in the configuration",
  );
});

test("a push that fails takes nothing from a version that could not be loaded", async () => {
  const { folder, store } = await fresh();
  const files = ["conf", "sig", "cert"].map((end) => join(folder, `debian-1.${end}`));
  for (const path of files) writeFileSync(path, path);
  expect(await install(store, conf(1)).catch(chain)).toContain("root.img is missing");
  expect(files.filter(existsSync)).toEqual(files);
});

test("an image that is missing or wrong: refused, and nothing of the push is left", async () => {
  const { folder, store, place } = await fresh();
  const failed = () => install(store, conf(1)).catch(chain);
  expect(await failed()).toBe("install debian-1: root.img is missing, and there is no update_base_url");
  expect(readdirSync(folder)).toEqual([]);
  place(1, Buffer.from("short"));
  expect(await failed()).toBe(
    "install debian-1: root.img has 5 bytes, not 300000, and there is no update_base_url",
  );
  place(1, Buffer.alloc(image.length));
  expect(await failed()).toContain("install debian-1: root.img has sha256 ");
  expect(readdirSync(folder)).toEqual(["debian-1"]);
  place(1);
  await install(store, conf(1));
  expect(store.all().length).toBe(1);
});

test("sha1 where there is nothing else, which is said; never nothing at all", async () => {
  const { store, place, lines } = await fresh();
  place(1);
  place(2);
  await install(store, conf(1, `image_sha1: "${digest("sha1").toUpperCase()}"`));
  expect(lines).toEqual(["debian-1: root.img is known by a SHA-1 alone, which can be forged"]);
  expect(await install(store, conf(2, "")).catch(chain)).toContain(
    "root.img has no hash in the configuration",
  );
});

test("images are fetched from file:///, whole or not at all", async () => {
  const { folder, store } = await fresh();
  const base = join(top, "mirror");
  const from = join(base, `operatingsystems/${process.arch === "arm64" ? "arm" : "x86"}/debian-1`);
  mkdirSync(from, { recursive: true });
  const source = (url = `file://${base}`) =>
    Buffer.concat([conf(1), Buffer.from(`\nupdate_base_url: "${url}"`)]);
  expect(await install(store, source()).catch(chain)).toContain("install debian-1: ENOENT");
  writeFileSync(join(from, "root.img"), Buffer.alloc(image.length));
  expect(await install(store, source()).catch(chain)).toContain("has sha256");
  expect(readdirSync(folder)).toEqual([]);
  const nobody = source("http://127.0.0.1:1");
  expect(await install(store, nobody).catch(chain)).toEndWith("/root.img: nobody listens there");
  expect(readdirSync(folder)).toEqual([]);
  writeFileSync(join(from, "root.img"), image);
  await install(store, source());
  expect(readFileSync(join(folder, "debian-1/root.img"))).toEqual(image);
  expect(readdirSync(join(folder, "debian-1"))).toEqual(["root.img"]);
  const other = Buffer.from(
    conf(1, undefined, "other").toString() + '\nupdate_base_url: "ftp://example.org"',
  );
  expect(await install(store, other).catch(chain)).toContain("http://, https:// or file:// can be fetched");
});

test("an image's hash tree must be the one of its root hash, from whomever it comes", async () => {
  const { folder, store, place } = await fresh();
  const blocks = 20_000; // three levels
  const large = Buffer.alloc(blocks * BLOCK, "blocks of an image ");
  const [made, tree] = [join(top, "large.img"), join(top, "large.hash.img")];
  writeFileSync(made, large);
  writeFileSync(tree, "");
  const salt = new Uint8Array(new ArrayBuffer(32)).fill(7);
  const root = makeTree(made, tree, { uuid: "11111111-2222-4333-8444-555555555555", blocks, salt });
  const good = readFileSync(tree);
  const source = (version: number) =>
    Buffer.from(
      conf(version, `image_sha2_256: "${digest("sha256", large)}" image_verity_sha256: "${root}"`)
        .toString()
        .replace(`image_size: ${image.length}`, `image_size: ${large.length}`),
    );
  const put = (bytes: Uint8Array) => {
    place(1, large);
    writeFileSync(join(folder, "debian-1/root.hash.img"), bytes);
  };
  const flipped = (at: number) => Uint8Array.from(good, (byte, i) => (i === at ? byte ^ 1 : byte));
  for (const [bytes, reason] of [
    [flipped(0), /signature ".*": only "verity/],
    [flipped(72), /it is over 20001 blocks of 4096 bytes, the image has 81920000 bytes/],
    [flipped(88), /its block 0 does not have the hash that it should/],
    [flipped(BLOCK + 5), /its block 0 does not/],
    [flipped(2 * BLOCK + 5), /its block 1 does not/],
    [flipped(100 * BLOCK + 5), /its block 99 does not/],
    [good.subarray(0, 100 * BLOCK), /409600 bytes are too few for it/],
  ] as const) {
    put(bytes);
    expect(await install(store, source(1)).catch(chain)).toMatch(reason);
    expect(store.all()).toEqual([]);
  }
  put(good);
  await install(store, source(1));
  expect(await store.wrong(store.all()[0]!)).toBeUndefined();
}, 20_000);

test("a version that is too large for the disk is refused before anything is written", async () => {
  const { folder, store } = await fresh();
  const huge = Buffer.from(
    conf(1)
      .toString()
      .replace(String(image.length), String(2 ** 44)),
  );
  expect(await store.push(huge).catch(chain)).toContain("debian-1 needs 16777216 MiB");
  expect(readdirSync(folder)).toEqual([]);
});

test("room that is promised to one installation is not given to another", async () => {
  const { folder, store } = await fresh();
  const { bavail, blocks, bsize } = statfsSync(folder);
  const room = bavail * bsize - Math.ceil((blocks * bsize) / 5);
  const base = join(top, "nobody");
  const large = (name: string, size: number) =>
    Buffer.from(
      conf(1, undefined, name).toString().replace(String(image.length), String(size)) +
        `\nupdate_base_url: "file://${base}"`,
    );
  const part = Math.floor(room * 0.6);
  const first = await store.push(large("one", part));
  expect(await store.push(large("two", part)).catch(chain)).toMatch(
    /^two-1 needs \d+ MiB; .* are for what is being installed and a fifth must stay so$/,
  );
  expect(await first.finished.catch(chain)).toContain("ENOENT");
  const second = await store.push(large("two", part));
  expect(await second.finished.catch(chain)).toContain("ENOENT");
});

test("select(): the newest complete version, not older than wanted; exactly the wanted one where signed", async () => {
  const { store, place } = await fresh();
  expect(await store.select(container("")).catch(chain)).toBe("guest_os debian is not installed");
  for (const v of [1, 3]) {
    place(v);
    await install(store, conf(v));
  }
  expect(await install(store, conf(2)).catch(chain)).toBe(
    "debian-2 is older than debian-3, which is installed",
  );
  expect(titleOf(await store.select(container("")))).toBe("debian-3");
  expect(titleOf(await store.select(container("guestos_version: 3")))).toBe("debian-3");
  expect(await store.select(container("guestos_version: 4")).catch(chain)).toBe(
    "guest_os debian: version 4 is wanted, 3 is the newest complete one",
  );
});

test("load(): one bad configuration costs one GuestOS; an incomplete one is listed, not chosen", async () => {
  const { folder, make, place, lines } = await fresh();
  place(1);
  place(5, Buffer.from("x"));
  mkdirSync(join(folder, "odd-1"));
  symlinkSync(join(folder, "debian-1"), join(folder, "debian-9"));
  writeFileSync(join(folder, "debian-1.conf"), conf(1));
  writeFileSync(join(folder, "debian-5.conf"), conf(5));
  writeFileSync(join(folder, "debian-7.conf"), conf(7));
  writeFileSync(join(folder, "debian-9.conf"), conf(9));
  writeFileSync(join(folder, "odd-1.conf"), conf(1));
  const store = await make();
  expect(store.all().map(titleOf)).toEqual(["debian-1", "debian-5"]);
  expect(lines.length).toBe(3);
  expect(titleOf(await store.select(container("")))).toBe("debian-1");
  expect(await store.missing(store.find("debian", 5)!)).toBe("root.img has 1 bytes, not 300000");
});

test("remove() takes all versions, unless somebody uses one; purge() the old ones that nobody uses", async () => {
  const { folder, store, place, used, lines } = await fresh({ "debian-2": ["web", "db"] });
  for (const v of [1, 2, 3]) {
    place(v);
    await install(store, conf(v));
  }
  expect(await store.remove("debian").catch(chain)).toBe("guest_os debian is used by web, db");
  await store.purge();
  expect(store.all().map(titleOf)).toEqual(["debian-2", "debian-3"]);
  expect(lines).toEqual(["debian-1: removed, debian-3 is newer and nobody uses it"]);
  expect(existsSync(join(folder, "debian-1"))).toBeFalse();
  delete used["debian-2"];
  await store.remove("debian");
  expect(readdirSync(folder)).toEqual([]);
  expect(await store.remove("debian").catch(chain)).toBe("guest_os debian is not installed");
});

test("what a power cut has left of an installation or a removal is collected; somebody's own images are not", async () => {
  const { folder, make, place, lines } = await fresh();
  place(1);
  place(2);
  place(3);
  writeFileSync(join(folder, "debian-1.conf"), conf(1));
  writeFileSync(join(folder, ".debian-1.conf.new"), "half of an upd"); // of something else: it is there already
  writeFileSync(join(folder, ".debian-2.conf.new"), "");
  for (const end of ["sig", "cert"])
    for (const version of [2, 3]) writeFileSync(join(folder, `debian-${version}.${end}`), "x");
  mkdirSync(join(folder, "keep"));
  writeFileSync(join(folder, "..conf.new"), "");
  const store = await make();
  expect(store.all().map(titleOf)).toEqual(["debian-1"]);
  expect(readdirSync(folder).toSorted()).toEqual(["debian-1", "debian-1.conf", "debian-3", "keep"]);
  expect(lines).toEqual(["debian-2: removed, it was not whole"]);
  await install(store, conf(3)); // with the images that were put there
});

test("nothing is listed before it is whole", async () => {
  const { folder, store, make } = await fresh();
  const { promise: asked, resolve: ask } = Promise.withResolvers<void>();
  const { promise: go, resolve: answer } = Promise.withResolvers<void>();
  using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    async fetch() {
      ask();
      await go;
      return new Response(image);
    },
  });
  const source = Buffer.concat([
    conf(1),
    Buffer.from(`\nupdate_base_url: "http://127.0.0.1:${server.port}"`),
  ]);
  const { finished } = await store.push(source);
  await asked;
  expect(store.all()).toEqual([]);
  expect(readdirSync(folder).toSorted()).toEqual([".debian-1.conf.new", "debian-1"]);
  answer();
  await finished;
  expect(store.all().map(titleOf)).toEqual(["debian-1"]);
  expect(readdirSync(folder).toSorted()).toEqual(["debian-1", "debian-1.conf"]);
  expect((await make()).all().map(titleOf)).toEqual(["debian-1"]);
}, 20_000);

test("nothing older than what has run is taken, nor chosen, unless device.conf allows it", async () => {
  const { folder, store, make, place } = await fresh();
  for (const v of [1, 2]) place(v);
  await install(store, conf(2));
  await store.ran("debian", 2);
  await store.ran("debian", 1);
  await store.remove("debian");
  place(1);
  const older = "debian-1 is older than version 2, which has run here (device.conf: allow_downgrade)";
  expect(await store.push(conf(1)).catch(chain)).toBe(older);
  writeFileSync(join(folder, "debian-1.conf"), conf(1)); // by somebody who may write there
  const again = await make();
  expect(await again.select(container("")).catch(chain)).toBe(older);
  expect(readFileSync(join(folder, "debian.ran"), "utf8")).toBe("2\n");
  const lenient = await fresh(
    {},
    readDevice(Buffer.from("hostedmode: true signed_configs: false allow_downgrade: true")).config,
  );
  lenient.place(1);
  await lenient.store.ran("debian", 2);
  await install(lenient.store, conf(1));
  expect(titleOf(await lenient.store.select(container("")))).toBe("debian-1");
});

test("what is locally signed never takes the place of what is signed; the reverse is welcome", async () => {
  const { store, place } = await fresh();
  const local = (version: number) => Buffer.concat([conf(version), Buffer.from("\n# local\n")]);
  for (const v of [1, 2, 3, 4]) place(v);
  await install(store, local(1));
  await install(store, local(2));
  await install(store, conf(3));
  for (const v of [3, 4])
    expect(await install(store, local(v)).catch(chain)).toBe(
      `debian-${v} is locally signed, and does not take the place of debian-3, which is signed`,
    );
  expect(titleOf(await store.select(container("")))).toBe("debian-3");
  await store.remove("debian");
  place(4);
  await install(store, local(4));
});

test("a GuestOS for another kind of machine is refused, pushed or found", async () => {
  const { folder, store, make, place, lines } = await fresh();
  place(1);
  const there = process.arch === "arm64" ? "x86" : "arm";
  const here = process.arch === "arm64" ? "arm" : "x86";
  const foreign = Buffer.from(conf(1).toString().replace('hardware: "x86"', `hardware: "${there}"`));
  const reason = `debian-1 is for ${there}, and this machine is ${here}`;
  expect(await store.push(foreign).catch(chain)).toBe(reason);
  writeFileSync(join(folder, "debian-1.conf"), foreign);
  expect((await make()).all()).toEqual([]);
  expect(lines.at(-1)).toEndWith(`not loaded: ${reason}`);
});

test("file:// without a slash: from the root of the client's container, which may not lead out of it nor keep us waiting", async () => {
  const { store } = await fresh();
  const root = join(top, `root-${count++}`);
  const at = (path: string) =>
    join(root, "srv/operatingsystems", process.arch === "arm64" ? "arm" : "x86", path);
  const clientRoot = () => new Fd(now(openat(AT_FDCWD, root, O_PATH | O_DIRECTORY)));
  const push = async (version: number, from: (() => Fd) | undefined = clientRoot) =>
    store
      .push(
        Buffer.concat([conf(version), Buffer.from('\nupdate_base_url: "file://srv"')]),
        undefined,
        undefined,
        from,
      )
      .then(({ finished }) => finished)
      .then(() => "installed", chain);
  for (const v of [1, 2, 3, 4]) mkdirSync(at(`debian-${v}`), { recursive: true });
  writeFileSync(at("debian-1/root.img"), image);
  expect(await push(1)).toBe("installed");
  expect(await push(2)).toMatch(/in the client's container: child: openat2.*ENOENT/);
  symlinkSync(join(root, "../outside"), at("debian-2/root.img"));
  writeFileSync(join(root, "../outside"), image);
  expect(await push(2)).toMatch(/in the client's container: child: openat2.*ENOENT/);
  Bun.spawnSync(["mkfifo", at("debian-3/root.img")]);
  expect(await push(3)).toEndWith("in the client's container: not a regular file");
  writeFileSync(at("debian-4/root.img"), Buffer.alloc(image.length));
  expect(await push(4)).toContain("has sha256");
  const none = () => {
    throw new Error("the client is in no container");
  };
  expect(await push(4, none)).toBe("install debian-4: the client is in no container");
}, 20_000);

test("core0's own is not removed", async () => {
  const core = await fresh({}, readDevice(Buffer.from('c0os: "debian" signed_configs: false')).config);
  core.place(1);
  await install(core.store, conf(1));
  expect(await core.store.remove("debian").catch(chain)).toBe("guest_os debian is core0's");
});

test("what is not signed is refused, whatever device.conf says of containers, and says what to do", async () => {
  for (const text of ["", "signed_configs: false"]) {
    const trust = new Trust(judge(), readDevice(Buffer.from(text)).config, top, () => false);
    expect(await trust.guestOs(conf(1), undefined).catch(chain)).toBe(
      "it has no signature: sign it with `cml guestos sign`, by a key whose root certificate is in tokens/ (control ca_register)",
    );
  }
});
