// Images of a GuestOS are what its configuration says, on every way to a mount: rows 21 and 28 of SPECIFICATION.md. Here the
// whole file is hashed; what dm-verity does instead is in test/machine/verity.test.ts.
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { forgetImages } from "../../src/cmld/images/mounted.ts";
import { available } from "../../src/cmld/images/verity.ts";
import type { Host } from "../../src/cmld/module.ts";
import { AT_FDCWD, O_RDONLY, openat, openat2, RESOLVE_IN_ROOT } from "../../src/sys/calls.ts";
import { Fd } from "../../src/sys/fd.ts";
import { attachLoop } from "../../src/sys/loop.ts";
import { mountAsFd } from "../../src/sys/mounts.ts";
import { now } from "../../src/sys/now.ts";
import { busyboxRoot, hashHere, type Mounts, Type, World } from "./world.ts";

let world: World;
/** How often an image was hashed. */
let hashed = 0;
let during: () => void = () => {};

const answer = (hash: Host["hash"]): void => {
  (world.host as { hash: Host["hash"] }).hash = async (...asked) => {
    hashed++;
    const is = await hash(...asked);
    during();
    return is;
  };
};

/** An image whose /etc/image says `mark`, in a block of its own. */
const made = (name: string, mark: string): void =>
  world.image(name, (root) => {
    busyboxRoot(root);
    mkdirSync(join(root, "upper/etc"), { recursive: true }); // as the second image of an OVERLAY_RO has it
    for (const etc of ["etc", "upper/etc"]) writeFileSync(join(root, etc, "image"), mark.padEnd(8192, "\n"));
  });
const path = (name: string): string => join(world.osDir, `${name}.img`);
const sha = (name: string, algorithm: "sha1" | "sha256"): string =>
  new Bun.CryptoHasher(algorithm).update(readFileSync(path(name))).digest("hex");

beforeAll(() => {
  world = World.open();
  made("good", "good");
  made("evil", "evil");
});
afterEach(() => {
  answer(hashHere);
  during = () => {};
  forgetImages(world.directory);
});
afterAll(async () => await world[Symbol.asyncDispose]());

/** Every way in which an image comes into a container. */
const WAYS: Readonly<Record<string, (image: Mounts[number]) => Mounts>> = {
  SHARED: (image) => [{ ...image, mount_point: "/" }],
  SHARED_RW: (image) => [{ ...image, mount_point: "/", mount_type: Type.SHARED_RW }],
  OVERLAY_RO: (image) => [{ mount_point: "/" }, { ...image, mount_point: "/", mount_type: Type.OVERLAY_RO }],
  "a SHARED_RW that is not the root": (image) => [
    { mount_point: "/" },
    { ...image, mount_point: "/mnt", mount_type: Type.SHARED_RW },
  ],
};
const cat = "cat /etc/image; cat /mnt/etc/image 2>/dev/null; true";

test.each(Object.keys(WAYS))("row 21: an image with other bytes is not mounted as %s", async (way) => {
  copyFileSync(path("good"), path("victim"));
  const mounts = WAYS[way]!({
    mount_point: "",
    image_file: "victim",
    image_size: statSync(path("victim")).size,
    image_sha2_256: sha("victim", "sha256"),
  });
  const bytes = readFileSync(path("victim"));
  for (let at = bytes.indexOf("good\n\n"); at >= 0; at = bytes.indexOf("good\n\n", at))
    bytes.write("evil", at);
  writeFileSync(path("victim"), bytes);
  const wanted = mounts.find((m) => m.image_file === "victim")!.image_sha2_256!;
  expect(await world.failure({ mounts })).toEndWith(
    `victim.img has sha256 ${sha("victim", "sha256")}, not ${wanted}`,
  );
  // Without the check it is: whoever is told that the bytes are right mounts them.
  answer(async (file, name, algorithm) =>
    name === path("victim") ? wanted : hashHere(file, name, algorithm),
  );
  forgetImages(world.directory);
  expect((await world.sh(cat, { mounts })).said).toContain("evil");
});

test("row 21: size and hash are demanded; SHA-1 counts where there is nothing better, and is named", async () => {
  const image = { mount_point: "/", image_file: "good" };
  const size = statSync(path("good")).size;
  expect(await world.failure({ mounts: [{ ...image, image_size: size + 1 }] })).toEndWith(
    `good.img has ${size} bytes, not ${size + 1}`,
  );
  expect(await world.failure({ mounts: [{ ...image, image_sha2_256: "" }] })).toEndWith(
    "good.img has no hash in the configuration",
  );
  const sha1 = { ...image, image_sha2_256: "", image_sha1: sha("good", "sha1").toUpperCase() };
  expect((await world.sh(cat, { mounts: [sha1] })).said).toBe("good");
  expect(world.log.join("\n")).toContain("test-1-good: its configuration has nothing better than SHA-1");
  forgetImages(world.directory);
  const wrong = { ...sha1, image_sha1: "0".repeat(40) };
  expect(await world.failure({ mounts: [wrong] })).toContain("good.img has sha1 ");
  const both = { ...image, image_sha2_256: "0".repeat(64), image_sha1: sha("good", "sha1") };
  expect(await world.failure({ mounts: [both] })).toContain("good.img has sha256 ");
});

test("row 28: what is mounted is what was hashed, whatever the path leads to meanwhile", async () => {
  copyFileSync(path("good"), path("victim"));
  const [mine, theirs, away] = ["os", "evil", "away"].map((name) => join(world.directory, name)) as [
    string,
    string,
    string,
  ];
  mkdirSync(theirs);
  copyFileSync(path("evil"), join(theirs, "victim.img"));
  const mounts = [{ mount_point: "/", image_file: "victim" }];
  during = () => {
    renameSync(mine, away);
    renameSync(theirs, mine);
  };
  expect((await world.sh(cat, { mounts })).said).toBe("good");
  // Whoever opens the path again mounts the other one.
  {
    using again = new Fd(now(openat(AT_FDCWD, path("victim"), O_RDONLY)));
    using loop = attachLoop(again, true, path("victim")).fd;
    using mount = mountAsFd("erofs", `/proc/self/fd/${loop.n}`, "ro", 0);
    using file = new Fd(now(openat2(mount.n, "/etc/image", O_RDONLY, RESOLVE_IN_ROOT)));
    expect(readFileSync(`/proc/self/fd/${file.n}`, "utf8")).toStartWith("evil");
  }
  renameSync(mine, theirs);
  renameSync(away, mine);
  // And what is written into the same file is noticed.
  copyFileSync(path("good"), path("victim"));
  during = () => copyFileSync(path("evil"), path("victim"));
  forgetImages(world.directory);
  expect(await world.failure({ mounts })).toEndWith("victim.img has changed while it was hashed");
});

test("an image is hashed once while it does not change, and by nobody who waits for it twice", async () => {
  made("fresh", "fresh");
  const recipe = () => ({ mounts: [{ mount_point: "/", image_file: "fresh" }] });
  hashed = 0;
  const said = await Promise.all(
    [0, 1, 2].map((i) => world.sh(cat, { ...recipe(), uidStart: 1_500_000_000 + i * 65536 })),
  );
  expect(said.map((s) => s.said)).toEqual(["fresh", "fresh", "fresh"]);
  await world.sh(cat, recipe());
  expect(hashed).toBe(1);
  made("fresh", "newer");
  expect((await world.sh(cat, recipe())).said).toBe("newer");
  expect(hashed).toBe(2);
});

test("a root hash without a device-mapper: the whole image is hashed, and the log says so once", async () => {
  const verity = { mount_point: "/", image_file: "good", image_verity_sha256: "0".repeat(64) };
  if (await available()) {
    // There is one: then the hash tree is needed, and here is none.
    expect(await world.failure({ mounts: [verity] })).toContain("good.hash.img");
    return;
  }
  const lines = () => world.log.filter((line) => line.includes("this kernel has no device-mapper")).length;
  expect((await world.sh(cat, { mounts: [verity] })).said).toBe("good");
  expect((await world.sh(cat, { mounts: [verity] })).said).toBe("good");
  expect(lines()).toBe(1);
  forgetImages(world.directory);
  const wrong = { ...verity, image_sha2_256: "0".repeat(64) };
  expect(await world.failure({ mounts: [wrong] })).toContain("good.img has sha256 ");
});
