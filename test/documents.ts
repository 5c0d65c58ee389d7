// Documents that are printed from the code's own tables: `bun test/documents.ts` writes them, a test compares.
import { CAPABILITIES, KEPT } from "../src/cmld/modules/caps.ts";
import { MASKED_DIRECTORIES, MASKED_FILES, READ_ONLY } from "../src/cmld/modules/masks.ts";
import { ABSENT, ALLOWED, RULES } from "../src/cmld/modules/seccomp.ts";
import { NR } from "../src/sys/numbers.ts";

const code = (names: readonly string[]): string => names.map((n) => `\`${n}\``).join(" ");

function seccomp(): string {
  const named = new Set([...ALLOWED, ...ABSENT, ...RULES].flatMap(({ calls }) => calls as readonly string[]));
  const refused = Object.keys(NR).filter((n) => !named.has(n));
  return `# System calls of a container

Printed from \`src/cmld/modules/seccomp.ts\` by \`test/documents.ts\`; a test compares. The filter is the same for a
container's init and for \`control run\`. A process that makes calls by another architecture's numbers (32-bit programs
included) is killed with SIGSYS; x32's numbers are ENOSYS.

## Allowed

${ALLOWED.map(({ title, calls }) => `**${title}**: ${code(calls)}`).join("\n\n")}

## Allowed for some arguments

${RULES.map(({ calls, text }) => `- ${code(calls)}: ${text}`).join("\n")}

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
`;
}

function isolation(): string {
  const rows = CAPABILITIES.map((name) => `| ${name} | ${KEPT[name] ?? "dropped"} |`);
  return `# What holds a container

Printed from \`src/cmld/modules/caps.ts\` and \`masks.ts\` by \`test/documents.ts\`; a test compares.

## Capabilities

They count in the container's own user namespace only. What is not kept leaves the bounding set; the inheritable and
ambient sets are empty, in the container's init and in \`control run\`. Securebits are the kernel's default and not
locked; NO_NEW_PRIVS is not set, setuid programs work. \`allow_system_time\` adds SYS_TIME.

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
