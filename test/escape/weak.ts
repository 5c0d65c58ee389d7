// Programs as careless runtimes compose them: what an attack is tried on to see it succeed.
import { Struct } from "../../src/sys/mem.ts";
import type { Op } from "../../src/sys/op.ts";
import type { Weak } from "./attack.ts";

export const pause = (ms: number): Op => ({
  call: "nanosleep",
  args: [{ data: new Struct(16).u64(0).u64(ms * 1_000_000).bytes, text: `{${ms} ms}` }, null],
});

/** What a runtime does that puts the path of the root before every path, and looks it up in the host's tree. */
export const naive: Required<Pick<Weak, "program">> = {
  program(ops) {
    const [first, second] = ops.flatMap((op, i) => (op.call === "chroot" ? [i] : []));
    if (first === undefined || second === undefined)
      throw new Error("a program with two chroots was expected");
    return ops.flatMap((op, i) => {
      if (i === first || i === second) return [];
      return i > first && i < second ? [beneathRoot(op)] : [op];
    });
  },
};

function beneathRoot(op: Op): Op {
  const args = op.args.map((a) => {
    if (typeof a === "string" && a.startsWith("/")) return `.${a}`;
    if (op.call !== "openat2" || a === null || typeof a !== "object" || !("data" in a)) return a;
    const how = new Uint8Array(a.data); // struct open_how: flags, mode, resolve
    how.fill(0, 16);
    return { data: how, text: a.text };
  });
  return { ...op, args };
}
