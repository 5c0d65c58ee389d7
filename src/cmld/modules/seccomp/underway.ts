// Calls that were received and not answered yet, in a file: the kernel hands a notification out once, so a cmld that
// ends between would leave its caller waiting for ever. Each has a place of a fixed size: which listener, the
// notification, whether what was asked for is done. The kernel writes the notification there itself, into the mapped file:
// there is no moment at which it is handed out and not noted. The child that does what was asked notes so itself: it
// goes on when cmld ends.
import { closeSync, constants, existsSync, ftruncateSync, mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { pwrite64 } from "../../../sys/calls.ts";
import { mem } from "../../../sys/mem.ts";
import { NOTIFICATION } from "../../../sys/notify.ts";
import type { Op } from "../../../sys/op.ts";

const { O_CREAT, O_RDWR } = constants;
const PLACE = 128;
const [STATE, LISTENER, CALL] = [0, 4, 8];
const [FREE, RECEIVED, DONE] = [0, 1, 2];
const ID = CALL; // linux/seccomp.h: the first field; 0 until the kernel has written it

export interface Found {
  readonly place: number;
  readonly listener: number;
  readonly bytes: Uint8Array;
  readonly done: boolean;
}

const done = mem(4);
done[0] = DONE;

export class UnderWay implements Disposable {
  #file = -1;
  #map: DataView | undefined;
  readonly #used: boolean[];

  constructor(
    readonly path: string,
    readonly places: number,
  ) {
    this.#used = Array.from({ length: places }, () => false);
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  }

  /** The file, made by the first call: most containers make none. For a child that is to write done(). */
  get descriptor(): number {
    this.#mapped();
    return this.#file;
  }

  #mapped(): DataView {
    if (this.#map) return this.#map;
    this.#file = openSync(this.path, O_RDWR | O_CREAT, 0o600);
    ftruncateSync(this.#file, this.places * PLACE);
    const { buffer, byteOffset, length } = Bun.mmap(`/proc/self/fd/${this.#file}`, { shared: true });
    this.#map = new DataView(buffer, byteOffset, length);
    return this.#map;
  }

  #notification(place: number): Uint8Array {
    const { buffer, byteOffset } = this.#mapped();
    return new Uint8Array(buffer, byteOffset + place * PLACE + CALL, NOTIFICATION);
  }

  /** What an earlier cmld has left, by place. */
  left(): Found[] {
    const found: Found[] = [];
    if (!existsSync(this.path)) return found;
    const map = this.#mapped();
    for (let place = 0; place < this.places; place++) {
      const state = map.getUint32(place * PLACE + STATE, true);
      if (state === FREE || map.getBigUint64(place * PLACE + ID, true) === 0n) continue;
      this.#used[place] = true;
      const listener = map.getUint32(place * PLACE + LISTENER, true);
      found.push({ place, listener, bytes: this.#notification(place).slice(), done: state === DONE });
    }
    return found;
  }

  /** Let `receive` put a notification into a place; its number, and the notification. There is one: more calls than
   * places are never under way. Undefined: there was no notification. */
  received(
    listener: number,
    receive: (into: Uint8Array) => boolean,
  ): { place: number; bytes: Uint8Array } | undefined {
    const place = this.#used.indexOf(false);
    const into = this.#notification(place);
    into.fill(0);
    const map = this.#mapped();
    map.setUint32(place * PLACE + LISTENER, listener, true);
    map.setUint32(place * PLACE + STATE, RECEIVED, true);
    if (!receive(into)) {
      map.setUint32(place * PLACE + STATE, FREE, true);
      return undefined;
    }
    this.#used[place] = true;
    return { place, bytes: into.slice() };
  }

  /** In a child: from here on it is done. */
  done(place: number): Op {
    return pwrite64(this.descriptor, done, place * PLACE + STATE);
  }

  answered(place: number): void {
    this.#mapped().setUint32(place * PLACE + STATE, FREE, true);
    this.#used[place] = false;
  }

  [Symbol.dispose](): void {
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
    this.#map = undefined;
  }
}
