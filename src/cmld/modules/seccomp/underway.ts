// Calls that were received and not answered yet, in a file: the kernel hands a notification out once, so a cmld that
// ends between would leave its caller waiting for ever. Each has a place of a fixed size: which listener, the
// notification as it came, whether what was asked for is done. The child that does it notes so itself: it goes on when
// cmld ends.
import { closeSync, constants, existsSync, mkdirSync, openSync, readSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { pwrite64 } from "../../../sys/calls.ts";
import { mem } from "../../../sys/mem.ts";
import { NOTIFICATION } from "../../../sys/notify.ts";
import type { Op } from "../../../sys/op.ts";

const { O_CREAT, O_RDWR } = constants;
const PLACE = 128;
const [STATE, LISTENER, CALL] = [0, 4, 8];
const [FREE, RECEIVED, DONE] = [0, 1, 2];

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
  readonly #used: boolean[];

  constructor(
    readonly path: string,
    places: number,
  ) {
    this.#used = Array.from({ length: places }, () => false);
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  }

  /** The file, made by the first call: most containers make none. For a child that is to write done(). */
  get descriptor(): number {
    if (this.#file < 0) this.#file = openSync(this.path, O_RDWR | O_CREAT, 0o600);
    return this.#file;
  }

  /** What an earlier cmld has left, by place. */
  left(): Found[] {
    const found: Found[] = [];
    if (!existsSync(this.path)) return found;
    for (let place = 0; place < this.#used.length; place++) {
      const bytes = new Uint8Array(new ArrayBuffer(PLACE));
      if (readSync(this.descriptor, bytes, 0, PLACE, place * PLACE) < CALL + NOTIFICATION) continue;
      const view = new DataView(bytes.buffer);
      const state = view.getUint32(STATE, true);
      if (state === FREE) continue;
      this.#used[place] = true;
      const listener = view.getUint32(LISTENER, true);
      found.push({ place, listener, bytes: bytes.slice(CALL, CALL + NOTIFICATION), done: state === DONE });
    }
    return found;
  }

  /** There is a place: more calls than places are never under way. */
  received(listener: number, notification: Uint8Array): number {
    const place = this.#used.indexOf(false);
    this.#used[place] = true;
    const bytes = new Uint8Array(PLACE);
    const view = new DataView(bytes.buffer);
    view.setUint32(STATE, RECEIVED, true);
    view.setUint32(LISTENER, listener, true);
    bytes.set(notification, CALL);
    writeSync(this.descriptor, bytes, 0, PLACE, place * PLACE);
    return place;
  }

  /** In a child: from here on it is done. */
  done(place: number): Op {
    return pwrite64(this.descriptor, done, place * PLACE + STATE);
  }

  answered(place: number): void {
    writeSync(this.descriptor, new Uint8Array(4), 0, 4, place * PLACE + STATE);
    this.#used[place] = false;
  }

  [Symbol.dispose](): void {
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
  }
}
