export async function main(_args: string[]): Promise<number> {
  throw new Error("guestos: not written yet");
}
