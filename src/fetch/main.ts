// fetch: one file over http or https to standard output, from a byte on. cmld starts it in a room of its own
// (src/cmld/images/download.ts): what speaks to a server that may be anybody's touches no file and holds no key. What it brings is
// worth nothing until its hash is right.
//
// Output: one line of JSON, {"from": first byte, "length": bytes that follow, if the server says so}, then the bytes.

// Or with ntp:SERVER: by how many seconds that server is ahead, as JSON in place of a file.
import { ask } from "./ntp.ts";

const USAGE = "usage: fetch URL [FROM] | fetch ntp:SERVER\n";

/** A server that sends less than this in so long is given up: a file that trickles would never end, and nobody can wait for it. */
const [LEAST, PATIENCE_MS] = [60 * 1024, 60_000]; // 1 KiB/s; GPRS brings 5

/** Aborts when `least` bytes have not come within `ms`, again and again. */
export class Patience implements Disposable {
  readonly #abort = new AbortController();
  readonly signal = this.#abort.signal;
  readonly #least: number;
  readonly #ms: number;
  #timer: ReturnType<typeof setTimeout>;
  #came = 0;
  constructor(least: number, ms: number) {
    this.#least = least;
    this.#ms = ms;
    this.#timer = this.#begin();
  }
  #begin(): ReturnType<typeof setTimeout> {
    this.#came = 0;
    return setTimeout(
      () =>
        this.#abort.abort(new Error(`${this.#came} bytes in ${this.#ms / 1000} s, at least ${this.#least}`)),
      this.#ms,
    );
  }
  /** So many bytes have come, and `taken` resolves when there is room for more: that wait is not the server's. */
  async came(bytes: number, taken: () => Promise<void>): Promise<void> {
    this.#came += bytes;
    if (this.#came < this.#least) return await taken();
    clearTimeout(this.#timer);
    await taken();
    this.#timer = this.#begin();
  }
  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}

async function written(bytes: Uint8Array): Promise<void> {
  const sink = Bun.stdout.writer();
  sink.write(bytes);
  await sink.flush();
}

/** Why it failed, by the runtime's code; its own words are for those who write the program that calls it. */
const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nobody listens there",
  ECONNRESET: "the server closed the connection",
  EHOSTUNREACH: "there is no way to the server",
  ENETUNREACH: "there is no network",
  ENOTFOUND: "there is no server of this name",
  EAI_AGAIN: "no name server answers",
  EPROTO: "the server does not speak TLS on this port",
  ERR_INVALID_URL: "it is no URL",
  ETIMEDOUT: "the server does not answer",
  InvalidHTTPResponse: "the server does not speak HTTP",
  TooManyRedirects: "the server sends us from one place to the next",
  UnsupportedRedirectProtocol: "the server sends us to a place that is neither http:// nor https://",
  ZlibError: "the server compresses, and was asked not to",
};
/** "ECONNRESET: … . For more information, pass `verbose: true` in the second argument to fetch()" */
const HINT =
  / fetching "[^"]*"|^\w+: |[.]? (For more information, pass|Is the computer|Was there a typo).*$/g;

export function why(e: unknown): Error {
  const { code, message } = e as { code?: unknown; message?: unknown };
  const known = typeof code === "string" ? REASONS[code] : undefined;
  return new Error(known ?? String(message ?? e).replace(HINT, ""));
}

export async function main(args: string[]): Promise<number> {
  const [url = "", from = "0"] = args;
  if (args.length === 1 && url.startsWith("ntp:")) {
    const offset = await ask(url.slice("ntp:".length)).catch((cause) => {
      throw new Error(url, { cause });
    });
    await written(Buffer.from(`{"from": 0}\n${offset}\n`));
    return 0;
  }
  if (args.length < 1 || args.length > 2 || !/^https?:\/\//.test(url) || !/^\d{1,15}$/.test(from)) {
    process.stderr.write(USAGE);
    return 255;
  }
  using patience = new Patience(LEAST, PATIENCE_MS);
  try {
    const first = Number(from);
    const answer = await fetch(url, {
      // Bytes as they are stored: a compressed answer would have another length and other offsets.
      headers: { "Accept-Encoding": "identity", ...(first > 0 && { Range: `bytes=${first}-` }) },
      signal: patience.signal,
    });
    // A range that begins at the end: all is there already (RFC 9110, 15.5.17).
    if (answer.status === 416 && first > 0) {
      await written(Buffer.from(`${JSON.stringify({ from: first, length: 0 })}\n`));
      return 0;
    }
    if (answer.status !== 200 && answer.status !== 206)
      throw new Error(`the server says ${answer.status} ${answer.statusText}`);
    const begins =
      answer.status === 206
        ? Number(/^bytes (\d+)-/.exec(answer.headers.get("Content-Range") ?? "")?.[1])
        : 0;
    if (begins !== first && begins !== 0)
      throw new Error(`asked for bytes from ${first} on, the server begins at ${begins}`);
    const announced = answer.headers.get("Content-Length");
    const length = announced !== null && /^\d{1,15}$/.test(announced) ? { length: Number(announced) } : {};
    await written(Buffer.from(`${JSON.stringify({ from: begins, ...length })}\n`));
    for await (const piece of answer.body ?? []) await patience.came(piece.length, () => written(piece));
    return 0;
  } catch (e) {
    throw new Error(url, { cause: patience.signal.aborted ? patience.signal.reason : why(e) });
  }
}
