// cmld: being written.
export async function main(_args: string[]): Promise<number> {
  throw new Error("cmld: not written yet");
}
