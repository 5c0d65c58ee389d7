// Bytes from outside, as nobody would send them: whatever comes, framing, codecs, text format and configurations
// answer with a value or with one of their own errors in one line; quickly, and without holding much.
//
// The seed is fixed, so that every run tries the same. Inputs are recorded ones, broken at random.

import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import * as proto from "../../proto/gen/proto.js";
import { broken, Chance, SEED, spent } from "../../test/chance.ts";
import { counts } from "../../test/counts.ts";
import { judgeDevice } from "../../test/extended.ts";
import { FRAME_MAX_GUEST, frame, Unframer } from "../lib/frame.ts";
import { BadMessage, type MessageClass } from "../lib/protobuf.ts";
import { BadText, parse, print } from "../lib/text.ts";
import { parseRecord } from "../sys/audit.ts";
import { chain } from "../sys/error.ts";
import { addressOf, ipLink, type Link, linkOf } from "../sys/link.ts";
import { Answers, BadReply, be32, body, type Message, pack, u32 } from "../sys/netlink.ts";
import { numberOf } from "../sys/sysfs.ts";
import { parseUevent, printUevent } from "../sys/uevent.ts";
import { attribute, eventOf } from "./audit/audit.ts";
import { bounded, RECORD_MAX } from "./audit/trail.ts";
import { BadConfig, checkDevice, readContainer, readDevice, readGuestOs } from "./config.ts";
import { probe } from "./devices/media.ts";
import { isNodePath } from "./devices/nodes.ts";
import {
  accessOf,
  amend,
  BadRule,
  DEFAULT,
  parseDeviceAccess,
  parseDeviceRule,
  program,
  type Statement,
  showRule,
} from "./devices/rules.ts";
import { usbDevice } from "./devices/usb.ts";
import { Corrupted, judged } from "./keys/crypt.ts";

/** One input may take so long, and a whole target hold so much more than before. */
const INPUT_MS = 1000;
const HELD_MAX = 256 * 2 ** 20;

const golden = new URL("../../test/data/golden/", import.meta.url).pathname;
const classes = proto as unknown as Record<string, MessageClass>;

const OURS = [BadMessage, BadText, BadConfig, BadReply, BadRule, Corrupted];

/** Run a target on its inputs; says how many were accepted. */
function fuzz(name: string, input: (chance: Chance) => Buffer, target: (bytes: Buffer) => void): void {
  test(
    `fuzz: ${name}`,
    () => {
      const chance = new Chance(SEED);
      const until = performance.now() + counts.fuzzSeconds * 1000;
      Bun.gc(true);
      const held = process.memoryUsage().rss;
      let [tried, accepted] = [0, 0];
      while (tried < counts.fuzzInputs || performance.now() < until) {
        const bytes = input(chance);
        const began = process.cpuUsage();
        try {
          target(bytes);
          accepted++;
        } catch (e) {
          const known =
            OURS.some((c) => e instanceof c) ||
            (e instanceof RangeError && e.message.startsWith("frame of "));
          if (!known || /[\x00-\x1f]/.test((e as Error).message) || (e as Error).message.length > 1000)
            throw new Error(`input ${tried} (base64 ${bytes.toString("base64").slice(0, 4000)})`, {
              cause: e,
            });
        }
        if (spent(began) > INPUT_MS) throw new Error(`input ${tried} took ${spent(began)} ms`);
        tried++;
      }
      expect(process.memoryUsage().rss - held).toBeLessThan(HELD_MAX);
      expect(accepted).toBeGreaterThan(tried / 100); // else only the first check was tried
      expect(accepted).toBeLessThan(tried);
    },
    120_000 + counts.fuzzSeconds * 1000,
  );
}

// --- the wire ------------------------------------------------------------------------

const records = readFileSync(`${golden}messages.jsonl`, "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => JSON.parse(line) as { type: string; stream?: string; message?: string; text: string[] });
const streams = records.flatMap((r) => (r.stream ? [Buffer.from(r.stream, "base64")] : []));
const messages = streams.flatMap((s) => [...new Unframer().push(s)].map((m) => Buffer.from(m)));
const wire = [
  "ffffffffffffffffff01",
  "80808080",
  "ff",
  "00",
  "08",
  "5200",
  "0b",
  "0c",
  "a306",
  "0d00000000",
  "7a05",
  "ffffffff0f",
].map((h) => Buffer.from(h, "hex"));

let cut = new Chance(SEED);
fuzz(
  "frames",
  (chance) => {
    cut = chance;
    return broken(chance, streams, [
      ...wire,
      frame(Buffer.alloc(0)) as Buffer,
      Buffer.from("00100001", "hex"),
    ]);
  },
  (bytes) => {
    const unframer = new Unframer(FRAME_MAX_GUEST);
    let [at, total] = [0, 0];
    while (at < bytes.length) {
      const end = at + 1 + cut.below(64);
      for (const m of unframer.push(bytes.subarray(at, end))) total += 4 + m.length;
      if (unframer.held > Math.max(8192, 2 * bytes.length))
        throw new Error(`holds ${unframer.held} of ${bytes.length}`);
      at = end;
    }
    if (total > bytes.length) throw new Error("more came out than went in");
  },
);

fuzz(
  "messages",
  (chance) => broken(chance, messages, wire),
  (bytes) => {
    let failure: unknown;
    let good = 0;
    for (const name of ["ControllerToDaemon", "DaemonToController", "TokenToDaemon", "StoreRequest"]) {
      const type = classes[name]!;
      try {
        const m = type.decode(bytes);
        const again = type.encode(m);
        if (!Buffer.from(type.encode(type.decode(again))).equals(again))
          throw new Error(`${name}: not the same again`);
        print(type, m);
        JSON.stringify(type.plain(m));
        good++;
      } catch (e) {
        if (!(e instanceof BadMessage)) throw e;
        failure = e;
      }
    }
    if (good === 0) throw failure;
  },
);

// --- text ----------------------------------------------------------------------------

const files = ["state/containers", "state/operatingsystems", "input"].flatMap((folder) =>
  readdirSync(golden + folder)
    .filter((f) => f.endsWith(".conf"))
    .map((f) => readFileSync(`${golden}${folder}/${f}`)),
);
const device = Buffer.from(
  'hostedmode: true\nsigned_configs: false\nhost_dns: "9.9.9.9"\ntpm_enabled: false\naudit_size: 10\n',
);
const schemas = [proto.ContainerConfig, proto.GuestOSConfig, proto.DeviceConfig].map((c) => c.schema);
const words = [
  ...schemas.flatMap((s) => s.fields.flatMap((f) => [`${f.name}: `, `${f.name} { `, `${f.name}: [`])),
  ..."{ } < > [ ] , ; : # ' \" \\ \\x \\303 \\u00e4 \\777 \n \r\n 0x 0xff -1 1e9 01 18446744073709551615 99999999999999999999999 true false KVM USB".split(
    " ",
  ),
  "\0",
  "\u00e4",
  "\u009b",
  "..",
  "/",
].map((w) => Buffer.from(w));

fuzz(
  "text",
  (chance) => broken(chance, [...files, device], words),
  (bytes) => {
    let failure: unknown;
    for (const type of [
      proto.ContainerConfig,
      proto.GuestOSConfig,
      proto.DeviceConfig,
    ] as unknown as MessageClass[])
      try {
        const printed = print(type, parse<object>(type, bytes));
        if (print(type, parse<object>(type, printed)) !== printed) throw new Error("not the same again");
        return;
      } catch (e) {
        if (!(e instanceof BadText)) throw e;
        failure = e;
      }
    throw failure;
  },
);

const rules = { device: checkDevice(proto.DeviceConfig.create()), provisioned: false };
fuzz(
  "configurations",
  (chance) => broken(chance, [...files, device], words),
  (bytes) => {
    let failure: unknown;
    for (const read of [
      (b: Buffer) => readContainer(b, { ...rules, loaded: true }),
      (b: Buffer) => readContainer(b, { ...rules, loaded: false }),
      readGuestOs,
      readDevice,
    ])
      try {
        read(bytes);
        return;
      } catch (e) {
        if (!OURS.some((c) => e instanceof c)) throw e;
        failure = e;
      }
    throw failure;
  },
);

// --- device rules ----------------------------------------------------------------------

const ruleSeeds = [
  "c 4:1 rwm\nc 4:1 r\nc 4:1",
  "b 8:* rwm\nb 8:0\nb 8:0 r",
  "c 189:* rwm\nc 189:3 rwm\nc 189:3",
  "a 10:235 m\nc 10:235 rw\nb 10:235",
  "c 1:3\nc 136:* r\nc 5:2 w",
].map((text) => Buffer.from(text));
const ruleWords =
  "a b c * : rwm r w m - 0 1 4 10 4095 4096 1048575 1048576 9999999999 \n \t c\u00a04:1".split(" ");

fuzz(
  "device rules",
  (chance) =>
    broken(
      chance,
      ruleSeeds,
      [" ", "\n", ...ruleWords].map((w) => Buffer.from(w)),
    ),
  (bytes) => {
    let list: readonly Statement[] = DEFAULT;
    for (const line of bytes.toString("utf8").split("\n").slice(0, 20)) {
      const { rule, allow } = parseDeviceAccess(line);
      if (showRule(parseDeviceRule(showRule(rule))) !== showRule(rule)) throw new Error("not the same again");
      list = amend(list, { allow, rule, by: "control" });
    }
    const code = program(list);
    for (const { rule } of list.slice(-2))
      for (const kind of ["b", "c"] as const) {
        const device = { kind, major: rule.major, minor: rule.minor ?? 7 };
        const granted = accessOf(list, device);
        for (let access = 1; access < 8; access++) {
          const asked = { type: kind === "b" ? 1 : 2, access, major: device.major, minor: device.minor };
          if (judgeDevice(code, asked) !== ((access & ~granted) === 0 ? 1 : 0))
            throw new Error(`${showRule({ ...device, access })}: the program says otherwise`);
        }
      }
  },
);

// --- devices --------------------------------------------------------------------------

const events = [
  [
    "add@/devices/pci0000:00/0000:00:04.0/usb1/1-1",
    "ACTION=add",
    "SUBSYSTEM=usb",
    "DEVNAME=bus/usb/001/002",
  ].concat(["DEVTYPE=usb_device", "PRODUCT=46f4/1/0", "MAJOR=189", "MINOR=1", "SEQNUM=1042", ""]),
  [
    "remove@/devices/virtual/block/zram1",
    "SUBSYSTEM=block",
    "MAJOR=253",
    "MINOR=1",
    "DEVTYPE=disk",
    "DISKSEQ=7",
    "",
  ],
  ["add@/devices/virtual/net/veth0", "SUBSYSTEM=net", "INTERFACE=veth0", "IFINDEX=12", "SEQNUM=1043", ""],
  ["change@/devices/x", "SYNTH_UUID=0", "DEVNAME=../../etc/passwd", "MAJOR=99999999999", "MINOR=-1", ""],
].map((lines) => Buffer.from(lines.join("\0")));
const names = [
  "MAJOR=",
  "MINOR=",
  "DEVNAME=",
  "PRODUCT=",
  "DEVTYPE=usb_device",
  "add@/",
  "@",
  "=",
  "\0",
  "/../",
  "\xff",
  "A".repeat(300),
];

fuzz(
  "uevents",
  (chance) =>
    broken(
      chance,
      events,
      names.map((n) => Buffer.from(n, "latin1")),
    ).subarray(0, 8192), // as long as the kernel's may be
  (bytes) => {
    const event = parseUevent(bytes);
    if (!event) throw new BadMessage("no event");
    const device = numberOf(event);
    if (device && !(Number.isSafeInteger(device.major) && Number.isSafeInteger(device.minor)))
      throw new Error(`device ${device.major}:${device.minor}`);
    const usb = usbDevice(event);
    if (usb && !/^[0-9a-f]{4}:[0-9a-f]{4}$/.test(usb.id)) throw new Error(`id ${usb.id}`);
    const node = event.values.get("DEVNAME") ?? "";
    if (isNodePath(node) && /(^|\/)\.\.?(\/|$)|^\//.test(node)) throw new Error(`path ${node}`);
    const printed = printUevent(event);
    if (printed && !parseUevent(printed)) throw new Error("not an event again");
    if (printed && printed.length > 2048) throw new Error("longer than the kernel takes");
  },
);

/** The heads of a FAT, an exFAT and an ext4. */
const media = [
  [
    [0, "eb3c90"],
    [11, "0002"],
    [13, "04"],
    [16, "02"],
    [54, "4641543136202020"],
    [510, "55aa"],
  ],
  [
    [3, "4558464154202020"],
    [510, "55aa"],
  ],
  [[1080, "53ef"]],
].map((parts) => {
  const head = Buffer.alloc(4096);
  for (const [at, hex] of parts) head.write(hex as string, at as number, "hex");
  return head;
});

fuzz(
  "media",
  (chance) => {
    const head = broken(chance, media, [
      Buffer.from("55aa", "hex"),
      Buffer.from("EXFAT   "),
      Buffer.from("FAT32   "),
    ]);
    return Buffer.concat([head, Buffer.alloc(4096)], 4096);
  },
  (bytes) => {
    if (probe(bytes) === undefined) throw new BadMessage("no file system");
  },
);

// --- netlink: what the kernel answers, and what somebody in a container's namespace could slip in between ----------

const nothing = (what: string, type = 18): Message => ({ type, body: new Uint8Array(16), what });
const asked = [nothing("link show"), nothing("addr show", 22)];
const mac = new Uint8Array([2, 0, 0, 0, 0, 7]);
const linkReply = body(new Uint8Array([0, 0, 1, 0, 7, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0]), [
  [1, mac],
  [2, new Uint8Array(6).fill(255)],
  [3, "host0"],
  [4, u32(1500)],
  [5, u32(9)],
  [6, "noqueue"],
  [16, new Uint8Array([6])],
  [18, [[1, "veth"]]],
  [20, "alias"],
  [23, new Uint8Array(200).fill(1)],
  [27, u32(0x636d6c)],
  [37, u32(0)],
  [52, [[53, "another-name"]]],
  [54, mac],
  [56, "0000:00:03.0"],
]);
const addressReply = (family: number, bytes: Uint8Array): Uint8Array =>
  body(new Uint8Array([family, 24, 0, 0, 7, 0, 0, 0]), [
    [1, bytes],
    [2, bytes],
  ]);
const refusalReply = body(Buffer.concat([Buffer.from([0xef, 0xff, 0xff, 0xff]), new Uint8Array(16)]), [
  [1, "Operation not supported by this link"],
]);
const replies = [
  [
    pack({ ...asked[0]!, type: 16, body: linkReply }, 1, 2),
    pack({ ...asked[0]!, type: 16, body: linkReply }, 1, 2),
  ],
  [pack({ ...asked[1]!, type: 20, body: addressReply(2, new Uint8Array([172, 23, 0, 2])) }, 2, 2)],
  [pack({ ...asked[1]!, type: 20, body: addressReply(10, new Uint8Array(16).fill(3)) }, 2, 2)],
  [pack({ ...asked[0]!, type: 2, body: refusalReply }, 1, 0x300)],
  [pack({ ...asked[1]!, type: 3, body: u32(0) }, 2, 2)],
].map((packed) => Buffer.concat(packed));

const netlinkWords = [u32(1), u32(2), u32(0xffffffff), be32(16), mac, Buffer.from("\x1b[2J\0")].map((b) =>
  Buffer.from(b),
);

fuzz(
  "netlink replies",
  (chance) => broken(chance, replies, netlinkWords),
  (bytes) => {
    const answers = new Answers(asked, 1);
    answers.take(bytes);
    let wrong: unknown;
    const all: Link[] = [];
    for (const r of answers.replies) {
      try {
        if (r.type === 16) all.push(linkOf(r));
        if (r.type === 20) addressOf(r);
      } catch (e) {
        if (!(e instanceof BadReply)) throw e;
        wrong = e;
      }
    }
    for (const text of ipLink(all))
      if (/[^\n\x20-\x7e]/.test(text)) throw new Error(`it prints ${JSON.stringify(text)}`);
    for (const e of answers.refusals)
      if (/[^\x20-\x7e]/.test(chain(e))) throw new Error(`it says ${JSON.stringify(chain(e))}`);
    if (wrong !== undefined) throw wrong;
  },
);

// --- audit ---------------------------------------------------------------------------

const kernelRecords = [
  'audit(1795000000.250:42): auid=4294967295 uid=200000 gid=200000 ses=1 subj=unconfined pid=812 comm="sh" exe="/bin/sh" sig=31 syscall=101 code=0x80000000',
  "audit(1795000000.000:1): pid=77 uid=200000 auid=4294967295 ses=4294967295 msg='op=login acct=\"root\" res=success'",
  "audit(1795000000.001:7): module=crypt op=ctr ppid=1 pid=9 auid=0 uid=0 dev=253:0 error_msg='success' res=1",
  'audit(1795000000.001:8): apparmor="DENIED" operation="open" profile="x" name=2F746D70 pid=5 comm="a"',
].map((line) => Buffer.from(line));
const kernelWords =
  "audit( ): msg=' data= pid= uid=0 uid=200000 res=success res=0 = \" ' ,  4294967295 dev=1:1 \0".split(" ");
const nobody = {
  known: () => true,
  ofUid: (uid: number) => (uid < 65_536 ? undefined : "x"),
  groups: () => "/cml",
};
fuzz(
  "audit records of the kernel",
  (chance) =>
    broken(
      chance,
      kernelRecords,
      kernelWords.map((w) => Buffer.from(w)),
    ),
  (bytes) => {
    const type = [1112, 1124, 1326, 1338, 1339, 1400, 1701][bytes.length % 7]!;
    const r = parseRecord(type, bytes);
    if (!r) throw new BadText(1, 1, "audit", "no record");
    // What the program sent has no say.
    const whose = attribute(r, nobody, () => undefined);
    const silent = attribute({ ...r, message: "" }, nobody, () => undefined);
    if (whose.uuid !== silent.uuid) throw new Error("attributed by a program's text");
    const text = bounded(eventOf(r, whose.uuid, whose.by));
    if (Buffer.byteLength(text) > RECORD_MAX) throw new Error(`a record of ${text.length}`);
    if (print(proto.AuditRecord, parse<object>(proto.AuditRecord, text)) !== text)
      throw new Error("not the same again");
  },
);

const toldByServices = [
  { code: proto.ServiceToCmldMessage.Code.BOOT_COMPLETED },
  { code: proto.ServiceToCmldMessage.Code.AUDIT_ACK, audit_ack: "0".repeat(128) },
  { code: proto.ServiceToCmldMessage.Code.CONTAINER_CFG_NAME_REQ },
].map((m) => Buffer.from(frame(proto.ServiceToCmldMessage.encode(m))));
fuzz(
  "service socket",
  (chance) => broken(chance, [...toldByServices, Buffer.concat(toldByServices)], wire),
  (bytes) => {
    const unframer = new Unframer(FRAME_MAX_GUEST);
    let good = 0;
    for (const m of unframer.push(bytes)) {
      const { code, audit_ack } = proto.ServiceToCmldMessage.decode(m);
      if (audit_ack !== undefined && audit_ack.length > m.length)
        throw new Error("more came out than went in");
      if (code === undefined) throw new Error("a message without a code");
      good++;
    }
    if (unframer.held > Math.max(8192, 2 * bytes.length)) throw new Error(`holds ${unframer.held}`);
    if (good === 0) throw new BadMessage("nothing whole");
  },
);

const superblock = Buffer.alloc(512);
superblock.write("integrt\0", "latin1");
superblock[8] = 5;
superblock.writeUInt16LE(32, 10);
superblock.writeBigUInt64LE(131_072n, 16);
fuzz(
  "the superblock of a sealed volume",
  (chance) => broken(chance, [superblock], [Buffer.from("integrt\0"), Buffer.of(0xff, 0xff, 0xff, 0xff)]),
  (bytes) => {
    const sectors = judged(bytes, "INTEGRITY_ENCRYPT");
    expect(Number.isSafeInteger(sectors) && sectors > 0).toBe(true);
  },
);
