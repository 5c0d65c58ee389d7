// What the kernel offers: system calls, /proc and /sys, the clock, capabilities, control groups.
import { type Module, Slot } from "../../../src/cmld/module.ts";
import { AT_FDCWD, moveMount, OPEN_TREE_CLONE, openTree } from "../../../src/sys/calls.ts";
import { where } from "../../../src/sys/cgroup.ts";
import { Fd } from "../../../src/sys/fd.ts";
import { mem, Struct } from "../../../src/sys/mem.ts";
import { now } from "../../../src/sys/now.ts";
import { NR } from "../../../src/sys/numbers.ts";
import type { Call, Data, Op } from "../../../src/sys/op.ts";
import { type Attack, BARE, lacking } from "../attack.ts";

/** A call with arguments that do no harm to whoever may make it: it must be answered with this errno. */
const refused = (name: Call, args: string, errno: string, what: string): Attack => ({
  row: 34,
  name: `${name}: ${what}`,
  attempt: `got=$(attack call ${NR[name][0]} ${args}); [ "$got" = ${errno} ] && held $got; won "$got"`,
  proof: BARE,
});

/** linux/prctl.h, linux/capability.h: what a careless daemon would hand on. */
const inheriting = (): readonly Op[] => {
  const header: Data = { data: new Struct(8).u32(0x20080522).u32(0).bytes, text: "{version=3, pid=0}" };
  const all = new Struct(24);
  for (let half = 0; half < 2; half++) all.u32(0xffffffff).u32(0xffffffff).u32(0xffffffff);
  const sets: Data = { data: all.bytes, text: "{effective=permitted=inheritable=all}" };
  const [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN] = [47, 2, 21];
  return [
    { call: "capset", args: [header, sets] },
    { call: "prctl", args: [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0] },
  ];
};

const tree = new Slot<Fd>();
/** The host's control groups as a bind mount: what a naive runtime gives. */
const boundTree: Module = {
  name: "bound tree",
  prepare(s) {
    tree.set(s, s.owned.use(new Fd(now(openTree(AT_FDCWD, where().mount, OPEN_TREE_CLONE)))));
  },
  child: (s) => [moveMount(tree.need(s).n, AT_FDCWD, "sys/fs/cgroup")],
};

const MASKED = ["interrupts", "kallsyms", "key-users"];

export const kernel: readonly Attack[] = [
  {
    row: 6,
    name: "capabilities that a daemon could inherit do not reach the container's programs",
    attempt: `
      set -- $(grep -E '^Cap(Inh|Amb):' /proc/self/status)
      [ "$2$4" = 00000000000000000000000000000000 ] && held "$*"; won "$*"`,
    proof: {
      ...lacking("caps", "seccomp"),
      program: (ops) => [...ops.slice(0, -3), ...inheriting(), ...ops.slice(-3)],
    },
  },
  {
    row: 7,
    name: "a version 1 control group's release_agent",
    attempt: `
      grep -q ' - cgroup ' /proc/self/mountinfo && won "version 1 is mounted"
      for c in $(awk '!/^#/ { print $1 }' /proc/cgroups) none,name=x; do
        mkdir -p /tmp/$c; mount -t cgroup -o $c cgroup /tmp/$c 2>/dev/null || continue
        echo /tmp/x 2>/dev/null > /tmp/$c/release_agent && won $c
        echo 1 2>/dev/null > /tmp/$c/notify_on_release && won $c
        mkdir /tmp/$c/mine 2>/dev/null && won $c
      done
      grep -qx '0::/.*' /proc/self/cgroup && held "no group of version 1 can be written"; won "no group of version 2"`,
    proof: "the kernel itself refuses since Linux 5.17; there is no part of ours that could be left out",
  },
  {
    row: 10,
    name: "the host's tree of control groups",
    attempt: `
      grep -qxE '0::/(cmld-injected)?' /proc/self/cgroup || won "$(grep ^0 /proc/self/cgroup)"
      mkdir -p /tmp/again; mount -t cgroup2 none /tmp/again
      for at in /sys/fs/cgroup /tmp/again; do
        [ -e $at/cgroup.freeze ] || won "$at: the root of all groups"
        (echo 5 > $at/cgroup.max.depth) 2>/dev/null && won "$at: limits"
      done
      held "its own groups alone"`,
    proof: { modules: (all) => all.flatMap((m) => (m.name === "masks" ? [m, boundTree] : [m])) },
  },
  refused("bpf", "0 @ 128", "EPERM", "programs in the kernel"),
  refused("add_key", "=user =x =y 1 -3", "EPERM", "keys"),
  refused("request_key", "=user =x 0 -3", "EPERM", "keys of others"),
  refused("keyctl", "10 -3 =user =x 0", "EPERM", "finding keys"),
  refused("userfaultfd", "0", "ENOSYS", "page faults"),
  refused("kexec_load", "0 0 0 0", "EPERM", "another kernel"),
  refused("io_uring_setup", "1 0", "ENOSYS", "rings"),
  refused("open_by_handle_at", "-100 @ 0", "EPERM", "files by handle"),
  refused("fsopen", "=proc 0", "ENOSYS", "the new mount API"),
  refused("open_tree", "-100 =/ 0", "ENOSYS", "the new mount API, of what is mounted"),
  refused("perf_event_open", "0 0 0 0 0", "EPERM", "counters"),
  refused("finit_module", "-1 =x 0", "EPERM", "modules"),
  refused("fanotify_init", "0 0", "EPERM", "watching file systems"),
  refused("personality", "0x40000", "EPERM", "an address space without its protections"),
  refused("ioctl", "-1 0x5412 =x", "EPERM", "typing into a terminal (TIOCSTI)"),
  refused("acct", "0", "EPERM", "process accounting"),
  refused("quotactl", "0 0 0 0", "EPERM", "quotas"),
  refused("iopl", "0", "EPERM", "ports"),
  refused("socket", "40 1 0", "EAFNOSUPPORT", "VSOCK, which leads to a virtual machine's host"),
  {
    row: 34,
    name: "a second user namespace takes no mask away",
    attempt: `
      said=$(unshare -U -r -m sh -c '
        for f in ${MASKED.join(" ")}; do umount /proc/$f; umount -l /proc/$f; done
        mount -o remount,rw /proc/sys
        cat ${MASKED.map((f) => `/proc/${f}`).join(" ")} | grep -q . && echo seen
        (echo x > /proc/sys/kernel/printk_ratelimit) && echo written' 2>/dev/null)
      [ "$said" = "" ] && held "nothing more than outside it"; won $said`,
    proof: lacking("masks"),
  },
  {
    row: 34,
    name: "a second user namespace makes no device, mounts no block device, joins no namespace of the host",
    attempt: `
      file=$(mktemp -u)
      said=$(unshare -U -r -m -p -f sh -c "
        mknod $file c 1 1 && echo mknod
        mount -t ext4 /dev/loop0 /mnt && echo mount
        nsenter -t 1 -n true && echo nsenter" 2>/dev/null)
      mknod $file c 1 1 2>/dev/null && rm $file && won "a device"
      [ "$said" = "" ] && held "nothing more than outside it"; won $said`,
    proof: BARE,
  },
  {
    row: 35,
    name: "files of /proc that speak of the host, or act on it",
    attempt: `
      for f in ${MASKED.join(" ")} keys kcore kmsg timer_list sched_debug sysrq-trigger; do
        [ ! -e /proc/$f ] || [ -c /proc/$f ] || won $f
        [ "$(head -c 1 /proc/$f 2>/dev/null)" = "" ] || won $f
      done; held "all are /dev/null"`,
    proof: lacking("masks"),
  },
  {
    row: 35,
    name: "the firmware's tables",
    attempt: `n=$(ls /sys/firmware | wc -l); [ $n = 0 ] && held empty; won "$n entries"`,
    proof: lacking("masks"),
  },
  {
    row: 35,
    name: "the kernel's log",
    attempt: `got=$(attack call ${NR.syslog[0]} 3 @ 4096); [ $got = EPERM ] && held $got; won "$got"`,
    proof: BARE,
  },
  {
    row: 35,
    name: "processes of the host and of other containers",
    attempt: `
      for p in /proc/[0-9]*; do
        [ "$(readlink $p/ns/pid)" = "$(readlink /proc/self/ns/pid)" ] || [ ! -e $p ] || won $p
      done
      n=$(ls -d /proc/[0-9]* | wc -l); [ $n -lt 20 ] && held "$n of its own"; won "$n processes"`,
    proof: BARE,
  },
  {
    row: 35,
    name: "keys in the session keyring of whoever started it",
    attempt: `
      id=$(attack call ${NR.keyctl[0]} 10 -3 =user =cml-test-secret 0); [ "$id" = ok ] && won found
      grep -q . /proc/keys && won "/proc/keys"; held "$id"`,
    proof: {
      modules: (all) => {
        const KEY_SPEC_SESSION_KEYRING = -3; // linux/keyctl.h
        const key: Op = {
          call: "add_key",
          args: ["user", "cml-test-secret", mem(8), 8, KEY_SPEC_SESSION_KEYRING],
        };
        const left = all.filter((m) => !["caps", "seccomp", "masks"].includes(m.name));
        return [{ name: "secret", child: () => [key] }, ...left];
      },
    },
  },
  {
    row: 40,
    name: "the host's clock: settimeofday",
    attempt: `got=$(attack call ${NR.settimeofday[0]} 0 @); [ "$got" = EPERM ] && held $got; won "$got"`,
    proof: BARE, // of the time zone: 0
  },
  {
    row: 40,
    name: "the host's clock: clock_settime",
    attempt: `got=$(attack call ${NR.clock_settime[0]} 0 0); [ "$got" = EPERM ] && held $got; won "$got"`,
    proof: BARE,
  },
  {
    row: 40,
    name: "the host's clock: adjtimex",
    attempt: "attack tick",
    proof: BARE,
  },
];
