// Work that waits for its turn: one piece after the other for each key, or so many at a time.

export class Turns {
  readonly #last = new Map<string, Promise<unknown>>();

  /** Do `work` when everything that was asked for before under this key is over, however it ended. */
  take<T>(key: string, work: () => Promise<T>): Promise<T> {
    const turn = this.over(key).then(work);
    this.#last.set(key, turn);
    const over = () => {
      if (this.#last.get(key) === turn) this.#last.delete(key);
    };
    turn.then(over, over);
    return turn;
  }

  /** Resolves when all that has been asked for so far under this key is over. */
  async over(key: string): Promise<void> {
    await this.#last.get(key)?.catch(() => {});
  }
}

/** So many pieces of work at a time; the others wait in line. */
export class Room {
  #free: number;
  readonly #line: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async take<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((next) => this.#line.push(next));
    try {
      return await work();
    } finally {
      const next = this.#line.shift();
      if (next) next();
      else this.#free++;
    }
  }
}
