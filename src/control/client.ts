// A connection to the daemon: requests go out whole, answers come in order. Both ways wait for the other side: send()
// resolves when the kernel has taken the bytes, and we read no more while answers lie here unread.
import { ControllerToDaemon, DaemonToController, type IControllerToDaemon } from "../../proto/gen/proto.js";
import { frame, Unframer } from "../lib/frame.ts";

export const SOCKET = "/run/socket/cml-control";

/** linux/un.h: UNIX_PATH_MAX less its NUL. */
const PATH_LENGTH = 107;
/** Bytes of answers that may lie here unread before we let the daemon wait. */
const HELD_MAX = 1 << 20;

export class Connection implements Disposable {
  #socket!: Bun.Socket<undefined>;
  readonly #unframer = new Unframer();
  readonly #inbox: { message: DaemonToController; bytes: number }[] = [];
  #held = 0;
  #waiting: PromiseWithResolvers<void> | undefined;
  #drained: PromiseWithResolvers<void> | undefined;
  #over: Error | undefined;
  /** The send before: one after the other, or their pieces would mix. */
  #sent: Promise<void> = Promise.resolve();

  private constructor() {}

  static async open(path: string): Promise<Connection> {
    const c = new Connection();
    if (path === "" || Buffer.byteLength(path) > PATH_LENGTH)
      throw new Error(`a socket's path has 1 to ${PATH_LENGTH} bytes: ${JSON.stringify(path)}`);
    try {
      c.#socket = await Bun.connect<undefined>({
        unix: path,
        socket: {
          data: (_, bytes) => c.#data(bytes),
          drain: () => c.#drained?.resolve(),
          close: () => c.#end(new Error("error receiving message: the daemon closed the connection")),
          error: (_, cause) => c.#end(new Error("error receiving message", { cause })),
        },
      });
      return c;
    } catch (cause) {
      const code = (cause as { code?: string }).code;
      if (code === "ENOENT") throw new Error(`Could not find socket file ${path}. Is cmld running?`);
      if (code === "ECONNREFUSED") throw new Error(`nobody listens at ${path}: is cmld running?`);
      if (code === "EACCES")
        throw new Error(
          `${path}: permission denied: root may, and who is in the socket's group (cml-control)`,
        );
      throw new Error(`connect to ${path}`, { cause: code === undefined ? cause : new Error(code) });
    }
  }

  #data(bytes: Uint8Array): void {
    try {
      for (const payload of this.#unframer.push(bytes)) {
        this.#inbox.push({ message: DaemonToController.decode(payload), bytes: payload.length });
        this.#held += payload.length;
      }
    } catch (cause) {
      this.#end(new Error("error receiving message", { cause }));
    }
    if (this.#held > HELD_MAX) this.#socket.pause();
    this.#waiting?.resolve();
  }

  #end(reason: Error): void {
    this.#over ??= reason;
    this.#waiting?.resolve();
    this.#drained?.resolve();
  }

  send(request: IControllerToDaemon): Promise<void> {
    const message = ControllerToDaemon.encode(request);
    const bytes = frame(message);
    message.fill(0); // perhaps a password
    this.#sent = this.#sent.then(() => this.#write(bytes)).finally(() => bytes.fill(0));
    return this.#sent;
  }

  async #write(bytes: Uint8Array): Promise<void> {
    let rest = bytes;
    for (;;) {
      if (this.#over) throw new Error("error sending protobuf message", { cause: this.#over });
      this.#drained = Promise.withResolvers();
      const n = this.#socket.write(rest);
      if (n < 0) throw new Error("error sending protobuf message: the connection is closed");
      rest = rest.subarray(n);
      if (rest.length === 0) return;
      await this.#drained.promise;
    }
  }

  /** The next answer; what arrived before the end of the connection comes first. */
  async next(): Promise<DaemonToController> {
    for (;;) {
      const first = this.#inbox.shift();
      if (first) {
        this.#held -= first.bytes;
        if (this.#held <= HELD_MAX) this.#socket.resume();
        return first.message;
      }
      if (this.#over) throw this.#over;
      this.#waiting = Promise.withResolvers();
      await this.#waiting.promise;
    }
  }

  async ask(request: IControllerToDaemon): Promise<DaemonToController> {
    await this.send(request);
    return this.next();
  }

  [Symbol.dispose](): void {
    this.#over ??= new Error("connection closed");
    this.#socket.end();
  }
}
