// Unmodified Debian on the machine's own kernel, as it is shipped.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { disk } from "../../initramfs/image.ts";
import { CORE0, seed } from "../../initramfs/seed.ts";
import { Vm } from "./qemu.ts";

const folder = mkdtempSync(join(tmpdir(), "debian-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** What is done in the container, and the last line it has to say. */
const DEEDS: readonly (readonly [script: string, says: string | RegExp])[] = [
  ["systemctl is-system-running --wait", "running"],
  // Directories of the image are replaced, moved, and filled again by dpkg.
  ["rm -r /etc/apt && mkdir /etc/apt && ls -A /etc/apt && echo empty", "empty"],
  [
    "mv /usr/share/doc /usr/share/doc2 && mkdir /usr/share/doc && test -d /usr/share/doc2/dpkg && echo moved",
    "moved",
  ],
  [
    `mkdir -p /tmp/p/DEBIAN /tmp/p/opt/tiny /tmp/p/etc/apt && echo 1 > /tmp/p/opt/tiny/file &&
     printf 'Package: tiny\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: tiny\\n' > /tmp/p/DEBIAN/control &&
     dpkg-deb --root-owner-group -b /tmp/p /tmp/tiny.deb && dpkg -i /tmp/tiny.deb && cat /opt/tiny/file && dpkg -r tiny &&
     test ! -e /opt/tiny && apt-get install -y /tmp/tiny.deb && cat /opt/tiny/file && apt-get remove -y tiny &&
     test ! -e /opt/tiny && echo gone`,
    "gone",
  ],
  // The marks of the overlay are out of reach: setxattr(2) is call 188.
  [
    `perl -e '($p, $n, $v) = ("/etc", "trusted.overlay.opaque", "y"); print syscall(188, $p, $n, $v, 1, 0), " $!\n"'`,
    "-1 Operation not permitted",
  ],
  ["apt-get --version | head -1", /^apt 2/],
  ["useradd -m user && su - user -c 'id -un'", "user"],
  ["systemd-run --quiet --wait true && echo ran", "ran"],
  ["unshare -Ur id -u", "0"],
  // As rootless engines make their containers, by a user who is not root.
  [
    `cat > /tmp/inner << 'END'
       mount -t tmpfs t /srv && cd /srv && mkdir l u m && touch l/x u/y
       mount -t overlay -o lowerdir=l:u,userxattr o m && hostname inner && echo $(ls m) $$ $(hostname)
END
     su user -c 'unshare -Urmpfniu --mount-proc sh /tmp/inner'`,
    "x y 1 inner",
  ],
  ["hostnamectl --static && hostnamectl hostname new && hostname", "new"],
  ["journalctl -b --no-pager -n 1 -o cat | grep -c .", "1"],
  ["mount -t tmpfs x /mnt && touch /mnt/x && umount /mnt && echo mounted", "mounted"],
  [
    "mount -o remount,bind,dev / 2>&1; mount -o remount,size=99% / 2>&1; grep -c ' / / rw,nodev' /proc/self/mountinfo",
    "1",
  ],
];

test("Debian, unmodified: directories are replaced, packages come and go, its tools work", async () => {
  const data = join(folder, "data");
  seed(join(data, "cml"), {
    guests: ["core0-1", "debian-1"],
    containers: [CORE0, { name: "debian", guest_os: "debian" }],
  });
  const file = join(folder, "disk.img");
  disk(file, 512, data);
  await using vm = Vm.boot({ memory: 768, disks: [file] });
  await vm.sees("core0: BOOTING → RUNNING");
  const control = (...argv: string[]) => vm.ask("run", { argv: ["/usr/sbin/control", ...argv] });
  expect(await control("start", "debian", "--wait")).toMatchObject({ status: 0 });
  for (const [script, says] of DEEDS) {
    const { stdout, stderr } = await control("run", "debian", "--", "sh", "-c", script);
    const last = stdout.trim().split("\n").at(-1)!.trim();
    const told = { script, last, rest: `${stdout}${stderr}` };
    if (typeof says === "string") expect(told).toEqual({ ...told, last: says });
    else expect(told.last).toMatch(says);
  }
  const taken = /debian: .*tmpfs takes no user.* xattrs here.*/.exec(vm.said)?.[0];
  console.log(taken);
  expect(vm.said).not.toContain("failed to set xattr");
}, 600_000);
