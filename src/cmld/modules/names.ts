// names: /etc/hosts and /etc/resolv.conf for a guest that has none: an image made from packages or a container image
// seldom has them, and without the one nobody finds itself, without the other nobody else.
//
// The child writes them, in its own tree, with the container's own ids, and only where there is nothing: a file, and a
// link wherever it leads, is the guest's own matter. Whatever keeps it from doing so (a read-only root, a full disk, an
// /etc that is a link) is no reason not to start.
import {
  AT_FDCWD,
  close,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_PATH,
  O_WRONLY,
  openat,
  openat2,
  RESOLVE_NO_MAGICLINKS,
  RESOLVE_NO_SYMLINKS,
} from "../../sys/calls.ts";
import { ANY, type Op, Reg } from "../../sys/op.ts";
import { plainName } from "../config.ts";
import type { Module, Start } from "../module.ts";

const [ETC, FILE] = [new Reg(0), new Reg(1)];

function filesOf(s: Pick<Start, "config" | "host">): Record<string, string> {
  const dns = s.config.dns_server || s.host.device.host_dns;
  return {
    // 127.0.1.1 as Debian does: the name's address, whether there is a network or not.
    hosts: `127.0.0.1\tlocalhost\n127.0.1.1\t${plainName(s.config.name)}\n::1\tlocalhost\n`,
    ...(dns !== "" && { "resolv.conf": `nameserver ${dns}\n` }),
  };
}

const written = (name: string, text: string): Op[] =>
  [
    openat(ETC, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o644, FILE),
    { call: "write", args: [FILE, text, Buffer.byteLength(text)] } satisfies Op,
    close(FILE),
  ].map((op): Op => ({ ...op, allow: ANY }));

export const names: Module = {
  name: "names",
  child: (s) => [
    {
      ...openat2(AT_FDCWD, "/etc", O_PATH | O_DIRECTORY, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, 0, ETC),
      allow: ANY,
    },
    ...Object.entries(filesOf(s)).flatMap(([name, text]) => written(name, text)),
    { ...close(ETC), allow: ANY },
  ],
};
