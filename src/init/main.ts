// init: being written.
export async function main(_args: string[]): Promise<number> {
  throw new Error("init: not written yet");
}
