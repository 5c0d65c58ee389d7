// The descriptor store: what a new cmld could not make again (sockets bound inside containers, and later seccomp
// listeners and terminals) stays open here under a name, across every end of cmld and across our own. The listening
// socket is kept, too: while init executes itself again, requests wait in it.
import { StoreRequest, StoreResponse } from "../../proto/gen/proto.js";
import { BadMessage } from "../lib/protobuf.ts";
import { chain } from "../sys/error.ts";
import { Fd } from "../sys/fd.ts";
import { EPOLLIN, watch } from "../sys/poll.ts";
import { receiveMessage, sendMessage } from "../sys/scm.ts";
import { keepOpen } from "./kept.ts";

const VERSION = 1;
const REQUEST_MAX = 4096;
const ENTRIES_MAX = 1024;
/** The characters that systemd allows in FDNAME; as many that the answer to LIST fits into one packet. */
const NAME = /^[!-9;-~]{1,127}$/;
export interface StoreHost {
  /** Names and descriptors as they will be found after a crash of init. */
  readonly kept: Map<string, Fd>;
  /** Write down what is kept now. */
  save(): void;
  exitOf(pid: number, startTime: number): number | undefined;
  log(line: string): void;
}

export class Store {
  readonly #host: StoreHost;
  constructor(host: StoreHost) {
    this.#host = host;
  }

  /** Serve a connection. Only root can connect: the socket's mode and directory say so. */
  serve(connection: Fd): void {
    const w = watch(connection, EPOLLIN, () => {
      const done = () => {
        w[Symbol.dispose]();
        connection.close();
      };
      try {
        for (;;) {
          const got = receiveMessage(connection, REQUEST_MAX);
          if (got === "later") return;
          if (got === "closed") return done();
          using descriptors = new DisposableStack();
          for (const fd of got.descriptors) descriptors.use(fd);
          const [answer, fd] = got.cut
            ? [{ version: VERSION, error_text: "message too long" }]
            : this.answer(got.bytes, got.descriptors);
          sendMessage(connection, StoreResponse.encode(answer), fd ? [fd.fd] : []);
          if (fd?.forget) this.#forget(fd.forget);
        }
      } catch (e) {
        this.#host.log(`init: store: ${chain(e)}`);
        done();
      }
    });
  }

  #forget(name: string): void {
    const fd = this.#host.kept.get(name);
    this.#host.kept.delete(name);
    this.#host.save();
    fd?.close();
  }

  /** A request's answer, and the descriptor that goes with it. */
  answer(
    bytes: Uint8Array,
    descriptors: Fd[],
  ): [Parameters<typeof StoreResponse.encode>[0], { fd: Fd; forget?: string }?] {
    const refuse = (error_text: string): [Parameters<typeof StoreResponse.encode>[0]] => [
      { version: VERSION, error_text },
    ];
    let request: StoreRequest;
    try {
      request = StoreRequest.decode(bytes);
    } catch (e) {
      if (e instanceof BadMessage) return refuse(e.message);
      throw e;
    }
    if (request.version !== VERSION) return refuse(`version ${request.version}: this init speaks ${VERSION}`);
    const { Command } = StoreRequest;
    const { kept } = this.#host;
    if (request.command === Command.LIST) {
      const names = [...kept.keys()].filter((n) => !n.startsWith("init:"));
      return [{ version: VERSION, names }];
    }
    if (request.command === Command.EXIT) {
      const wait_status = this.#host.exitOf(request.pid ?? 0, request.start_time ?? 0);
      return [{ version: VERSION, wait_status }];
    }
    const name = request.name ?? "";
    if (!NAME.test(name))
      return refuse(`name ${JSON.stringify(name)}: 1 to 127 printable characters, no ":"`);
    if (request.command === Command.STORE) {
      const [fd] = descriptors;
      if (!fd || descriptors.length !== 1)
        return refuse(`${name}: ${descriptors.length} descriptors, not one`);
      const old = kept.get(name);
      if (!old && kept.size >= ENTRIES_MAX)
        return refuse(`${name}: ${ENTRIES_MAX} descriptors are kept already`);
      const ours = new Fd(fd.take());
      keepOpen(ours);
      kept.set(name, ours);
      this.#host.save();
      old?.close();
      return [{ version: VERSION }];
    }
    if (request.command === Command.TAKE || request.command === Command.GET) {
      const fd = kept.get(name);
      if (!fd) return refuse(`${name}: not kept`);
      return [{ version: VERSION }, request.command === Command.TAKE ? { fd, forget: name } : { fd }];
    }
    return refuse(`command ${request.command}: not known`);
  }
}
