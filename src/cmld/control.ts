// The control protocol: one row per command with who may use it, how its failure is told, and what it does. A command
// without a row does not compile. Every request except CONTAINER_EXEC_INPUT gets exactly one final answer, and every
// failure says in error_text what was tried, on what, and why not.
//
// Requests of one connection are handled one after the other. Three go on after they were answered or begun: EVENTS
// and LOGS with log_follow until the client hangs up, EXEC_CMD until its EXEC_END.
import * as proto from "../../proto/gen/proto.js";
import { FRAME_MAX } from "../lib/frame.ts";
import { Ration } from "../lib/log.ts";
import { C0, parseUuid } from "../lib/uuid.ts";
import { chain } from "../sys/error.ts";
import { overwriteReceived } from "../sys/received.ts";
import { Secret } from "../sys/secret.ts";
import type { Auditor } from "./audit/audit.ts";
import { shownName } from "./config.ts";
import type { ContainerLife } from "./container.ts";
import type { Stored } from "./containers.ts";
import type { Client as ExecClient, Request as ExecRequest, Session } from "./exec.ts";
import type { GuestOs, Installation, Progress } from "./images/guestos.ts";
import type { Signature, Trust } from "./images/trust.ts";
import { hasToken, type Reason, TokenRefused } from "./keys/tokens.ts";
import { NotProvisioning } from "./scd.ts";
import type { Limits, Peer, Protocol } from "./socket.ts";

type Request = proto.ControllerToDaemon;
type Answer = proto.IDaemonToController;
const { Command } = proto.ControllerToDaemon;
const { Code, Response } = proto.DaemonToController;
const { GuestOSMount } = proto;

/** A container as the protocol sees it. */
export interface Known extends ContainerLife {
  readonly stored: Stored;
  readonly isC0: boolean;
}

/** A piece of a log; `last` is the last one of its file. */
export interface LogPiece {
  readonly file: string;
  readonly bytes: Uint8Array;
  readonly last: boolean;
}

/** Which log: a file of the daemon's; or all of the daemon, or of what a container wrote to its console, as far as
 * the newest `lines` of them go, and with `follow` on and on until it is aborted. */
export type LogSource =
  | { readonly file: string }
  | { readonly container: Known | undefined; readonly lines?: number; readonly follow?: AbortSignal };

export interface StateEvent {
  readonly container: string;
  readonly message: proto.IContainerEvent;
}

/** What the rows do their work with. Every method rejects with a sentence. */
export interface Daemon {
  readonly hosted: boolean;
  readonly provisioned: boolean;
  readonly deviceUuid: string | undefined;
  containers(): readonly Known[];
  container(uuid: string): Known | undefined;
  status(c: Known): proto.IContainerStatus;
  /** As stored, with what is known only while it runs. */
  configuration(c: Known): proto.IContainerConfig;
  create(source: Uint8Array, signed?: Signature): Promise<Known>;
  update(c: Known, source: Uint8Array, signed?: Signature): Promise<Known>;
  /** Resolves when it is gone or, if it runs, has been killed and is going. */
  remove(c: Known): Promise<void>;
  wipe(c: Known): Promise<void>;
  /** Resolves with a line for each configuration that could not be taken. */
  reload(): Promise<readonly string[]>;
  /** `pin`: of its token. A wrapped key that is damaged makes it ZOMBIE. Rejects with a TokenRefused where the token gives no
   * key, as the next two do. */
  start(c: Known, setup: boolean, pin?: Secret): Promise<void>;
  checkPin(c: Known, pin: Secret): Promise<void>;
  changePin(c: Known, pin: Secret, fresh: Secret): Promise<void>;
  /** A PIN that somebody types at the keypad which its configuration names. */
  typedPin(c: Known, gone: AbortSignal): Promise<Secret>;
  /** A new recovery key of its volumes. `pin` where a token protects them. */
  recoveryKey(c: Known, pin: Secret | undefined): Promise<Secret>;
  /** A backup, piece by piece. By its recovery key where the token is lost. */
  save(
    c: Known,
    by: { readonly pin?: Secret | undefined; readonly recovery?: Secret | undefined },
    to: (piece: Uint8Array) => Promise<void>,
  ): Promise<void>;
  /** A container from a backup; the recovery key is taken over. */
  restore(recovery: Secret): Promise<Restoring>;
  explain(c: Known): Promise<string[]>;
  exec(c: Known, request: ExecRequest, client: ExecClient): Session;
  /** As `ip link` prints them, and as data. */
  interfaces(c: Known): Promise<{ texts: string[]; table: proto.IContainerInterface[] }>;
  assignInterface(c: Known, name: string, persistent: boolean): Promise<void>;
  unassignInterface(c: Known, name: string, persistent: boolean): Promise<void>;
  deviceAccess(c: Known, rule: string): Promise<void>;
  stats(c: Known): proto.IContainerStats;

  /** Signatures, roots, the device's certificate. */
  readonly trust: Pick<Trust, "registerRoot" | "registerLocalRoot" | "csr" | "acceptCertificate">;
  guestOses(): readonly GuestOs[];
  /** `uid`: the client's. */
  push(source: Uint8Array, uid: number, signed?: Signature, progress?: Progress): Promise<Installation>;
  removeGuestOs(name: string): Promise<void>;

  deviceStats(): Promise<proto.IDeviceStats>;
  setProvisioned(): Promise<void>;
  /** Resolves when it has begun. */
  reboot(): Promise<void>;
  wipeDevice(): Promise<void>;

  /** The daemon's own log files, oldest first. */
  logFiles(): Promise<string[]>;
  log(source: LogSource): AsyncIterable<LogPiece>;
  removeLog(file: string): Promise<void>;
  onEvent(tell: (event: StateEvent) => void): Disposable;
  /** What keeps records, if audit_size asks for them. */
  readonly audit: Auditor | undefined;

  info(line: string): void;
  warn(line: string): void;
}

/** A backup that is coming in. */
export interface Restoring {
  push(piece: Uint8Array): Promise<void>;
  /** The container that was made of it. */
  done(): Promise<Known>;
  abort(): Promise<void>;
}

/** One connection. */
interface Client {
  readonly peer: Peer;
  readonly privileged: boolean;
  send(answer: Answer): Promise<void>;
  info(line: string): void;
  warn(line: string): void;
  /** What guests ask for is recorded as long as it does not fill the trail. */
  recordable(): boolean;
  exec: { readonly uuid: string; readonly session: Session; room: () => void } | undefined;
  restoring: { into: Restoring | undefined; failed: unknown } | undefined;
}

interface Row {
  /** Allowed on sockets of containers that may install guests. */
  readonly guest?: true;
  /** Allowed on a provisioned device. */
  readonly provisioned?: true;
  /** Changes something: one line in the log. */
  readonly logged?: true;
  /** The answer if run() throws; the sentence is added. */
  readonly failure: Answer;
  /** Undefined: everything was sent, or will be. */
  run(d: Daemon, r: Request, c: Client): Promise<Answer | undefined> | Answer | undefined;
}

const response = (r: proto.DaemonToController.Response): Answer => ({ code: Code.RESPONSE, response: r });
const OK = response(Response.CMD_OK);
const FAILED = response(Response.CMD_FAILED);
const UNSUPPORTED = response(Response.CMD_UNSUPPORTED);
const refused = (r: proto.DaemonToController.Response, text: string): Answer => ({
  ...response(r),
  error_text: text,
});

/** For run(): fails with another answer than the row's. */
class Refused extends Error {
  constructor(
    readonly answer: proto.DaemonToController.Response,
    text: string,
  ) {
    super(text);
  }
}

/** A subsystem that is not there yet. */
const missing = (what: string): Row => ({
  logged: true,
  failure: UNSUPPORTED,
  run: () => refused(Response.CMD_UNSUPPORTED, `${what} is not available yet`),
});

/** The one container that a request names. */
function one(d: Daemon, r: Request): Known {
  const { container_uuids: uuids } = r;
  if (uuids.length !== 1) throw new Error(`one container is needed, the request names ${uuids.length}`);
  const uuid = parseUuid(uuids[0]!);
  if (!uuid) throw new Error(`${JSON.stringify(uuids[0])} is no uuid`);
  const c = d.container(uuid);
  if (!c) throw new Error(`there is no container ${uuid}`);
  return c;
}

const orUndefined = (d: Daemon, r: Request): Known | undefined => {
  try {
    return one(d, r);
  } catch {
    return undefined;
  }
};

/** Those named, or all; names that are not known are left out, as the original does. Each once: a message holds a
 * million and more of the same name, and each would be an answer of its own. */
const some = (d: Daemon, r: Request): Known[] =>
  r.container_uuids.length === 0
    ? [...d.containers()]
    : [...new Set(r.container_uuids.map((text) => d.container(parseUuid(text) ?? "")))].filter((c) => !!c);

function need<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new Error(`${what} is missing`);
  return value;
}

const notC0 = (c: Known, what: string): void => {
  if (c.isC0) throw new Refused(Response.CMD_UNSUPPORTED, `core0 cannot be ${what}`);
};

const configOf = (d: Daemon, all: readonly Known[]): Answer => ({
  code: Code.CONTAINER_CONFIG,
  container_configs: all.map((c) => d.configuration(c)),
  container_uuids: all.map((c) => c.uuid),
});

const bytes = (b: Uint8Array | undefined): Uint8Array | undefined =>
  b && b.length > 0 ? b.slice() : undefined; // fields lie in the frame, which is large

// --- the table ----------------------------------------------------------------

const onContainer =
  (act: (d: Daemon, c: Known) => void | Promise<void>): Row["run"] =>
  async (d, r) => {
    await act(d, one(d, r));
    return OK;
  };

const ROWS: Record<proto.ControllerToDaemon.Command, Row> = {
  [Command.LIST_GUESTOS_CONFIGS]: {
    guest: true,
    provisioned: true,
    failure: FAILED,
    run: (d) => ({
      code: Code.GUESTOS_CONFIGS_LIST,
      guestos_configs: d.guestOses().map((os) => os.message),
    }),
  },
  [Command.LIST_CONTAINERS]: {
    provisioned: true,
    failure: FAILED,
    run: (d) => ({ code: Code.CONTAINERS_LIST, container_uuids: d.containers().map((c) => c.uuid) }),
  },
  [Command.GET_CONTAINER_STATUS]: {
    provisioned: true,
    failure: FAILED,
    run: (d, r) => ({ code: Code.CONTAINER_STATUS, container_status: some(d, r).map((c) => d.status(c)) }),
  },
  [Command.GET_CONTAINER_CONFIG]: {
    provisioned: true,
    failure: FAILED,
    run: (d, r) => configOf(d, some(d, r)),
  },
  [Command.GET_LAST_LOG]: { provisioned: true, failure: FAILED, run: lastLog },
  [Command.GET_DEVICE_STATS]: {
    provisioned: true,
    failure: FAILED,
    run: async (d) => ({ code: Code.DEVICE_STATS, device_stats: await d.deviceStats() }),
  },
  [Command.PUSH_GUESTOS_CONFIG]: {
    guest: true,
    provisioned: true,
    logged: true,
    failure: response(Response.GUESTOS_MGR_INSTALL_FAILED),
    async run(d, r, c) {
      const source = need(bytes(r.guestos_config_file), "guestos_config_file");
      const installation = await d.push(
        source,
        c.peer.uid,
        pair(r.guestos_config_signature, r.guestos_config_certificate),
        r.want_progress ? progressTo(c) : undefined,
      );
      installation.finished.catch(() => {}); // told below, also if the client is gone meanwhile
      await c.send(response(Response.GUESTOS_MGR_INSTALL_STARTED));
      await installation.finished;
      return response(Response.GUESTOS_MGR_INSTALL_COMPLETED);
    },
  },
  [Command.RELOAD_CONTAINERS]: {
    logged: true,
    failure: FAILED,
    async run(d) {
      const [first, ...more] = await d.reload();
      if (first === undefined) return OK;
      return {
        ...OK,
        error_text: more.length === 0 ? first : `${first}, and ${more.length} more: see the log`,
      };
    },
  },
  [Command.CREATE_CONTAINER]: {
    provisioned: true,
    logged: true,
    failure: { code: Code.CONTAINER_CONFIG },
    async run(d, r) {
      const source = need(bytes(r.container_config_file), "container_config_file");
      const c = await d.create(source, signed(r));
      return configOf(d, [c]);
    },
  },
  [Command.REMOVE_CONTAINER]: {
    logged: true,
    failure: FAILED,
    run: onContainer((d, c) => {
      if (c.isC0) throw new Error("core0 cannot be removed");
      return d.remove(c);
    }),
  },
  [Command.REGISTER_LOCALCA]: {
    guest: true,
    logged: true,
    failure: response(Response.GUESTOS_MGR_REGISTER_CA_ERROR),
    async run(d, r) {
      await d.trust.registerLocalRoot(need(bytes(r.guestos_rootcert), "guestos_rootcert"));
      return response(Response.GUESTOS_MGR_REGISTER_CA_OK);
    },
  },
  [Command.REGISTER_NEWCA]: {
    logged: true,
    failure: response(Response.GUESTOS_MGR_REGISTER_CA_ERROR),
    async run(d, r) {
      await d.trust.registerRoot(need(bytes(r.guestos_rootcert), "guestos_rootcert"));
      return response(Response.GUESTOS_MGR_REGISTER_CA_OK);
    },
  },
  [Command.REMOVE_GUESTOS]: {
    logged: true,
    failure: FAILED,
    async run(d, r) {
      await d.removeGuestOs(need(r.guestos_name, "guestos_name"));
      return OK;
    },
  },
  [Command.WIPE_DEVICE]: {
    logged: true,
    failure: FAILED,
    async run(d) {
      await d.wipeDevice();
      return OK;
    },
  },
  [Command.REBOOT_DEVICE]: {
    provisioned: true,
    logged: true,
    failure: FAILED,
    async run(d) {
      await d.reboot();
      return OK;
    },
  },
  [Command.SET_PROVISIONED]: {
    logged: true,
    failure: FAILED,
    async run(d) {
      await d.setProvisioned();
      return OK;
    },
  },
  [Command.GET_PROVISIONED]: {
    provisioned: true,
    failure: FAILED,
    run: (d) => ({ code: Code.DEVICE_PROVISIONED_STATE, device_is_provisioned: d.provisioned }),
  },
  [Command.DESTROY_SYSTEM]: { ...missing("clearing the TPM"), provisioned: true },
  // Where scd says no there is an answer without the field, as the original's.
  [Command.PULL_DEVICE_CSR]: {
    failure: { code: Code.DEVICE_CSR },
    run: async (d) => ({ code: Code.DEVICE_CSR, device_csr: await d.trust.csr() }),
  },
  [Command.PUSH_DEVICE_CERT]: {
    logged: true,
    failure: response(Response.DEVICE_CERT_ERROR),
    async run(d, r) {
      try {
        await d.trust.acceptCertificate(need(bytes(r.device_cert), "device_cert"));
      } catch (e) {
        if (e instanceof NotProvisioning) throw new Refused(Response.DEVICE_PROVISIONING_ERROR, e.message);
        throw e;
      }
      return response(Response.DEVICE_CERT_OK);
    },
  },
  [Command.CHANGE_DEVICE_PIN]: {
    failure: UNSUPPORTED,
    run: () => refused(Response.CMD_UNSUPPORTED, "there is no device PIN any more"),
  },
  [Command.CONTAINER_START]: {
    provisioned: true,
    logged: true,
    failure: response(Response.CONTAINER_START_EINTERNAL),
    run: start,
  },
  [Command.CONTAINER_STOP]: {
    provisioned: true,
    logged: true,
    failure: response(Response.CONTAINER_STOP_FAILED_NOT_RUNNING),
    async run(d, r, client) {
      const c = one(d, r);
      notC0(c, "stopped");
      if (c.state === "ZOMBIE")
        throw new Refused(Response.CONTAINER_CTRL_EINTERNAL, `${nameOf(c)} is ZOMBIE: wipe it first`);
      using pin = await pinOf(d, r, c, client, STOP);
      if (pin) await asked(d.checkPin(c, pin), STOP);
      await c.stop();
      return response(Response.CONTAINER_STOP_OK);
    },
  },
  [Command.CONTAINER_SWITCH]: {
    failure: UNSUPPORTED,
    run: () => refused(Response.CMD_UNSUPPORTED, "containers do not take turns at a screen"),
  },
  [Command.CONTAINER_FREEZE]: { logged: true, failure: FAILED, run: onContainer((_, c) => c.freeze()) },
  [Command.CONTAINER_UNFREEZE]: { logged: true, failure: FAILED, run: onContainer((_, c) => c.unfreeze()) },
  [Command.CONTAINER_WIPE]: { logged: true, failure: FAILED, run: onContainer((d, c) => d.wipe(c)) },
  // The next three do nothing and always have: existing scripts call them.
  [Command.CONTAINER_SNAPSHOT]: { failure: FAILED, run: onContainer(() => {}) },
  [Command.CONTAINER_ALLOWAUDIO]: { failure: FAILED, run: onContainer(() => {}) },
  [Command.CONTAINER_DENYAUDIO]: { failure: FAILED, run: onContainer(() => {}) },
  [Command.CONTAINER_ASSIGNIFACE]: {
    logged: true,
    failure: FAILED,
    async run(d, r) {
      const c = one(d, r);
      const p = need(r.assign_iface_params, "assign_iface_params");
      await d.assignInterface(c, need(p.iface_name, "iface_name"), p.persistent ?? false);
      return OK;
    },
  },
  [Command.CONTAINER_UNASSIGNIFACE]: {
    logged: true,
    failure: FAILED,
    async run(d, r) {
      const c = one(d, r);
      const p = need(r.assign_iface_params, "assign_iface_params");
      await d.unassignInterface(c, need(p.iface_name, "iface_name"), p.persistent ?? false);
      return OK;
    },
  },
  [Command.CONTAINER_LIST_IFACES]: {
    provisioned: true,
    failure: FAILED,
    async run(d, r) {
      const { texts, table } = await d.interfaces(one(d, r));
      return { code: Code.CONTAINER_IFACES, container_ifaces: texts, interfaces: table };
    },
  },
  [Command.CONTAINER_EXEC_CMD]: { logged: true, failure: { code: Code.EXEC_END }, run: execute },
  [Command.CONTAINER_EXEC_INPUT]: { failure: FAILED, run: input },
  [Command.CONTAINER_UPDATE_CONFIG]: {
    provisioned: true,
    logged: true,
    failure: { code: Code.CONTAINER_CONFIG },
    async run(d, r) {
      const c = one(d, r);
      const source = need(bytes(r.container_config_file), "container_config_file");
      return configOf(d, [await d.update(c, source, signed(r))]);
    },
  },
  [Command.CONTAINER_CHANGE_TOKEN_PIN]: {
    provisioned: true,
    logged: true,
    failure: response(Response.CONTAINER_CHANGE_PIN_FAILED),
    async run(d, r) {
      using pin = Secret.take(need(r.device_pin, "device_pin"));
      using fresh = Secret.take(need(r.device_newpin, "device_newpin"));
      const c = one(d, r);
      if (!hasToken(c)) throw new Error(`${nameOf(c)} has no token: token_type is NONE`);
      await d.changePin(c, pin, fresh);
      return response(Response.CONTAINER_CHANGE_PIN_SUCCESSFUL);
    },
  },
  [Command.CONTAINER_CMLD_HANDLES_PIN]: {
    provisioned: true,
    failure: FAILED,
    run: (d, r) => ({
      code: Code.CONTAINER_CMLD_HANDLES_PIN,
      container_cmld_handles_pin: one(d, r).config.usb_pin_entry,
    }),
  },
  [Command.CONTAINER_DEV_ACCESS]: {
    logged: true,
    failure: FAILED,
    async run(d, r) {
      await d.deviceAccess(one(d, r), need(r.dev_rule, "dev_rule"));
      return OK;
    },
  },
  [Command.EVENTS]: { provisioned: true, failure: FAILED, run: events },
  [Command.STATS]: {
    provisioned: true,
    failure: FAILED,
    run(d, r) {
      const all = some(d, r);
      const named = r.container_uuids.length > 0;
      return {
        code: Code.CONTAINER_STATS,
        stats: all.filter((c) => named || c.pid !== undefined).map((c) => d.stats(c)),
      };
    },
  },
  [Command.LOGS]: { provisioned: true, failure: FAILED, run: logs },
  [Command.AUDIT]: { provisioned: true, failure: FAILED, run: audit },
  [Command.EXPLAIN]: {
    provisioned: true,
    failure: FAILED,
    run: async (d, r) => ({ code: Code.CONTAINER_PROGRAM, program: { ops: await d.explain(one(d, r)) } }),
  },
  [Command.EXEC_RESIZE]: {
    failure: FAILED,
    run(_, r, c) {
      if (!c.exec) throw new Error("no command of this connection runs");
      c.exec.session.resize(need(r.exec_rows, "exec_rows"), need(r.exec_cols, "exec_cols"));
      return OK;
    },
  },
  [Command.EXPORT]: {
    logged: true,
    failure: FAILED,
    async run(d, r, client) {
      const c = one(d, r);
      using recovery = r.import_data ? Secret.take(r.import_data) : undefined;
      using pin = recovery ? undefined : await pinOf(d, r, c, client, START);
      await asked(
        d.save(c, { pin, recovery }, async (export_data) => {
          if (client.peer.gone.aborted) throw new Error("the client is gone");
          await client.send({ code: Code.EXPORT_DATA, export_data });
        }),
        START,
      );
      return OK;
    },
  },
  [Command.IMPORT]: { logged: true, failure: FAILED, run: restore },
  [Command.RECOVERY_KEY]: {
    logged: true,
    failure: FAILED,
    async run(d, r, client) {
      const c = one(d, r);
      using pin = await pinOf(d, r, c, client, START);
      using recovery = await asked(d.recoveryKey(c, pin), START);
      await recovery.lend((export_data) => client.send({ code: Code.EXPORT_DATA, export_data }));
      return undefined;
    },
  },
};

// --- the longer ones --------------------------------------------------------------

const nameOf = (c: Known): string => shownName(c.config.name);

/** So often at most, a client hears how far a download is. */
const PROGRESS_MS = 250;

function progressTo(client: Client): Progress {
  let last = Number.NEGATIVE_INFINITY;
  return ({ file, bytes: there, of }) => {
    const at = performance.now();
    if (at - last < PROGRESS_MS && there !== of) return;
    last = at;
    const install_progress = { file, bytes: there, ...(of !== undefined && { of }) };
    client.send({ ...response(Response.GUESTOS_MGR_INSTALL_STARTED), install_progress }).catch(() => {}); // it is gone
  };
}

/** Signature and certificate count as a pair only. */
function pair(first: Uint8Array | undefined, second: Uint8Array | undefined): Signature | undefined {
  const [signature, certificate] = [bytes(first), bytes(second)];
  return signature && certificate && { signature, certificate };
}
const signed = (r: Request) => pair(r.container_config_signature, r.container_config_certificate);

/** spec/core.md 2.3: what each refusal of a token is called. */
type Words = Readonly<Record<Reason, proto.DaemonToController.Response>>;
const START: Words = {
  uninitialised: Response.CONTAINER_START_TOKEN_UNINIT,
  unpaired: Response.CONTAINER_START_TOKEN_UNPAIRED,
  internal: Response.CONTAINER_START_EINTERNAL,
  corrupt: Response.CONTAINER_START_EINTERNAL,
  "unlock failed": Response.CONTAINER_START_UNLOCK_FAILED,
  "wrong PIN": Response.CONTAINER_START_PASSWD_WRONG,
  "locked till reboot": Response.CONTAINER_LOCKED_TILL_REBOOT,
  "lock failed": Response.CONTAINER_START_LOCK_FAILED,
};
const STOP: Words = {
  ...START,
  "unlock failed": Response.CONTAINER_STOP_UNLOCK_FAILED,
  "wrong PIN": Response.CONTAINER_STOP_PASSWD_WRONG,
  "lock failed": Response.CONTAINER_STOP_LOCK_FAILED,
};

async function asked<T>(token: Promise<T>, words: Words): Promise<T> {
  try {
    return await token;
  } catch (e) {
    throw e instanceof TokenRefused ? new Refused(words[e.reason], chain(e)) : e;
  }
}

const { EMPTY, OVERLAY_RW } = GuestOSMount.Type;
const hasVolume = (c: Known): boolean =>
  (c.guestos?.mounts ?? []).some(
    (m) => m.mount_type === OVERLAY_RW || (m.mount_type === EMPTY && !m.fs_type.startsWith("tmpfs")),
  );

/** The PIN that a request comes with, or that is typed for it; undefined where none is needed. What it lies in is wiped. */
async function pinOf(
  d: Daemon,
  r: Request,
  c: Known,
  client: Client,
  words: Words,
): Promise<Secret | undefined> {
  const given = r.container_start_params;
  const pin = given?.key && Secret.take(given.key);
  if (hasToken(c) && c.config.usb_pin_entry) {
    pin?.[Symbol.dispose]();
    try {
      return await d.typedPin(c, client.peer.gone);
    } catch (e) {
      throw new Refused(Response.CONTAINER_USB_PIN_ENTRY_FAIL, `${nameOf(c)}: ${chain(e)}`);
    }
  }
  if (hasToken(c) && pin) return pin;
  pin?.[Symbol.dispose](); // a container without a token: the original's client sends one all the same
  if (hasToken(c) && (given || hasVolume(c)))
    throw new Refused(words["wrong PIN"], `${nameOf(c)}: its token needs a PIN`);
  return undefined;
}

const UP = new Set(["RUNNING", "BOOTING", "SETUP", "REBOOTING", "STARTING"]);

async function start(d: Daemon, r: Request, client: Client): Promise<Answer> {
  const c = orUndefined(d, r);
  if (!c) {
    try {
      one(d, r);
    } catch (cause) {
      const which = r.container_uuids.slice(0, 1).join();
      const meta = { error: chain(cause) };
      d.audit?.record("FSA", "CONTAINER_MGMT", "container-start-not-existing", which, meta, true);
      throw new Refused(Response.CONTAINER_START_EEXIST, chain(cause));
    }
    throw new Error("unreachable");
  }
  notC0(c, "started");
  const name = nameOf(c);
  if (UP.has(c.state)) {
    d.audit?.record("FSA", "CONTAINER_MGMT", "container-start-already-running", c.uuid, {}, true);
    throw new Refused(Response.CONTAINER_START_EEXIST, `${name} is ${c.state} already`);
  }
  if (c.state === "ZOMBIE")
    throw new Refused(Response.CONTAINER_CTRL_EINTERNAL, `${name} is ZOMBIE: wipe it first`);
  using pin = await pinOf(d, r, c, client, START);
  await asked(d.start(c, r.container_start_params?.setup ?? false, pin), START);
  return response(Response.CONTAINER_START_OK);
}

/** IMPORT messages, until an empty one, which is the one that is answered; what comes after a failure is thrown away. */
async function restore(d: Daemon, r: Request, c: Client): Promise<Answer | undefined> {
  const last = r.import_data === undefined || r.import_data.length === 0;
  c.restoring ??= { into: undefined, failed: undefined };
  const { restoring } = c;
  try {
    if (restoring.failed !== undefined) throw restoring.failed;
    if (!restoring.into) {
      const into = await d.restore(Secret.take(need(r.container_start_params?.key, "the recovery key")));
      restoring.into = into;
      c.peer.gone.addEventListener("abort", () => void into.abort(), { once: true });
      if (c.peer.gone.aborted) await into.abort();
    }
    if (!last) {
      await restoring.into.push(r.import_data!);
      return undefined;
    }
    const made = await restoring.into.done();
    c.restoring = undefined;
    return { ...OK, container_uuids: [made.uuid] };
  } catch (e) {
    await restoring.into?.abort();
    restoring.failed = e;
    if (!last) return undefined;
    c.restoring = undefined;
    throw e;
  }
}

async function lastLog(d: Daemon, r: Request, c: Client): Promise<Answer> {
  const files = await d.logFiles();
  if (files.length === 0) throw new Error("there is no log file");
  for (const file of files) {
    await sendLog(d, c, d.log({ file }));
    if (c.peer.gone.aborted) return OK;
    if (r.remove_logs) await d.removeLog(file);
  }
  return OK;
}

async function sendLog(d: Daemon, c: Client, pieces: AsyncIterable<LogPiece>): Promise<void> {
  for await (const piece of pieces) {
    if (c.peer.gone.aborted) return;
    await c.send(logAnswer(d, piece));
  }
}

const logAnswer = (d: Daemon, piece: LogPiece): Answer => ({
  code: piece.last ? Code.LOG_MESSAGE_FINAL : Code.LOG_MESSAGE_FRAGMENT,
  log_message: { name: piece.file, msg: piece.bytes },
  device_uuid: d.deviceUuid,
});

/** Bytes that may wait for somebody who follows; then the connection ends, for a gap would not be seen. */
const FOLLOW_MAX = 4 << 20;

const whileThere = (peer: Peer, subscription: Disposable): void =>
  peer.during(
    new Promise<void>((done) => {
      const end = () => {
        subscription[Symbol.dispose]();
        done();
      };
      if (peer.gone.aborted) end();
      else peer.gone.addEventListener("abort", end, { once: true });
    }),
  );

/** To somebody who does not ask, but listens. */
function tell(c: Client, answer: Answer): void {
  void c.send(answer);
  if (c.peer.queued > FOLLOW_MAX) c.peer.close();
}

async function logs(d: Daemon, r: Request, c: Client): Promise<Answer | undefined> {
  const container = r.container_uuids.length > 0 ? one(d, r) : undefined;
  const source = { container, ...(r.log_lines !== undefined && { lines: r.log_lines }) };
  if (!r.log_follow) {
    await sendLog(d, c, d.log(source));
    return OK;
  }
  const pieces = d.log({ ...source, follow: c.peer.gone });
  c.peer.during(
    sendLog(d, c, pieces).catch(async (e) => {
      await c.send({ ...FAILED, error_text: chain(e) });
      c.peer.close();
    }),
  );
  return undefined;
}

/** The records of one container, or of the CML. */
async function audit(d: Daemon, r: Request, c: Client): Promise<Answer | undefined> {
  const trails = d.audit;
  if (!trails) throw new Error("audit_size in device.conf is 0: no records are kept");
  const uuid = r.container_uuids.length > 0 ? one(d, r).uuid : C0;
  const sent = async (follow?: AbortSignal): Promise<void> => {
    const options = { ...(r.log_lines !== undefined && { lines: r.log_lines }), ...(follow && { follow }) };
    for await (const some of trails.read(uuid, options)) {
      if (c.peer.gone.aborted) return;
      await c.send({ code: Code.AUDIT_RECORDS, audit_records: some.map((s) => s.record) });
    }
  };
  if (!r.log_follow) {
    await sent();
    return OK;
  }
  c.peer.during(
    sent(c.peer.gone).catch(async (e) => {
      await c.send({ ...FAILED, error_text: chain(e) });
      c.peer.close();
    }),
  );
  return undefined;
}

async function events(d: Daemon, r: Request, c: Client): Promise<undefined> {
  const wanted = new Set(r.container_uuids.map((u) => parseUuid(u) ?? u));
  await c.send(OK);
  const subscription = d.onEvent((e) => {
    if (wanted.size === 0 || wanted.has(e.container))
      tell(c, { code: Code.CONTAINER_EVENT, event: e.message });
  });
  whileThere(c.peer, subscription);
}

function execute(d: Daemon, r: Request, c: Client): undefined {
  const container = one(d, r);
  const name = nameOf(container);
  if (c.exec) throw new Error("a command of this connection runs already");
  const command = need(r.exec_command || undefined, "exec_command");
  if (!["BOOTING", "RUNNING", "SETUP"].includes(container.state))
    throw new Error(`${name} is ${container.state}: not running`);
  let over: () => void = () => {};
  const work = new Promise<void>((done) => (over = done));
  const client: ExecClient = {
    output(piece) {
      const room = c.send({ code: Code.EXEC_OUTPUT, exec_output: piece });
      if (c.peer.queued === 0) return true;
      void room.then(() => c.exec?.session.resume());
      return false;
    },
    writable: () => c.exec?.room(),
    ended({ status, signal, error }) {
      c.exec?.room();
      c.exec = undefined;
      void c.send({
        code: Code.EXEC_END,
        exit_status: status,
        exit_signal: signal,
        error_text: error,
      });
      over();
    },
  };
  const session = d.exec(
    container,
    {
      argv: [command, ...r.exec_args.slice(1)],
      pty: r.exec_pty,
      env: r.exec_env,
      ...(r.exec_user !== undefined && { user: r.exec_user }),
      ...(r.exec_cwd !== undefined && { cwd: r.exec_cwd }),
      ...(r.exec_rows !== undefined && { rows: r.exec_rows }),
      ...(r.exec_cols !== undefined && { cols: r.exec_cols }),
    },
    client,
  );
  c.exec = { uuid: container.uuid, session, room: () => {} };
  c.peer.during(work);
  c.peer.gone.addEventListener("abort", () => {
    if (c.exec?.session !== session) return;
    c.exec.room();
    c.exec = undefined;
    session.hangup();
    over();
  });
}

/** Never answered: the original's client would end. What cannot be delivered is dropped. */
async function input(d: Daemon, r: Request, c: Client): Promise<undefined> {
  const running = c.exec;
  const piece = r.exec_input_bytes ?? r.exec_input;
  if (!running || orUndefined(d, r)?.uuid !== running.uuid || !piece) return;
  if (piece.length === 0) running.session.endInput();
  else if (!running.session.input(piece.slice()))
    await new Promise<void>((room) => {
      running.room = room;
      if (c.exec !== running) room(); // it ended, or the client went, meanwhile
    });
}

// --- the door -----------------------------------------------------------------------

const isKnown = (command: number): command is proto.ControllerToDaemon.Command => command in ROWS;

/** Why a command may not be used here, or undefined. */
export function gate(
  d: Pick<Daemon, "hosted" | "provisioned">,
  command: number,
  privileged: boolean,
): string | undefined {
  if (!isKnown(command)) return `command ${command} is not known`;
  const name = Command[command];
  const row = ROWS[command];
  if (!privileged) return row.guest ? undefined : `${name} is not allowed on this socket`;
  if (d.provisioned && !d.hosted && !row.provisioned) return `${name} is not allowed on a provisioned device`;
  return undefined;
}

function naming(d: Daemon, r: Request): string {
  const names = r.container_uuids.slice(0, 4).map((text) => {
    const c = d.container(parseUuid(text) ?? "");
    return c ? nameOf(c) : JSON.stringify(text.slice(0, 40));
  });
  return [Command[r.command], ...names].join(" ");
}

async function handle(d: Daemon, r: Request, c: Client): Promise<void> {
  const from = `control: uid ${c.peer.uid}, pid ${c.peer.pid}`;
  const closed = gate(d, r.command, c.privileged);
  if (closed !== undefined) {
    c.warn(`${from}: ${closed}`);
    await recorded(d, r, c, closed);
    if (r.command !== Command.CONTAINER_EXEC_INPUT) await c.send(refused(Response.CMD_UNSUPPORTED, closed));
    return;
  }
  const row = ROWS[r.command];
  const what = row.logged ? naming(d, r) : "";
  if (row.logged) c.info(`${from}: ${what}`);
  let answer: Answer | undefined;
  let failed: string | undefined;
  try {
    answer = await row.run(d, r, c);
    failed = answer?.error_text ?? undefined;
  } catch (e) {
    const text = chain(e);
    failed = text;
    answer = e instanceof Refused ? refused(e.answer, text) : { ...row.failure, error_text: text };
    c.warn(`${from}: ${row.logged ? what : naming(d, r)}: ${text}`);
    if (r.command === Command.CONTAINER_EXEC_INPUT) return;
  }
  if (row.logged) await recorded(d, r, c, failed);
  if (answer) await c.send(answer);
}

/** Who asked for what, and whether it was done: on the disk before it is answered. */
async function recorded(d: Daemon, r: Request, c: Client, error: string | undefined): Promise<void> {
  if (!d.audit || !c.recordable()) return;
  const uuid = parseUuid(r.container_uuids[0] ?? "");
  d.audit.record(error === undefined ? "SUA" : "FUA", "GENERIC", "command", undefined, {
    command: isKnown(r.command) ? Command[r.command] : r.command,
    uid: c.peer.uid,
    pid: c.peer.pid,
    ...(uuid && { container: uuid }),
    ...(r.exec_command && { exec: [r.exec_command, ...r.exec_args.slice(1)].join(" ") }),
    ...(error !== undefined && { error }),
  });
  await d.audit.settled();
}

/** Lines in the log that the guests of one socket may cause at once, and the time for each one more. */
const [LINES, LINE_MS] = [40, 1_500];

/** Requests with a password that wait for their turn, whoever has sent them and is gone: what runs needs room for its keys as well
 * (sys/secret.ts). */
const SECRETS_MAX = 64;

/** The protocol on one listening socket. */
export function control(d: Daemon, privileged: boolean, limits: Limits): Protocol {
  const clients = new WeakMap<Peer, Client>();
  const ration = new Ration(LINES, LINE_MS);
  const rationed = (say: (line: string) => void) => (line: string) => {
    const some = ration.take(line);
    if (some !== undefined) say(some);
  };
  const all = { info: (line: string) => d.info(line), warn: (line: string) => d.warn(line) };
  const log = privileged ? all : { info: rationed(all.info), warn: rationed(all.warn) };
  const records = new Ration(LINES, LINE_MS);
  let secrets = 0;
  const recordable = () => privileged || records.take("") !== undefined;
  const encode = (answer: Answer): Uint8Array => proto.DaemonToController.encode(answer);
  const clientOf = (peer: Peer): Client => {
    let c = clients.get(peer);
    if (!c) {
      c = {
        peer,
        privileged,
        ...log,
        recordable,
        exec: undefined,
        restoring: undefined,
        send: (answer) => {
          let message = encode(answer);
          if (message.length > FRAME_MAX)
            message = encode(
              refused(
                Response.CMD_FAILED,
                `the answer has ${message.length} bytes, more than a message may have`,
              ),
            );
          const sent = peer.send(message); // copied
          if (answer.export_data) message.fill(0); // perhaps a recovery key
          return sent;
        },
      };
      clients.set(peer, c);
    }
    return c;
  };
  return {
    limits,
    async handle(message, peer) {
      const c = clientOf(peer);
      let r: Request;
      try {
        r = proto.ControllerToDaemon.decode(message);
      } catch (e) {
        message.fill(0); // who knows what it was to be
        c.warn(`control: uid ${peer.uid}, pid ${peer.pid}: ${chain(e)}`);
        await c.send({ ...FAILED, error_text: chain(e) });
        peer.close();
        return;
      }
      const secret =
        r.container_start_params?.key ||
        r.device_pin ||
        r.device_newpin ||
        (r.command === Command.EXPORT && r.import_data);
      if (secret) overwriteReceived();
      try {
        if (secret && secrets >= SECRETS_MAX) {
          const error_text = `${secrets} requests with a password are under way, and no more are taken`;
          await c.send({ ...FAILED, error_text });
          return;
        }
        if (secret) secrets++;
        await handle(d, r, c).finally(() => secret && secrets--);
      } catch (e) {
        c.warn(`control: ${Command[r.command]}: ${chain(e)}`); // the answer itself could not be made
        await c.send({ ...FAILED, error_text: chain(e) });
      } finally {
        if (secret) message.fill(0); // also where nobody has looked at it
      }
    },
    complaint: (text) => encode({ ...FAILED, error_text: text }),
    warn: (text) => log.warn(`control: ${text}`),
  };
}
