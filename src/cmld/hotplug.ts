// Devices that come and go while containers run. The kernel says so (uevents); here it is decided whose a device is,
// and done what follows: a network card changes its namespace (router.ts).
//
// Events are worked off one after the other, beside the event loop. When the kernel had to drop some, and when cmld
// starts, we look for ourselves.
import { basename } from "node:path";
import { chain } from "../sys/error.ts";
import { type Uevent, ueventSocket, uevents } from "../sys/uevent.ts";
import { arrived, departed, lookAround } from "./router.ts";

/** Events that wait: more are answered by one look around. */
const WAITING_MAX = 4096;

export class Hotplug implements Disposable {
  readonly #log: (line: string) => void;
  readonly #end = new DisposableStack();
  #queue: Uevent[] = [];
  #look = false;
  #working: Promise<void> | undefined;

  constructor(log: (line: string) => void) {
    this.#log = log;
  }

  /** Listen from now on, and look at what is there already. */
  begin(): void {
    const socket = this.#end.adopt(ueventSocket(), (fd) => fd.close());
    const lost = (): void => {
      this.#queue = [];
      this.#look = true;
      this.#work();
    };
    const heard = (e: Uevent): void => {
      if (!concerns(e)) return;
      this.#queue.push(e);
      if (this.#queue.length > WAITING_MAX) lost();
      else this.#work();
    };
    this.#end.use(uevents(socket, heard, lost));
    lost();
  }

  #work(): void {
    this.#working ??= this.#workOff().finally(() => {
      this.#working = undefined;
    });
  }

  /** Resolves when all that was heard so far has been done. */
  async idle(): Promise<void> {
    while (this.#working) await this.#working;
  }

  async #workOff(): Promise<void> {
    for (;;) {
      try {
        if (this.#look) {
          this.#look = false;
          await lookAround();
          continue;
        }
        const event = this.#queue.shift();
        if (!event) return;
        await happened(event);
      } catch (e) {
        this.#log(`hot-plug: ${chain(e)}`);
      }
    }
  }

  [Symbol.dispose](): void {
    this.#end[Symbol.dispose]();
  }
}

const isLink = (e: Uevent): boolean => e.values.get("SUBSYSTEM") === "net" && e.values.has("IFINDEX");
const ends = (e: Uevent): boolean => e.action === "remove" || e.action === "unbind";
const concerns = (e: Uevent): boolean => (e.action === "add" && isLink(e)) || ends(e);

async function happened(e: Uevent): Promise<void> {
  if (e.action === "add" && isLink(e)) await arrived(Number(e.values.get("IFINDEX")));
  // A card that is in a container's namespace says there that it goes; its device says so here.
  else if (ends(e)) await departed(basename(e.path));
}
