// `make hosted`: what it says can be done can be done, and Ctrl-C leaves nothing behind.
import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { where } from "../../src/sys/cgroup.ts";

const mounts = (): string[] =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((l) => l.includes("/cml-hosted"));

test("the demo container runs until Ctrl-C", async () => {
  const hosted = Bun.spawn([process.execPath, "initramfs/hosted.ts"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  const reading = (async () => {
    for await (const chunk of hosted.stdout.pipeThrough(new TextDecoderStream())) {
      said += chunk;
      if (said.includes("Ctrl-C here")) return;
    }
    throw new Error(`hosted.ts has ended: ${said}`);
  })();
  try {
    await reading;
    const [, program] = /alias control="(.*)"/.exec(said)!;
    const control = (...args: string[]) => {
      const { status, stdout } = spawnSync(
        program!.split(" ")[0]!,
        [...program!.split(" ").slice(1), ...args],
        {
          encoding: "utf8",
        },
      );
      return `${status} ${stdout}`;
    };
    expect(control("list")).toContain("state: RUNNING");
    expect(control("run", "demo", "nopty", "hostname")).toBe("0 demo\n");
    expect(control("stop", "demo")).toContain("CONTAINER_STOP_OK");
  } finally {
    hosted.kill("SIGINT");
  }
  expect(await hosted.exited).toBe(0);
  expect(mounts()).toEqual([]);
  expect(["out/hosted", "/run/cml-hosted", join(where().mount, "cml-hosted")].filter(existsSync)).toEqual([]);
  expect(readdirSync("/sys/class/net").filter((l) => l.includes("demo"))).toEqual([]);
});
