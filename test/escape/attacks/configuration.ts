// Configurations and requests that ask for what is not theirs, and the environment of programs.
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { signature } from "../../../initramfs/pki.ts";
import {
  ContainerConfig,
  ControllerToDaemon,
  DaemonToController,
  type IControllerToDaemon,
} from "../../../proto/gen/proto.js";
import { parse } from "../../../src/lib/text.ts";
import { type Attack, type Core0, type Ground, type Guest, inside, SECRET } from "../attack.ts";

const { Command } = ControllerToDaemon;
const { Response } = DaemonToController;

const good = (guestos: string): string => `guest_os: "${guestos}"\ncolor: 0\ntoken_type: NONE\n`;

/** A field and what an attacker would write there; the answer must name the field. */
type Case = readonly [field: string, text: string];

const container = (name: string, text: string, guestos: string): Buffer => {
  const os = /^guest_os:/m.test(text) ? "color: 0\ntoken_type: NONE\n" : good(guestos);
  return Buffer.from(`${/^name:/m.test(text) ? "" : `name: "${name}"\n`}${os}${text}\n`);
};

/** A container like any other, for as long as it takes. */
async function made(g: Ground, act: (container_uuids: string[]) => Promise<string>): Promise<string> {
  const container_config_file = container("plain", "", g.guestos);
  const { container_uuids, error_text } = await g.ask(Command.CREATE_CONTAINER, { container_config_file });
  if (container_uuids.length !== 1) throw new Error(`a container like any other: ${error_text}`);
  try {
    return await act(container_uuids);
  } finally {
    await g.ask(Command.REMOVE_CONTAINER, { container_uuids });
  }
}

/** Every one is refused with its field named, when a container is made and when one is changed. */
const refused = (cases: readonly Case[]) => (g: Ground) =>
  made(g, async (container_uuids) => {
    const stored = async () => JSON.stringify(await g.ask(Command.GET_CONTAINER_CONFIG, { container_uuids }));
    const before = await stored();
    for (const [field, text] of cases) {
      const container_config_file = container("evil", text, g.guestos);
      for (const a of [
        await g.ask(Command.CREATE_CONTAINER, { container_config_file }),
        await g.ask(Command.CONTAINER_UPDATE_CONFIG, { container_uuids, container_config_file }),
      ]) {
        if (a.container_uuids.length > 0) return `won: ${text}`;
        if (!a.error_text?.includes(field))
          return `won: ${text} is refused without a word on it: ${a.error_text}`;
      }
      if ((await stored()) !== before) return `won: ${text} is stored`;
    }
    return `held: ${cases.length} are refused`;
  });

/** Without the check of the values behind it, the parser takes them. */
const parsed = (cases: readonly Case[]) => async () => {
  const taken = cases.filter(([, text]) => {
    try {
      return parse(ContainerConfig, container("evil", text, "any")) !== undefined;
    } catch {
      return false; // no number, say
    }
  });
  return taken.length > 0 ? `won: ${taken.length} of ${cases.length} can be read` : "held: none can be read";
};

const LINES: readonly Case[] = [
  ["name", 'name: "evil\\nroot"'],
  ["name", 'name: "../evil"'],
  ["name", 'name: "00000000-0000-0000-0000-000000000000"'],
  ["guest_os", 'name: "e"\nguest_os: "a\\nb"'],
  ["dns_server", 'dns_server: "8.8.8.8\\nnameserver 6.6.6.6"'],
  ["dns_server", 'dns_server: "8.8.8.8 evil"'],
  ["if_name", 'vnet_configs { if_name: "a\\nb" configure: true }'],
  ["if_name", 'vnet_configs { if_name: "../b" configure: true }'],
  ["netif", 'net_ifaces { netif: "a\\nb" }'],
  ["allow_module", 'allow_module: "evil\\nmodule"'],
  ["allow_module", 'allow_module: "../../evil.ko"'],
  ["fifos", 'fifos: "a\\nb"'],
  ["fifos", 'fifos: "../../etc/passwd"'],
  ["assign_cpus", 'assign_cpus: "0\\n1"'],
];

const GREEDY: readonly Case[] = [
  ["userns", "userns: false"],
  ["type", "type: KVM"],
  ["image_file", 'image_sizes { image_name: "data" image_size: 10 image_file: "/etc/passwd" }'],
  ["image_name", 'image_sizes { image_name: "../../data" image_size: 10 }'],
  ["image_size", 'image_sizes { image_name: "data" image_size: 99999999 }'],
  ["image_size", 'image_sizes { image_name: "data" image_size: -1 }'],
  ["ram_limit", "ram_limit: -1"],
  ["pids_limit", "pids_limit: 0"],
  ["pids_limit", "pids_limit: 99999999"],
  ["cpu_weight", "cpu_weight: 0"],
  ["tmpfs_size", "tmpfs_size: -5"],
  ["swap_limit", "swap_limit: 99999999"],
  ["allow_dev", 'allow_dev: "x 1:1 rwm"'],
  ["assign_dev", 'assign_dev: "c 99999:1 rwm"'],
];

/** Interfaces that are to be stored in a configuration: what is judged is the configuration that results. */
const INTERFACES = ["a/b", "../x", "a b", "0123456789abcdef", "a\nb", ""];

const loaders: Guest = {
  name: "loaders",
  writable: true,
  fill(root, bait) {
    const script = `require("fs").writeFileSync("${join(bait, "ran")}", "")\n`;
    for (const folder of ["", "tmp", "root"]) {
      mkdirSync(join(root, folder), { recursive: true });
      writeFileSync(join(root, folder, "evil.js"), script);
      writeFileSync(join(root, folder, ".env"), "BUN_OPTIONS=--preload /evil.js\nBUN_BE_BUN=1\n");
      writeFileSync(join(root, folder, "bunfig.toml"), 'preload = ["/evil.js"]\n');
    }
    writeFileSync(join(root, "evil.so"), "no library\n");
  },
  config: {
    init_env: [
      "BUN_BE_BUN=1",
      "BUN_OPTIONS=--preload /evil.js",
      "LD_PRELOAD=/evil.so",
      "NODE_OPTIONS=-r /evil.js",
    ],
  },
};

/** What ends or changes the machine when it is asked, by whoever may; and what has no answer of its own. */
const NOT_ASKED = new Set([
  Command.WIPE_DEVICE,
  Command.REBOOT_DEVICE,
  Command.SET_PROVISIONED,
  Command.DESTROY_SYSTEM,
  Command.CONTAINER_EXEC_INPUT,
]);
const ELSEWHERE = "../../keys";
const HOSTILE: Partial<IControllerToDaemon> = {
  container_uuids: [ELSEWHERE],
  container_config_file: Buffer.from(`name: "${ELSEWHERE}"\nguest_os: "${ELSEWHERE}"\n`),
  guestos_config_file: Buffer.from(
    `name: "${ELSEWHERE}"\nhardware: "x86"\nversion: 1\ninit_path: "/i"\ndescription { en: "e" }\nupdate_base_url: "file:///data/cml/keys"\n`,
  ),
  guestos_name: ELSEWHERE,
  guestos_rootcert: Buffer.from("/data/cml/keys/secret"),
  device_cert: Buffer.from("/data/cml/keys/secret"),
  device_pin: Buffer.from(ELSEWHERE),
  device_newpin: Buffer.from(ELSEWHERE),
  dev_rule: "a *:* rwm\n",
  assign_iface_params: { iface_name: `${ELSEWHERE}/secret`, persistent: true },
  exec_command: "/proc/self/exe",
  exec_args: ["cmld"],
  exec_user: ELSEWHERE,
  exec_cwd: "/proc/self/fd/3",
  exec_env: ["BUN_BE_BUN=1"],
  import_data: Buffer.from("no container\n"),
  log_lines: 4_294_967_295,
  remove_logs: false,
};

/** Every command, with every field pointing elsewhere: each is answered, none touches or tells a file. */
async function everyCommand(core0: Core0): Promise<string> {
  const before = JSON.stringify(await core0.files());
  let count = 0;
  for (const command of Object.values(Command).filter((c) => typeof c === "number")) {
    if (NOT_ASKED.has(command)) continue;
    // Of an import only the end is answered.
    const fields = command === Command.IMPORT ? { ...HOSTILE, import_data: undefined } : HOSTILE;
    const a = await core0.ask(command, fields);
    if (Buffer.from(DaemonToController.encode(a)).includes(SECRET))
      return `won: ${Command[command]} tells a secret`;
    if (JSON.stringify(await core0.files()) !== before) return `won: ${Command[command]} changes files`;
    count++;
  }
  return `held: ${count} commands`;
}

/** One that removes what it is asked to, by its name. */
async function trusting(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "trusting-"));
  const os = join(folder, "operatingsystems/x");
  mkdirSync(os, { recursive: true });
  mkdirSync(join(folder, "keys"));
  try {
    return await everyCommand({
      async ask(command, { guestos_name }) {
        if (command === Command.REMOVE_GUESTOS) rmSync(join(os, guestos_name!), { recursive: true });
        return DaemonToController.decode(
          DaemonToController.encode({ code: DaemonToController.Code.RESPONSE }),
        );
      },
      files: async () => readdirSync(folder),
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export const configuration: readonly Attack[] = [
  { row: 19, name: "line ends and paths in names and values", attempt: refused(LINES), proof: parsed(LINES) },
  {
    row: 20,
    name: "an interface that is stored in a configuration is judged as if it had stood there",
    attempt: (g) =>
      made(g, async (container_uuids) => {
        const stored = async () =>
          JSON.stringify(await g.ask(Command.GET_CONTAINER_CONFIG, { container_uuids }));
        const before = await stored();
        for (const iface_name of INTERFACES) {
          const fields = { container_uuids, assign_iface_params: { iface_name, persistent: true } };
          const a = await g.ask(Command.CONTAINER_ASSIGNIFACE, fields);
          if (a.response === Response.CMD_OK) return `won: ${JSON.stringify(iface_name)}`;
          if ((await stored()) !== before) return `won: ${JSON.stringify(iface_name)} is stored`;
        }
        return "held: none is taken";
      }),
    proof: async () => {
      // An edit of the message as it was read, without judging what comes of it.
      const message = parse(ContainerConfig, container("plain", "", "any"));
      message.net_ifaces.push({ netif: "a\nb" } as never);
      return message.net_ifaces.length === 1 ? "won: it is in the configuration" : "held";
    },
  },
  {
    row: 20,
    name: "a change of a configuration is judged whole",
    attempt: refused(GREEDY.slice(0, 2)),
    proof: parsed(GREEDY),
  },
  { row: 37, name: "values that take too much", attempt: refused(GREEDY), proof: parsed(GREEDY) },
  {
    row: 37,
    name: "images of a GuestOS that lie elsewhere",
    attempt: async (g) => {
      const mount = (image: string, type: string, point = "/") =>
        `mounts { image_file: "${image}" mount_point: "${point}" fs_type: "ext4" mount_type: ${type} image_size: 1 }`;
      const cases: readonly Case[] = [
        ["image_file", mount("/etc/passwd", "SHARED")],
        ["image_file", mount("../../containers/x/data", "SHARED_RW")],
        ["image_file", mount("/dev/../etc/shadow", "DEVICE")],
        ["image_file", mount("/etc/shadow", "DEVICE_RW")],
        ["image_file", mount("../keys/x", "BIND_FILE_RW")],
        ["mount_point", mount("root", "SHARED", "/../x")],
        [
          "def_size",
          'mounts { image_file: "d" mount_point: "/d" fs_type: "ext4" mount_type: EMPTY def_size: 99999999 }',
        ],
        ["init_path", 'init_path: "/../bin/sh"'],
        ["name", 'name: "../evil"'],
      ];
      for (const [field, text] of cases) {
        const head = /^name:/.test(text) ? "" : 'name: "evil"\n';
        const source = `${head}hardware: "x86"\nversion: 1\ndescription { en: "evil" }\n${/init_path/.test(text) ? "" : 'init_path: "/sbin/init"\n'}${text}\n`;
        // Whoever may sign has signed it: what it says is what is judged.
        const guestos_config_file = Buffer.from(source);
        const by = signature(guestos_config_file);
        const a = await g.ask(Command.PUSH_GUESTOS_CONFIG, {
          guestos_config_file,
          guestos_config_signature: by.signature,
          guestos_config_certificate: by.certificate,
        });
        if (a.response !== Response.GUESTOS_MGR_INSTALL_FAILED) return `won: ${text}`;
        if (!a.error_text?.includes(field))
          return `won: ${text} is refused without a word on it: ${a.error_text}`;
      }
      return `held: ${cases.length} are refused`;
    },
    proof: parsed(GREEDY),
  },
  {
    row: 38,
    name: "every command on core0's socket, with paths of the CML in every field",
    attempt: (g) => everyCommand(g.core0!),
    proof: trusting,
    only: "machine",
  },
  {
    row: 39,
    name: "what makes a runtime load other code, in files and environment of a container",
    guest: loaders,
    attempt: async (g) => {
      const end = await inside(g, loaders, "held ran", { cwd: "/tmp" });
      const found = await g.baited();
      return found.length > 0 ? `won: ${found}` : end;
    },
    proof:
      "the executable is built without these ways in: there is nothing that a container's composition could leave out",
  },
];
