// A daemon that says what the original's said: it takes requests on a socket and answers with recorded bytes.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import {
  ControllerToDaemon,
  DaemonToController,
  type IControllerToDaemon,
  type IDaemonToController,
} from "../proto/gen/proto.js";
import { frame, Unframer } from "../src/lib/frame.ts";

/** One call of the original's client: what it was asked to do, every byte each way, and what it printed. */
export interface Recorded {
  readonly call: string;
  readonly arguments: readonly string[];
  readonly stdin: string;
  readonly exit: number;
  readonly requests: readonly Uint8Array[];
  readonly answers: readonly Uint8Array[];
  readonly stdout: Uint8Array;
}

const unframed = (base64: string): Uint8Array[] => [...new Unframer().push(Buffer.from(base64, "base64"))];

export const recorded: readonly Recorded[] = (
  await Bun.file(`${import.meta.dir}/data/golden/control.jsonl`).text()
)
  .trim()
  .split("\n")
  .map((line) => {
    const r = JSON.parse(line);
    return {
      call: r.call,
      arguments: r.arguments,
      stdin: r.stdin ?? "",
      exit: r.exit,
      requests: unframed(r.requests),
      answers: unframed(r.answers),
      stdout: Buffer.from(r.stdout ?? "", "base64"),
    };
  });

/** What a daemon can do with a connection besides answering. */
export interface Line {
  hangUp(): void;
  /** Read no more until resume(). */
  pause(): void;
  resume(): void;
}

export type Answer = (answer: IDaemonToController | Uint8Array) => void;

/** Listens as long as it is not disposed; `on` answers each request, by message or by recorded bytes. */
export class TestDaemon implements Disposable {
  readonly folder = mkdtempSync(`${tmpdir()}/control-`);
  readonly socket = `${this.folder}/socket`;
  readonly requests: { bytes: Uint8Array; message: ControllerToDaemon }[] = [];
  readonly #listener;
  constructor(on: (request: ControllerToDaemon, answer: Answer, line: Line) => void) {
    const requests = this.requests;
    this.#listener = Bun.listen<{ unframer: Unframer; queue: Uint8Array[] }>({
      unix: this.socket,
      socket: {
        open(socket) {
          socket.data = { unframer: new Unframer(), queue: [] };
        },
        data(socket, chunk) {
          for (const bytes of socket.data.unframer.push(chunk)) {
            const message = ControllerToDaemon.decode(bytes);
            requests.push({ bytes, message });
            const answer: Answer = (a) => {
              socket.data.queue.push(frame(a instanceof Uint8Array ? a : DaemonToController.encode(a)));
              flush(socket);
            };
            on(message, answer, {
              hangUp: () => socket.end(),
              pause: () => socket.pause(),
              resume: () => socket.resume(),
            });
          }
        },
        drain: (socket) => flush(socket),
      },
    });
    function flush(socket: Bun.Socket<{ queue: Uint8Array[] }>): void {
      const { queue } = socket.data;
      while (queue.length > 0) {
        const n = Math.max(socket.write(queue[0]!), 0);
        if (n < queue[0]!.length) {
          queue[0] = queue[0]!.subarray(n);
          return;
        }
        queue.shift();
      }
    }
  }
  /** The requests so far, without their bytes. */
  get said(): IControllerToDaemon[] {
    return this.requests.map((r) => r.message);
  }
  [Symbol.dispose](): void {
    this.#listener.stop(true);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const { Command } = ControllerToDaemon;

/** Requests that are ours, and that the original's client does not make in that place. */
export const isAdded = (m: ControllerToDaemon): boolean =>
  (m.command === Command.GET_CONTAINER_CONFIG && m.container_uuids.length === 1) ||
  (m.command === Command.CONTAINER_EXEC_INPUT && m.exec_input_bytes !== undefined);

/** The configuration that a recorded answer gives of a container. */
function configOf(uuid: string): Uint8Array {
  for (const r of recorded)
    for (const answer of r.answers) {
      const m = DaemonToController.decode(answer);
      if (m.code === DaemonToController.Code.CONTAINER_CONFIG && m.container_uuids[0] === uuid) return answer;
    }
  return DaemonToController.encode({ code: DaemonToController.Code.CONTAINER_CONFIG });
}

/**
 * Answers a call as it was answered: one answer per request, but those about a running command, and what follows the
 * last request, when all requests are there.
 */
export function replay(r: Recorded): TestDaemon {
  let [asked, answered] = [0, 0];
  return new TestDaemon((request, answer, line) => {
    const last = ControllerToDaemon.decode(r.requests.at(-1)!).command;
    if (isAdded(request) && request.command !== last) {
      if (request.command === Command.GET_CONTAINER_CONFIG) answer(configOf(request.container_uuids[0]!));
      return;
    }
    if (request.exec_input_bytes !== undefined) return;
    asked++;
    if (asked === r.requests.length) {
      for (const a of r.answers.slice(answered)) answer(a);
      if (answered === r.answers.length) line.hangUp();
      answered = r.answers.length;
    } else if (request.command !== Command.CONTAINER_EXEC_CMD) answer(r.answers[answered++]!);
  });
}
