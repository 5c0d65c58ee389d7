// scd, the keeper of keys and judge of signatures: a process of its own that sees its token folder and what it must read,
// and nobody else's. It answers the manager on one socket.
import { mkdirSync, readFileSync } from "node:fs";
import { setPriority } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { DaemonToToken, TokenToDaemon } from "../../proto/gen/proto.js";
import { BadMessage } from "../lib/protobuf.ts";
import { isUuid } from "../lib/uuid.ts";
import { secureHeap } from "../pki/crypto.ts";
import { ownGate, passed } from "../run/gate.ts";
import { own } from "../run/self.ts";
import { SOCK_SEQPACKET } from "../sys/calls.ts";
import { chain } from "../sys/error.ts";
import type { Fd } from "../sys/fd.ts";
import { sweep } from "../sys/file.ts";
import { Journal, type Log } from "../sys/journal.ts";
import { accepting, bindAt } from "../sys/listen.ts";
import { lasting, mem } from "../sys/mem.ts";
import { receiving, sendPacket } from "../sys/packets.ts";
import { undumpable } from "../sys/process.ts";
import { Secret } from "../sys/secret.ts";
import { inherited, supervisor } from "../sys/supervisor.ts";
import { Device } from "./device.ts";
import { answer, type Surroundings } from "./requests.ts";
import { makeToken } from "./softtoken.ts";
import { Tokens } from "./tokens.ts";

const USAGE = `usage: scd [BASE] [options]

Keeps keys and judges signatures for cmld.

  BASE            data folder with tokens/, operatingsystems/ and containers/ (default: /data/cml)
  --tokens DIR    folder of tokens and of the device's key (default: tokens/ in BASE)
  --socket PATH   where cmld asks (default: /run/socket/cml-scd_control)
  --pkcs11 FILE   the module of tokens that are hardware (default: OpenSC's)
  --first-key     make the device's key and its first certificate, and end; the key is encrypted with what comes by
                  standard input, if anything does
  --make-token UUID
                  make a soft token with the first PIN, and end
  -h, --help      print this
`;

const BACKLOG = 8; // as the original's
/** cmld has one connection for each container, and a few more. */
const CONNECTIONS_MAX = 1100;

/** One connection: a request, its answer, the next request. */
function serve(connection: Fd, around: Surroundings, log: Log, over: () => void): void {
  receiving(
    connection,
    async ({ bytes, fd }) => {
      using _ = fd;
      let request: DaemonToToken;
      try {
        request = DaemonToToken.decode(bytes);
      } catch (e) {
        if (!(e instanceof BadMessage)) throw e;
        bytes.fill(0); // who knows what it was to be
        const error_text = `not a request: ${e.message}`;
        sendPacket(connection, TokenToDaemon.encode({ code: TokenToDaemon.Code.CMD_UNKNOWN, error_text }));
        throw e;
      }
      if (request.code === DaemonToToken.Code.REGISTER_EVENT_LISTENER) {
        const { REGISTER_EVENT_LISTENER_OK: yes, REGISTER_EVENT_LISTENER_ERROR: no } = TokenToDaemon.Code;
        const taken = listener !== undefined;
        listener ??= connection;
        sendPacket(
          connection,
          TokenToDaemon.encode(taken ? { code: no, error_text: "somebody else listens" } : { code: yes }),
        );
        return;
      }
      const said = await answer(around, request, fd);
      bytes.fill(0); // PINs and keys among them
      if (said.error_text)
        log.warn(`${DaemonToToken.Code[request.code] ?? request.code}: ${said.error_text}`);
      const out = TokenToDaemon.encode(said);
      said.unwrapped_key?.fill(0);
      try {
        sendPacket(connection, out);
      } finally {
        out.fill(0);
      }
    },
    (reason) => {
      if (reason !== undefined) log.warn(`a connection ends: ${chain(reason)}`);
      if (listener === connection) listener = undefined;
      connection.close();
      over();
    },
  );
}

/** Who hears of what nobody asked for: one connection. */
let listener: Fd | undefined;

/** A token that was unlocked is not there any more. */
function tellGone(token_uuid: string, log: Log): void {
  log.warn(`${token_uuid}: its token is gone`);
  if (!listener) return;
  try {
    sendPacket(listener, TokenToDaemon.encode({ code: TokenToDaemon.Code.TOKEN_SE_REMOVED, token_uuid }));
  } catch (e) {
    log.warn(`the listener for events: ${chain(e)}`);
  }
}

/** Whoever starts us hands the socket over; alone, we make it. */
function controlSocket(path: string): Fd {
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
  return bindAt(path, 0o700, BACKLOG, SOCK_SEQPACKET);
}

/** On a device we are started before there is a data partition. */
async function waitForFolders(): Promise<void> {
  using gate = ownGate();
  if (gate) await passed(gate);
}

/** A device's first key is made beside everything else, once the machine has come up: it costs a processor for seconds. */
const FIRST_KEY_MS = 5_000;

function setUpDevice(device: Device, log: Log): void {
  const failed = (e: unknown) => log.error(`the device's identity: ${chain(e)}`);
  if (!device.isNew) {
    device.identify().catch(failed);
    return;
  }
  setTimeout(() => {
    log.info("making the device's key");
    // By its standard input: nobody else sees it there.
    const passphrase = device.passphrase?.lend((bytes) => lasting(bytes)) ?? mem(0);
    const argv = own("scd", "--first-key", "--tokens", device.tokens);
    const made = Bun.spawn(argv, { stdio: [passphrase, "inherit", "inherit"] });
    made.exited.then((status) => {
      passphrase.fill(0);
      if (status === 0) log.info("the device's key is made");
      else failed(new Error(`exit status ${status}`));
    }, failed);
  }, FIRST_KEY_MS);
}

export async function main(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      tokens: { type: "string" },
      socket: { type: "string", default: "/run/socket/cml-scd_control" },
      pkcs11: { type: "string" },
      "first-key": { type: "boolean" },
      "make-token": { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  if (positionals.length > 1) throw new Error(`${positionals[1]}: one data folder is enough`);
  const base = resolve(positionals[0] ?? "/data/cml");
  const tokens = values.tokens ?? join(base, "tokens");
  process.umask(0o077);
  const device = new Device(tokens);
  if (values["first-key"]) {
    setPriority(19); // whoever else wants the processor gets it
    const passphrase = Secret.take(readFileSync(0));
    if (passphrase.length > 0) device.protectWith(passphrase);
    await device.initialise();
    return 0;
  }
  const uuid = values["make-token"];
  if (uuid !== undefined) {
    if (!isUuid(uuid)) throw new Error(`${uuid}: not a uuid`);
    setPriority(19);
    await makeToken(tokens, uuid);
    return 0;
  }
  const above = supervisor();
  const log = new Journal({ name: "scd", console: 1, debug: false });
  undumpable();
  const readable = [join(base, "operatingsystems"), join(base, "containers")];
  secureHeap();
  await waitForFolders();
  await sweep(tokens).catch((e) => log.warn(chain(e)));
  const keys = new Tokens(tokens, values.pkcs11);
  const around: Surroundings = { tokens, readable, device, keys, gone: (uuid) => tellGone(uuid, log) };
  let connections = 0;
  const listening = [...inherited(() => true).values()].flat()[0] ?? controlSocket(values.socket);
  accepting(listening, (connection) => {
    if (connections >= CONNECTIONS_MAX) {
      log.warn(`${connections} connections are open: another one is refused`);
      connection.close();
      return;
    }
    connections++;
    serve(connection, around, log, () => connections--);
  });
  log.info(`listening on ${values.socket}`);
  above.notify("READY=1");
  if (above.watchdogMs !== undefined) setInterval(() => above.notify("WATCHDOG=1"), above.watchdogMs);
  setUpDevice(device, log);
  const over = Promise.withResolvers<number>();
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => over.resolve(0));
  await over.promise;
  process.exit(0); // watched descriptors would keep it
}
