import { expect, test } from "bun:test";
import { command, must } from "./command.ts";

const sh = (script: string) => ["/bin/sh", "-c", script];

test("command() gives what was said and how it ended", async () => {
  expect(await command(sh("echo out; echo err >&2; exit 3"))).toEqual({ said: "out\nerr\n", status: 3 });
  expect(await command(sh("kill -9 $$"))).toEqual({ said: "", signal: 9 });
});

test("command() gives an explicit environment, no input and no descriptor of ours", async () => {
  const { said } = await command(sh("cat; ls /proc/self/fd | wc -l; env | cut -d= -f1 | sort"));
  expect(said).toBe("4\nLC_ALL\nPATH\nPWD\n"); // three, and ls' own
});

test("command() keeps 64 KiB of what is said, and reads the rest", async () => {
  const { said, status } = await command(sh("head -c 1000000 /dev/zero | tr '\\0' x"));
  expect([said.length, status]).toEqual([65536, 0]);
});

test("must() is an error with the last words", async () => {
  await expect(must(sh("echo first; echo no space left >&2; exit 1"))).rejects.toThrow(
    "exit status 1: no space left",
  );
  await expect(must(sh("kill -15 $$"))).rejects.toThrow("killed by signal 15");
});

test("a program that is not there is named", async () => {
  await expect(command(["/no/such"])).rejects.toThrow('child: execve("/no/such", [/no/such],');
});
