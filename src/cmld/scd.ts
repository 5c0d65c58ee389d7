// Our side of scd: it is started when it is first needed, in a room of its own (scdroom.ts), and asked in the
// words of proto/scd.proto. Its socket is ours and stays open: when scd ends, whoever waited is asked again by the next.
import { existsSync, rmSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { DaemonToToken, HashAlgo, type IDaemonToToken, TokenToDaemon } from "../../proto/gen/proto.js";
import { Room } from "../lib/turns.ts";
import { type Ended, reap } from "../run/launch.ts";
import { own } from "../run/self.ts";
import { AF_UNIX, connectUnix, SOCK_NONBLOCK, SOCK_SEQPACKET, socket } from "../sys/calls.ts";
import { chain, ECONNRESET, isErrno } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { now } from "../sys/now.ts";
import { receiving, sendPacket } from "../sys/packets.ts";
import { ended } from "../sys/poll.ts";
import { kill, SIGTERM } from "../sys/process.ts";
import type { Secret } from "../sys/secret.ts";
import { folders, gone, letIn, listen, type ScdAhead, type Started, start } from "./scdroom.ts";

const Ask = DaemonToToken.Code;
const Say = TokenToDaemon.Code;

/** Whose signature something has. */
export type Trust = "SIGNED" | "LOCALLY_SIGNED";

/** What cmld asks scd. Each rejects with scd's reason, one line. */
export interface Scd {
  verify(
    data: Uint8Array,
    signature: Uint8Array,
    certificates: Uint8Array,
    ignoreTime: boolean,
  ): Promise<Trust>;
  /** Hexadecimal digest of the file that is open, which is called `name` in logs. */
  hash(file: Fd, name: string, algorithm: "sha1" | "sha256"): Promise<string>;
  /** The request for the device's certificate (PEM). */
  csr(): Promise<Uint8Array>;
  /** Replace the device's certificate (PEM). */
  accept(certificate: Uint8Array): Promise<void>;
  /** A question about a token, with scd's own answer: refusals are answers as well. What is secret in the request is the
   * caller's to wipe, and so is the answer. */
  token(request: IDaemonToToken): Promise<TokenToDaemon>;
}

/** scd does not do this now, and nothing is wrong: the device's certificate is settled. */
export class NotProvisioning extends Error {}

/** Questions at a time: fewer than fit into the backlog. Some take seconds: there is always room for one of the others. */
const [AT_ONCE, LONG_AT_ONCE] = [4, 3];
/** Those that derive a key, or make one. */
const LONG: ReadonlySet<DaemonToToken.Code | undefined> = new Set([
  Ask.UNLOCK,
  Ask.CHANGE_PIN,
  Ask.PROVISION_PIN,
  Ask.TOKEN_ADD,
]);
/** An scd that ends while it is asked is asked again so often. */
const TRIES = 3;
/** Time between two starts. */
const PAUSE_MS = 500;
const ALGORITHMS = { sha1: HashAlgo.SHA1, sha256: HashAlgo.SHA256 } as const;

export interface Places {
  /** The data folder. */
  readonly base: string;
  /** …/cml-scd_control */
  readonly socket: string;
  /** device.conf: pkcs11_module. */
  readonly pkcs11?: string;
  /** What the device's key is encrypted with; absent, or none: it lies there in clear. */
  passphrase?(): Promise<Secret | undefined>;
  log(line: string): void;
}

/** Where the daemon listens that smart cards are reached through (pcscd(8)). */
const PCSCD = "/run/pcscd";

export class ScdClient implements Scd, Disposable {
  readonly #at: Places;
  readonly #listening: Fd;
  #ahead: ScdAhead | undefined;
  #process: Fd | undefined;
  #starting: Promise<void> | undefined;
  #last = Number.NEGATIVE_INFINITY;
  #busy = 0;
  /** Aborted when there will be no scd for those who wait. */
  #lost = new AbortController();
  readonly #room = new Room(AT_ONCE);
  readonly #long = new Room(LONG_AT_ONCE);

  /** `ahead`: one that waits for the data folder, which is there now. */
  constructor(at: Places, ahead?: ScdAhead) {
    this.#at = at;
    this.#ahead = ahead;
    this.#listening = ahead?.listening ?? listen(at.socket);
  }

  /** Start it now, because it will be asked soon. */
  begin(): void {
    this.#start().catch(() => {}); // the first question tries again, and says why not
  }

  async verify(
    data: Uint8Array,
    signature: Uint8Array,
    certificates: Uint8Array,
    ignoreTime: boolean,
  ): Promise<Trust> {
    const answer = await this.#ask({
      code: Ask.CRYPTO_VERIFY_BUF,
      hash_algo: HashAlgo.SHA512,
      verify_data_buf: data,
      verify_sig_buf: signature,
      verify_cert_buf: certificates,
      verify_ignore_time: ignoreTime,
    });
    if (answer.code === Say.CRYPTO_VERIFY_GOOD) return "SIGNED";
    if (answer.code === Say.CRYPTO_VERIFY_LOCALLY_SIGNED) return "LOCALLY_SIGNED";
    throw refusal(answer);
  }

  async hash(file: Fd, name: string, algorithm: "sha1" | "sha256"): Promise<string> {
    const request = { code: Ask.CRYPTO_HASH_FILE, hash_algo: ALGORITHMS[algorithm], hash_file: name };
    const answer = await this.#ask(request, file);
    if (answer.code !== Say.CRYPTO_HASH_OK || !answer.hash_value) throw refusal(answer);
    return Buffer.from(answer.hash_value).toString("hex");
  }

  async csr(): Promise<Uint8Array> {
    const answer = await this.#ask({ code: Ask.PULL_DEVICE_CSR });
    if (answer.code !== Say.DEVICE_CSR || !answer.device_csr) throw refusal(answer);
    return answer.device_csr;
  }

  async accept(certificate: Uint8Array): Promise<void> {
    const answer = await this.#ask({ code: Ask.PUSH_DEVICE_CERT, device_cert: certificate });
    if (answer.code !== Say.DEVICE_CERT_OK) throw refusal(answer);
  }

  token(request: IDaemonToToken): Promise<TokenToDaemon> {
    // Whether it was done before scd ended, nobody knows: the PIN of a second try may be wrong by then.
    const once = request.code === Ask.CHANGE_PIN || request.code === Ask.PROVISION_PIN;
    const work = () => this.#ask(request, undefined, once ? 1 : TRIES);
    return LONG.has(request.code) ? this.#long.take(work) : work();
  }

  async #ask(request: IDaemonToToken, file?: Fd, tries = TRIES): Promise<TokenToDaemon> {
    return await this.#room.take(() => this.#asked(request, file, tries));
  }

  async #asked(request: IDaemonToToken, file: Fd | undefined, tries: number): Promise<TokenToDaemon> {
    this.#busy++;
    const bytes = DaemonToToken.encode(request);
    try {
      for (let tried = 1; ; tried++) {
        await this.#start();
        const answer = await exchange(this.#at.socket, bytes, file, this.#lost.signal);
        if (answer) return answer;
        if (tried === tries)
          throw new Error(`scd has ended ${tries === 1 ? "" : `${tries} times `}over one question`);
      }
    } finally {
      bytes.fill(0); // PINs and keys among them
      this.#busy--;
    }
  }

  /** Resolves when there is an scd, running or about to. */
  #start(): Promise<void> {
    if (this.#process) return Promise.resolve();
    this.#starting ??= this.#launch().finally(() => {
      this.#starting = undefined;
    });
    return this.#starting;
  }

  async #launch(): Promise<void> {
    const { base, log, pkcs11 } = this.#at;
    const soon = this.#last + PAUSE_MS - performance.now();
    if (soon > 0) await new Promise((resolve) => setTimeout(resolve, soon));
    this.#last = performance.now();
    const { tokens, readable } = folders(base);
    for (const folder of [tokens, ...readable]) await mkdir(folder, { recursive: true, mode: 0o700 });
    try {
      const { child, output } =
        (await this.#waiting()) ??
        (await start(this.#listening, {
          argv: own("scd", base, ...(pkcs11 === undefined ? [] : ["--pkcs11", pkcs11])),
          writable: [tokens],
          readable: existsSync(PCSCD) ? [...readable, PCSCD] : readable,
        }));
      this.#process = child.pidfd;
      void ended(child.pidfd).then(() => this.#ended(child.pidfd));
      void lines(output, (line) => log(`scd: ${line}`));
      void this.#passphrase();
    } catch (cause) {
      throw new Error("start scd", { cause });
    }
  }

  /** The one that was started ahead, once. It knows of no PKCS #11 module and of no smart cards that the configuration names. */
  async #waiting(): Promise<Started | undefined> {
    const { base, log, pkcs11 } = this.#at;
    const ahead = this.#ahead;
    this.#ahead = undefined;
    if (!ahead) return undefined;
    using _ = ahead.gate;
    try {
      if (pkcs11 === undefined && !existsSync(PCSCD)) {
        await letIn(ahead, base);
        return ahead;
      }
    } catch (e) {
      log(`scd: ${chain(e)}: another one is started`);
    }
    void lines(ahead.output, (line) => log(`scd: ${line}`));
    await gone(ahead.child);
    return undefined;
  }

  /** The first thing that it is told. Without it scd does everything but look at the device's key. */
  async #passphrase(): Promise<void> {
    try {
      using passphrase = await this.#at.passphrase?.();
      if (!passphrase) return;
      const request = passphrase.lend((unwrapped_key) =>
        DaemonToToken.encode({ code: Ask.DEVICE_PASSPHRASE, unwrapped_key }),
      );
      try {
        const answer = await exchange(this.#at.socket, request, undefined, this.#lost.signal);
        if (answer && answer.code !== Say.DEVICE_CERT_OK) throw refusal(answer);
      } finally {
        request.fill(0);
      }
    } catch (e) {
      this.#at.log(`the device's key stays closed: ${chain(e)}`);
    }
  }

  #ended(pidfd: Fd): void {
    const how: Ended = reap(pidfd) ?? {};
    pidfd.close();
    this.#process = undefined;
    const why = how.signal === undefined ? `with status ${how.status}` : `by signal ${how.signal}`;
    this.#at.log(`scd has ended ${why}; the next question starts it again`);
    // Questions that it had not accepted yet are still in the socket, and nothing else would tell them.
    if (this.#busy > 0)
      this.#start().catch((e) => {
        this.#lost.abort(e);
        this.#lost = new AbortController();
      });
  }

  [Symbol.dispose](): void {
    if (this.#process) kill(this.#process, SIGTERM);
    this.#listening.close();
    rmSync(this.#at.socket, { force: true });
  }
}

function refusal(answer: TokenToDaemon): Error {
  const line = answer.error_text || `scd: ${Say[answer.code] ?? answer.code}`;
  return answer.code === Say.DEVICE_PROV_ERROR ? new NotProvisioning(line) : new Error(line);
}

/** One question on a connection of its own; undefined if scd has ended over it. */
function exchange(
  path: string,
  request: Uint8Array,
  file: Fd | undefined,
  lost: AbortSignal,
): Promise<TokenToDaemon | undefined> {
  const fd = new Fd(now(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)));
  return new Promise((resolve, reject) => {
    try {
      now(connectUnix(fd.n, path));
      sendPacket(fd, request, file);
    } catch (e) {
      fd.close();
      reject(e);
      return;
    }
    let answer: TokenToDaemon | undefined;
    const abandon = () => {
      reject(new Error("scd", { cause: lost.reason }));
      connection[Symbol.dispose]();
    };
    lost.addEventListener("abort", abandon);
    const connection = receiving(
      fd,
      ({ bytes, fd: other }) => {
        other?.close();
        answer = TokenToDaemon.decode(bytes);
        connection[Symbol.dispose]();
      },
      (reason) => {
        lost.removeEventListener("abort", abandon);
        fd.close();
        if (reason !== undefined && !answer && !isErrno(reason, ECONNRESET))
          reject(new Error(`scd: ${chain(reason)}`, { cause: reason }));
        else resolve(answer);
      },
    );
  });
}

async function lines(from: Fd, say: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for await (const chunk of Bun.file(from.n).stream()) {
      const [last, ...whole] = (rest + decoder.decode(chunk, { stream: true })).split("\n").reverse();
      for (const line of whole.reverse()) if (line !== "") say(line);
      rest = last!.slice(0, LINE_MAX);
    }
  } finally {
    from.close();
  }
}

/** A line without an end is cut here. */
const LINE_MAX = 4096;
