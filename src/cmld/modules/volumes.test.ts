import { expect, test } from "bun:test";
import { GuestOSMount } from "../../../proto/gen/proto.js";
import { Fd } from "../../sys/fd.ts";
import { show } from "../../sys/op.ts";
import type { Start } from "../module.ts";
import { type Plan, tree, volumeFile, volumeSize } from "./volumes.ts";

const T = GuestOSMount.Type;
const s = { host: { run: "/run/cml" }, config: { tmpfs_size: 0 } } as unknown as Start;
type Volume = Plan["volumes"][number];
let next: number;
const fd = () => new Fd(next++);

function volume(
  mount_type: number,
  mount_point: string,
  rest: Partial<Volume> = {},
  fs_type = "erofs",
): Volume {
  const mount = { mount_type, mount_point, fs_type, image_file: "i", mount_data: "" } as Volume["mount"];
  const tmpfs = fs_type === "tmpfs";
  return { mount, ...(!tmpfs && { fd: fd() }), ...rest };
}
const root = () => volume(T.SHARED, "/");
/** What the child does, short. `from` and `to`: words in the first and the last line of interest. */
function steps(volumes: Volume[], plan: Partial<Plan> = {}): string[] {
  const dev = new Fd(99);
  return tree(s, { volumes, dev, writableRoot: false, hasCservice: false, ...plan }).map(show);
}
/** Only what `volumes` adds to a container that has nothing but its root, in its place. */
function added(make: () => Volume[]): string {
  next = 10;
  const plain = steps([root()]);
  next = 10;
  const all = steps([root(), ...make()]);
  const rest: string[] = [];
  let at = 0;
  for (const line of all)
    if (line === plain[at]) at++;
    else rest.push(line);
  expect(at).toBe(plain.length); // it changes nothing else
  return `\n${rest.join("\n")}`;
}
const slots = () => ({ slots: [fd(), fd(), fd()] as const });

test("the way from the host's tree to the container's", () => {
  next = 10;
  const lines = steps([root()]);
  const at = (start: string) => lines.findIndex((l) => l.startsWith(start));
  // In a mount namespace that tells nobody, on a staging tmpfs ...
  expect(lines.slice(0, 6)).toEqual([
    'mount("none", "/", "none", 278528, 0)',
    expect.stringMatching(/^openat\(-100, "\/", \d+, 0\) -> r0$/),
    'mount("tmpfs", "/run/cml/root", "tmpfs", 6, "mode=0755,size=1m,nr_inodes=1k")',
    'chdir("/run/cml/root")',
    'mkdirat(-100, "0", 493)',
    'move_mount(10, "", -100, "0", 4)',
  ]);
  // ... no path is resolved between the staging tree and the new root but in it ...
  expect(lines.slice(at("fchdir(r6)"), at("fchdir(r6)") + 2)).toEqual(["fchdir(r6)", 'chroot(".")']);
  const inside = lines.slice(at("chroot") + 1, at("fchdir(r0)"));
  expect(inside.filter((l) => /^(mount|open|openat|chdir)\(/.test(l))).toEqual([]);
  // ... and at the end the old root is gone.
  expect(lines.slice(at("fchdir(r0)"))).toEqual([
    "fchdir(r0)",
    'chroot(".")',
    "fchdir(r6)",
    'pivot_root(".", ".")',
    'umount2(".", 2)',
    "close(r0)",
    "close(r6)",
    'chdir("/")',
  ]);
});

test("every target is opened with openat2, on which the mount is put by descriptor", () => {
  next = 10;
  const lines = steps([root(), volume(T.EMPTY, "/data")]);
  for (const [i, line] of lines.entries())
    if (line.includes("move_mount") && !line.includes("-100"))
      expect(lines[i - 1]).toMatch(/^openat2\(.*-> r3$/);
});

test("EMPTY, of an image and of memory", () => {
  expect(added(() => [volume(T.EMPTY, "/srv/data", {}, "ext4")])).toBe(`
openat2(-100, "/", {flags=2686976, mode=0, resolve=18}, 24) -> r5
mkdirat(r5, "srv", 493)
close(r5)
openat2(-100, "/srv", {flags=2686976, mode=0, resolve=18}, 24) -> r5
mkdirat(r5, "data", 493)
close(r5)
openat2(-100, "/srv/data", {flags=2621440, mode=0, resolve=18}, 24) -> r3
move_mount(11, "", r3, "", 68)
close(r3)`);
  expect(added(() => [volume(T.EMPTY, "/tmp", {}, "tmpfs")])).toBe(`
fsopen("tmpfs", 1) -> r1
fsconfig(r1, 1, "mode", "0755", 0)
fsconfig(r1, 1, "size", "25%", 0)
fsconfig(r1, 1, "nr_inodes", "128k", 0)
fsconfig(r1, 6, 0, 0, 0)
fsmount(r1, 1, 6) -> r2
close(r1)
openat2(-100, "/", {flags=2686976, mode=0, resolve=18}, 24) -> r5
mkdirat(r5, "tmp", 493)
close(r5)
openat2(-100, "/tmp", {flags=2621440, mode=0, resolve=18}, 24) -> r3
move_mount(r2, "", r3, "", 68)
close(r3)
close(r2)`);
});

test("DEVICE and DEVICE_RW are attached as they were opened", () => {
  for (const type of [T.DEVICE, T.DEVICE_RW])
    expect(added(() => [volume(type, "/dev1", {}, "ext4")])).toContain(`
move_mount(11, "", r3, "", 68)`);
});

test("BIND_FILE makes a file to be mounted on", () => {
  for (const type of [T.BIND_FILE, T.BIND_FILE_RW])
    expect(added(() => [volume(type, "/note")])).toBe(`
openat2(-100, "/", {flags=2686976, mode=0, resolve=18}, 24) -> r5
mknodat(r5, "note", 33261, 0)
close(r5)
openat2(-100, "/note", {flags=2621440, mode=0, resolve=18}, 24) -> r3
move_mount(11, "", r3, "", 68)
close(r3)`);
});

const overlays = (text: string) =>
  text.split("\n").filter((l) => /overlay|dir"/.test(l) || l.includes('"lowerdir"'));

test("overlays on a directory: layers by descriptor, the directory itself below OVERLAY_*", () => {
  expect(overlays(added(() => [volume(T.SHARED_RW, "/etc", slots())]))).toEqual([
    'fsopen("overlay", 1) -> r1',
    'fsconfig(r1, 1, "lowerdir", "/proc/self/fd/11", 0)',
    'fsconfig(r1, 1, "upperdir", "/proc/self/fd/12", 0)',
    'fsconfig(r1, 1, "workdir", "/proc/self/fd/13", 0)',
  ]);
  const rw = added(() => [volume(T.OVERLAY_RW, "/etc", slots(), "ext4")]);
  expect(rw).toContain("dup3(r3, 11, 0)"); // the target is the lower layer
  expect(overlays(rw)).toContain('fsconfig(r1, 1, "lowerdir", "/proc/self/fd/11", 0)');
  const ro = added(() => [volume(T.OVERLAY_RO, "/etc", slots())]);
  expect(overlays(ro)).toEqual([
    'fsopen("overlay", 1) -> r1',
    'fsconfig(r1, 1, "lowerdir", "/proc/self/fd/12:/proc/self/fd/11", 0)',
  ]);
  expect(ro).toContain("fsmount(r1, 1, 5) -> r2"); // read-only
});

test("overlays on /: layers on the staging tree, checked to be directories", () => {
  const on = (...volumes: Volume[]) => steps(volumes).filter((l) => l.includes('"overlay"'));
  const flags = 4; // nodev
  next = 10;
  expect(on(volume(T.SHARED_RW, "/"))).toEqual([
    `mount("overlay", "0", "overlay", ${flags}, "lowerdir=0.layer,upperdir=0.top/upper,workdir=0.top/work,userxattr")`,
  ]);
  expect(on(root(), volume(T.OVERLAY_RW, "/", {}, "ext4"))).toEqual([
    `mount("overlay", "1", "overlay", ${flags}, "lowerdir=0,upperdir=1.layer/upper,workdir=1.layer/work,userxattr")`,
  ]);
  const lines = steps([root(), volume(T.OVERLAY_RO, "/")]);
  const at = lines.findIndex((l) => l.includes('"overlay"'));
  expect(lines[at]).toBe('mount("overlay", "1", "overlay", 5, "lowerdir=1.layer/upper:0,userxattr")');
  expect(lines.slice(at - 2, at)).toEqual([
    'openat2(-100, "1.layer/upper", {flags=2686976, mode=0, resolve=4}, 24) -> r5',
    "close(r5)",
  ]);
});

test("a root that was put together by the parent is attached as it is", () => {
  next = 10;
  expect(steps([volume(T.SHARED_RW, "/", { shifted: true, whole: true })]).slice(4, 7)).toEqual([
    'mkdirat(-100, "0", 493)',
    'move_mount(10, "", -100, "0", 4)',
    expect.stringContaining('openat(-100, "0"'),
  ]);
});

test("what makes no sense is refused", () => {
  next = 10;
  expect(() => steps([volume(T.EMPTY, "/data")])).toThrow("the GuestOS mounts nothing on /");
  expect(() => steps([volume(T.OVERLAY_RW, "/", {}, "ext4")])).toThrow(
    "i: an overlay on / needs a root before it",
  );
});

test("a volume's size and file: the container's word, else the GuestOS', never too small", () => {
  const m = { image_file: "data", def_size: 512 } as Volume["mount"];
  const says = (image_size: number, image_file = "") => ({
    image_sizes: [{ image_name: "data", image_size, image_file }],
  });
  expect([volumeSize({ image_sizes: [] }, m), volumeFile({ image_sizes: [] }, m)]).toEqual([
    512,
    "data.plain.img",
  ]);
  expect([volumeSize(says(64), m), volumeFile(says(64), m)]).toEqual([64, "data.plain.img"]);
  expect([volumeSize(says(1), m), volumeSize(says(0, "other"), m)]).toEqual([10, 512]);
  expect(volumeFile(says(0, "other"), m)).toBe("other.plain.img");
});
