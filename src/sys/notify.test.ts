import { expect, test } from "bun:test";
import { Struct } from "./mem.ts";
import { decode, loadFilter, NOTIFICATION } from "./notify.ts";
import { NR } from "./numbers.ts";
import { show } from "./op.ts";

const column = process.arch === "arm64" ? 1 : 0;

test("struct seccomp_notif", () => {
  const bytes = new Struct(NOTIFICATION)
    .u64(2n ** 64n - 2n)
    .u32(4711)
    .u32(0)
    .i32(NR.mount[column])
    .u32(0)
    .u64(0);
  for (const n of [1n, 2n, 3n, 4n, 5n, 2n ** 64n - 1n]) bytes.u64(n);
  expect(decode(bytes.bytes)).toEqual({
    id: 2n ** 64n - 2n,
    pid: 4711,
    call: "mount",
    args: [1n, 2n, 3n, 4n, 5n, 2n ** 64n - 1n],
  });
  expect(decode(new Struct(NOTIFICATION).skip(16).i32(99999).bytes)).toBeUndefined();
  expect(decode(bytes.bytes.subarray(1))).toBeUndefined();
});

test("a filter's listener leaves the child in a message, and nothing of its way stays open", () => {
  const filter = { data: new Uint8Array(16), text: "[filter]" };
  expect(loadFilter(filter).map(show)).toEqual(["seccomp(1, 0, [filter])"]);
  expect(loadFilter(filter, { ours: 8, theirs: 9 }).map(show)).toEqual([
    "seccomp(1, 40, [filter]) -> r0", // NEW_LISTENER, WAIT_KILLABLE_RECV
    "dup3(r0, 8, 524288)",
    "sendmsg(9, {SCM_RIGHTS=[8]}, 0)",
    "close(r0)",
    "close(8)",
    "close(9)",
  ]);
});
