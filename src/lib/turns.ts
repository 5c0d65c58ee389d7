// One piece of work after the other, for each key.

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
