import { expect, test } from "bun:test";
import { type KernelRecord, mayBeFrom, numberIn, parseRecord } from "./audit.ts";

const record = (type: number, text: string) => parseRecord(type, Buffer.from(text)) as KernelRecord;
const fields = (r: KernelRecord) => Object.fromEntries(r.fields);

test("parseRecord() reads what the kernel writes", () => {
  const r = record(
    1326,
    'audit(1795000000.250:42): auid=4294967295 uid=200000 gid=200000 ses=4294967295 subj=unconfined pid=812 comm="sh x" exe="/bin/sh" sig=31 arch=c000003e syscall=101 compat=0 ip=0x7f12 code=0x80000000',
  );
  expect([r.type, r.time, r.serial, r.message]).toEqual([1326, 1795000000.25, 42, undefined]);
  expect(fields(r)).toMatchObject({ uid: "200000", pid: "812", comm: "sh x", exe: "/bin/sh", sig: "31" });
  expect([numberIn(r, "pid"), numberIn(r, "auid"), numberIn(r, "comm")]).toEqual([812, undefined, undefined]);
  const dm = record(
    1338,
    "audit(1795000000.001:7): module=crypt op=ctr ppid=1 pid=9 auid=0 uid=0 comm=\"cml\" dev=253:0 error_msg='success' res=1",
  );
  expect(fields(dm)).toMatchObject({
    module: "crypt",
    op: "ctr",
    dev: "253:0",
    error_msg: "success",
    res: "1",
  });
});

test("what a program sends counts as its text, whatever it looks like; the first of two equal words counts", () => {
  const r = record(
    1112,
    "audit(1795000000.000:1): pid=77 uid=200000 auid=4294967295 ses=4294967295 msg='op=login pid=1 uid=0 msg=' uid=0 res=success'",
  );
  expect(fields(r)).toEqual({ pid: "77", uid: "200000", auid: "4294967295", ses: "4294967295" });
  expect(r.message).toBe("op=login pid=1 uid=0 msg=' uid=0 res=success");
  const terminal = record(1124, "audit(1795000000.000:1): pid=77 uid=5 auid=0 ses=1 data=7569643D30");
  expect([terminal.message, numberIn(terminal, "uid")]).toEqual(["7569643D30", 5]);
  const twice = record(1400, 'audit(1795000000.000:1): apparmor="DENIED" pid=5 comm="a" pid=6 name=706964');
  expect(numberIn(twice, "pid")).toBe(5);
  // A label of a security module is the kernel's, but its text is not: it comes after pid and uid.
  const label = record(1112, "audit(1795000000.000:1): pid=7 uid=8 auid=1 ses=1 subj=x pid=1 uid=0 msg='a'");
  expect([numberIn(label, "pid"), numberIn(label, "uid")]).toEqual([7, 8]);
});

test("what is no record is none; lengths and counts are bounded", () => {
  for (const text of ["", "audit", "audit(1.1:1): a=b", "audit(x.000:1): a=b", "type=1 audit(1.000:1): a=b"])
    expect(record(1300, text)).toBeUndefined();
  expect(fields(record(1300, "audit(1.000:1):"))).toEqual({});
  expect(fields(record(1300, "audit(1.000:1): a b=c word d=\"e f\" g='h'\0z=1"))).toEqual({
    b: "c",
    d: "e f",
    g: "h",
  });
  const many = Array.from({ length: 1000 }, (_, i) => `k${i}=v`).join(" ");
  expect(record(1300, `audit(1.000:1): ${many}`).fields.size).toBe(64);
  expect(fields(record(1300, 'audit(1.000:1): a="never ends'))).toEqual({ a: '"never' });
});

test("a process that started after a record did not cause it: its pid was somebody else's", () => {
  const clock = { now: 1000, boot: 100 }; // booted at 900
  expect(mayBeFrom(5000, 960, clock)).toBe(true); // started at 950
  expect(mayBeFrom(6000, 960, clock)).toBe(true); // in the same tick
  expect(mayBeFrom(6002, 960, clock)).toBe(false);
});
