// Documents that are printed from the code's own tables: `bun test/documents.ts` writes them, a test compares.
import { CAPABILITIES, KEPT } from "../src/cmld/modules/caps.ts";
import { MASKED_DIRECTORIES, MASKED_FILES, READ_ONLY } from "../src/cmld/modules/masks.ts";
import { ABSENT, ALLOWED, LEFT, RULES } from "../src/cmld/modules/seccomp.ts";
import { NR } from "../src/sys/numbers.ts";

const code = (names: readonly string[]): string => names.map((n) => `\`${n}\``).join(" ");

function seccomp(): string {
  const named = new Set(
    [...ALLOWED, ...ABSENT, ...RULES, ...LEFT].flatMap(({ calls }) => calls as readonly string[]),
  );
  const refused = Object.keys(NR).filter((n) => !named.has(n));
  return `# System calls of a container

Printed from \`src/cmld/modules/seccomp.ts\` by \`test/documents.ts\`; a test compares. The filter is the same for a
container's init and for \`control run\`. A process that makes calls by another architecture's numbers (32-bit programs
included) is killed with SIGSYS; x32's numbers are ENOSYS.

## Allowed

${ALLOWED.map(({ title, calls }) => `**${title}**: ${code(calls)}`).join("\n\n")}

## Allowed for some arguments

${RULES.map(({ calls, text }) => `- ${code(calls)}: ${text}`).join("\n")}

## Left to cmld

Whoever makes one of these waits until cmld has answered; other calls are not slower for it. Where a condition is not
met, the call is as in the other lists: without \`allow_system_time\` setting the clock is EPERM and reading it the
kernel's, without \`allow_module\` so is loading, and \`sysinfo\` is the kernel's.

${LEFT.map(({ calls, text }) => `- ${code(calls)}: ${text}`).join("\n")}
- \`ioctl\`: RTC_SET_TIME, RTC_EPOCH_SET and RTC_PARAM_SET of a real-time clock, with \`allow_system_time\`

## ENOSYS: programs fall back

${ABSENT.map(({ title, calls }) => `- ${title}: ${code(calls)}`).join("\n")}
- every number that is newer than Linux 6.1

## EPERM

${code(refused)}

## Decisions

- \`clone\`, \`clone3\`, \`unshare\`, \`setns\` are not restricted: nested containers need namespaces, and a nested user
  namespace gains nothing outside the container's own.
- \`mount\` is allowed, the new mount API is not: one way in, which can be watched; mount(8), systemd and container
  engines fall back to it on ENOSYS.
- Keys are refused: those of the host are not all namespaced. A new session keyring is not a key, and nested engines
  insist on one; \`add_key\`, \`request_key\` and every other use of \`keyctl\` get EPERM, which systemd takes as "none here".
- \`adjtimex\` and \`clock_adjtime\` also read the clock; the kernel refuses to set it.
- \`bpf\` is refused: systemd says once that it cannot filter addresses per service, and goes on.

## What cmld does for a container

The rule of all of them: a capability counts in the container's own user namespace. Who is in another one, a nested one
for instance, in which anybody has every capability, gets the kernel's own answer and nothing else.

| call | who | what is done | otherwise |
|---|---|---|---|
| mknod, mknodat of a device | CAP_MKNOD, a device that the container's rules let it make ("m") | the node, in a directory that the caller may write to, with its ids and umask; path, descriptor, working directory and root as the caller sees them | EPERM, or the kernel's errno for the path |
| mount of tmpfs, ramfs | CAP_SYS_ADMIN | mounted in the caller's mount namespace, owned by the host's user namespace, so that the nodes in it work; root directory and \`uid=\`, \`gid=\` in the container's ids. It cannot be remounted with other options | the kernel's |
| clock_settime, settimeofday, clock_adjtime, adjtimex | CAP_SYS_TIME, \`allow_system_time\` | done for CLOCK_REALTIME, result and errno as they are; the kernel's time zone stays | the kernel's: reading works, setting is EPERM |
| RTC_SET_TIME … | CAP_SYS_TIME, \`allow_system_time\`, a device rule with "w" | done on the caller's own open file, with a copy of the argument | EACCES |
| finit_module | CAP_SYS_MODULE, a name in \`allow_module\`, a kernel with sig_enforce=Y | the machine's own file of that name, and what modules.dep says it needs, without parameters; no byte of the container's file is read | EPERM |
| sysinfo | everybody in a container with a limit on memory | memory, swap and processes of its control group, uptime of its time namespace; the load is the machine's | |

What is the kernel's own and needs no help: bind mounts, moving, remounting, propagation; proc, sysfs, devpts, mqueue,
cgroup2, fuse; an overlay, which the kernel mounts for a user namespace (with userxattr, where directories are to be
replaced); a tmpfs with nodev. An overlay mounted by cmld would show the devices of its lowest layer, which the container
chooses: so it is not. On a file system that shows no devices (nodev, or owned by the container's user namespace)
mknod stays EPERM, by which systemd and container engines know that they must bind the host's node instead.

## How the calls are answered

- A call that is passed on to the kernel is one that the kernel judges by the caller's own rights, so changing its
  arguments meanwhile gains nothing. What cmld does itself it does with copies that it has taken once.
- What was read of a caller (memory, ids, paths) counts only if its notification is valid afterwards.
- Nothing waits in cmld: memory and paths of a container, which may lie on a file system of its own making, are read by
  short-lived children; one that does not come back in 10 s is given up. A container has two calls under way, and
  in the long run a quarter of the time (a second may be saved up); the others wait in the kernel. Signals do not interrupt a call that cmld has begun (Linux 5.19).
- The listeners are kept outside of cmld (init's store, systemd's). While cmld is down callers wait, and the next cmld
  answers them: those of the init and of what \`control run\` has started and left behind alike. Where nobody keeps
  them (a cmld started by hand), they end with cmld: the calls are ENOSYS until the container starts again.
- A filter has one listener: a container engine inside a container cannot supervise calls itself (EBUSY).
`;
}

function isolation(): string {
  const rows = CAPABILITIES.map((name) => `| ${name} | ${KEPT[name] ?? "dropped"} |`);
  return `# What holds a container

Printed from \`src/cmld/modules/caps.ts\` and \`masks.ts\` by \`test/documents.ts\`; a test compares.

## Capabilities

They count in the container's own user namespace only. What is not kept leaves the bounding set; the inheritable and
ambient sets are empty, in the container's init and in \`control run\`. Securebits are the kernel's default and not
locked; NO_NEW_PRIVS is not set, setuid programs work. \`allow_system_time\` adds SYS_TIME, \`allow_module\` SYS_MODULE:
the kernel does not count them, cmld does ([seccomp.md](seccomp.md)).

| capability | kept for |
|---|---|
${rows.join("\n")}

The session keyring is a new one; the daemon's is not inherited.

## Masked and read-only paths

/dev/null lies over: ${code(MASKED_FILES)}

An empty read-only tmpfs lies over: ${code(MASKED_DIRECTORIES)}

Read-only: ${code(READ_ONLY)}; except \`/proc/sys/net\` in a container with its own network namespace.

## Commands in a running container

\`control run\` starts a process that is born in the container's pid namespace, joins the other namespaces, closes every
descriptor of the daemon, and only then enters the container's control group (which the container may freeze) and looks
anything up in its file tree. It gets the same filter, capabilities and limits as the container's init, the environment
PATH, HOME, USER, TERM (with a terminal) and what was asked for. Its terminal is one of the container's own /dev/pts. A
link to /proc/self/exe is not followed, so the daemon's executable is never run inside.

## What the kernel counts by user

inotify instances and watches, namespaces, message queues and pending signals have a limit for each user, and a user
namespace counts all that happens in it as its owner's as well. The owner of a container's is the first of its own ids, not
root: otherwise all containers and cmld would share what root may have, and one could take it all. Open files have one limit
for the whole machine, which the machine lifts (\`fs.file-max\`; systemd does on a host): they count as their container's
memory. Terminals (\`kernel.pty.max\`, 4096), the table of neighbours (\`net.ipv4.neigh.default.gc_thresh3\`) and
core0's table of connections are shared by all, and nobody's in particular.

## What the masks are for

The masks keep programs from seeing what is not theirs; they are not what keeps root in the container from using it:
root could unmount them, as in every container that may mount. What is under them belongs to ids that the container
does not have, and is judged by capabilities in the host's user namespace. So that nested containers can mount a
/proc and a /sys of their own, which the kernel grants only to whoever sees one whole, both are also attached below
\`/dev/.cml\`, which only root can enter.
`;
}

export const documents: Readonly<Record<string, () => string>> = {
  "docs/seccomp.md": seccomp,
  "docs/isolation.md": isolation,
};

if (import.meta.main) for (const [path, print] of Object.entries(documents)) await Bun.write(path, print());
