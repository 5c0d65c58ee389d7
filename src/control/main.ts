// control: being written.
export async function main(_args: string[]): Promise<number> {
  throw new Error("control: not written yet");
}
