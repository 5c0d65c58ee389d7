// `control run` from end to end: the client, the daemon and a process in a container, in pipes and at a terminal.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Seat } from "../seat.ts";
import { Cmld } from "./daemon.ts";

let cmld: Cmld;
beforeAll(async () => {
  cmld = await Cmld.begin();
  await cmld.create("web");
  expect(await control(["start", "--wait", "web"])).toMatchObject({ stderr: "", exit: 0 });
});
afterAll(async () => await cmld[Symbol.asyncDispose]());

const words = (...args: string[]): string[] => [
  process.execPath,
  "src/main.ts",
  "control",
  "-s",
  cmld.socket,
  ...args,
];

async function control(args: string[], stdin: Uint8Array = new Uint8Array(0)) {
  const client = Bun.spawn(words(...args), {
    stdin,
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: "/usr/bin:/bin" },
  });
  const [stdout, stderr, exit] = await Promise.all([
    client.stdout.bytes(),
    client.stderr.text(),
    client.exited,
  ]);
  return { stdout: Buffer.from(stdout).toString(), bytes: stdout, stderr, exit };
}
const busybox = (...args: string[]): string[] => ["run", "web", "/bin/busybox", ...args];

test("status, signal and what cannot be run", async () => {
  expect(await control(busybox("true"))).toMatchObject({ stdout: "", stderr: "", exit: 0 });
  expect(await control(busybox("sh", "-c", "echo out; exit 7"))).toMatchObject({
    stdout: "out\r\n",
    exit: 7,
  });
  expect(await control(busybox("sh", "-c", "kill -9 $$"))).toMatchObject({ exit: 137 });
  expect(await control(["run", "web", "/no/such"])).toMatchObject({ exit: 127 });
});

test("what ends at once loses no output, and much output arrives whole", async () => {
  for (let i = 0; i < 20; i++)
    expect(await control(busybox("echo", "quick"))).toMatchObject({ stdout: "quick\r\n", exit: 0 });
  const { stdout } = await control(["run", "web", "nopty", "/bin/busybox", "seq", "1", "200000"]);
  expect(stdout).toBe(Array.from({ length: 200_000 }, (_, i) => `${i + 1}\n`).join(""));
});

test("bytes pass without a terminal as they are, and the end of input is the command's", async () => {
  const all = Uint8Array.from({ length: 500_000 }, (_, i) => (i * 7919) >> 3);
  const { bytes, exit } = await control(["run", "--no-tty", "web", "/bin/busybox", "cat"], all);
  expect(exit).toBe(0);
  expect(Buffer.from(bytes).equals(Buffer.from(all))).toBe(true);
  expect(await control(busybox("cat"), Buffer.from("line\n"))).toMatchObject({ exit: 0 });
  expect(await control(busybox("cat"), Buffer.from("half a line"))).toMatchObject({ exit: 0 });
  const twice = busybox("sh", "-c", "busybox cat; busybox cat");
  expect(await control(twice, Buffer.from("line\n"))).toMatchObject({ exit: 0 });
});

test("user, folder and environment", async () => {
  const script = 'echo "$(id -u) $(id -g) $(pwd) $A"';
  const args = [
    "run",
    "--user",
    "1000:100",
    "--workdir",
    "/tmp",
    "-e",
    "A=b c",
    "web",
    "/bin/busybox",
    "sh",
    "-c",
  ];
  expect(
    (
      await control([
        ...args,
        `export PATH=/bin; alias id='busybox id'; ${script.replaceAll("id ", "busybox id ")}`,
      ])
    ).stdout,
  ).toBe("1000 100 /tmp b c\r\n");
});

test("at a terminal: its size, Ctrl-C, and the settings afterwards", async () => {
  await using user = new Seat(words(...busybox("sh")), ["TERM=xterm", "PATH=/usr/bin:/bin"], {
    rows: 31,
    columns: 97,
  });
  const settings = user.settings;
  user.type("busybox stty size\r");
  await user.sees("31 97");
  user.resize({ rows: 50, columns: 132 });
  user.type("while ! busybox stty size | busybox grep '50 13'2; do :; done; echo res''ized\r");
  await user.sees("resized");
  user.type("echo be''gun; busybox sleep 1000\r");
  await user.sees("begun");
  user.type("\x03");
  user.type("echo status $?\r");
  await user.sees("status 130");
  user.type("exit 5\r");
  expect(await user.ended()).toEqual({ status: 5 });
  expect(user.settings).toEqual(settings);
});

test("a terminal that stands still: nothing is lost, and nobody else waits", async () => {
  const last = 60_000;
  await using user = new Seat(
    words(...busybox("seq", "1", String(last))),
    ["TERM=xterm", "PATH=/usr/bin:/bin"],
    {
      rows: 31,
      columns: 97,
    },
  );
  await user.sees("1\r\n");
  user.lookAway();
  for (let i = 0; i < 3; i++)
    expect(await control(busybox("echo", "quick"))).toMatchObject({ stdout: "quick\r\n", exit: 0 });
  expect(user.text).not.toContain(`\n${last}\r\n`);
  user.lookAgain();
  expect(await user.ended()).toEqual({ status: 0 });
  expect(user.text).toBe(Array.from({ length: last }, (_, i) => `${i + 1}\r\n`).join(""));
});

test("many clients in one container: each has its own input, output and status", async () => {
  const script = 'read word; echo "$1 $word"; exit $1';
  const all = Array.from({ length: 12 }, (_, i) => i);
  const said = await Promise.all(
    all.map((i) =>
      control(
        ["run", "--no-tty", "web", "/bin/busybox", "sh", "-c", script, "sh", `${i}`],
        Buffer.from(`word${i}\n`),
      ),
    ),
  );
  expect(said.map(({ stdout, exit }) => [stdout, exit])).toEqual(all.map((i) => [`${i} word${i}\n`, i]));
});

test("what stands after the container is the command's, options and all", async () => {
  const { stdout } = await control([
    "run",
    "--no-tty",
    "web",
    "/bin/busybox",
    "echo",
    "--user",
    "x",
    "--help",
    "--",
    "-s",
  ]);
  expect(stdout).toBe("--user x --help -- -s\n");
  expect(await control(["run", "web", "nopty", "/bin/busybox", "echo", "nopty"])).toMatchObject({
    stdout: "nopty\n",
  });
});

test("a container that is stopped ends what runs in it", async () => {
  await cmld.create("short");
  await control(["start", "--wait", "short"]);
  const client = Bun.spawn(words("run", "short", "/bin/busybox", "sh", "-c", "echo on; busybox sleep 1000"), {
    stdin: "ignore",
    stdout: "pipe",
  });
  await client.stdout.getReader().read();
  expect(await control(["stop", "short"])).toMatchObject({ exit: 0 });
  expect(await client.exited).not.toBe(0);
});
