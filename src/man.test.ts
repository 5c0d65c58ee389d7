import { expect, test } from "bun:test";
import { ContainerConfig, DeviceConfig } from "../proto/gen/proto.js";
import { COMMANDS } from "./control/commands.ts";
import { parse } from "./lib/text.ts";
import { pages } from "./man.ts";

const all = pages();
const plain = (page: string): string =>
  page
    .replace(/\\f[BIR]/g, "")
    .replaceAll("\\-", "-")
    .replaceAll("\\e", "\\");

test("control(1) has every command and every option", () => {
  const page = plain(all["control.1"]!);
  for (const c of COMMANDS) {
    expect(page).toContain(`\n.SS ${c.name}`);
    for (const o of c.options) expect(page).toContain(`--${o.name}`);
  }
});

test("the configurations' pages have every field, explained, and an example that is read", () => {
  for (const [name, type] of [
    ["container.conf.5", ContainerConfig],
    ["device.conf.5", DeviceConfig],
  ] as const) {
    const page = plain(all[name]!);
    for (const f of type.schema.fields) expect(page).toMatch(new RegExp(`\\.TP\n${f.name}: .*\n[A-Z0-9]`));
    const [, example] = page.split(".nf\n");
    parse(type as typeof ContainerConfig, example!.split(".fi")[0]!);
  }
});

test("fields that do nothing yet say so", () => {
  expect(plain(all["container.conf.5"]!)).not.toMatch(/^(userns|fifos): .*no effect/m);
  expect(plain(all["device.conf.5"]!)).toMatch(/^host_addr: .*no effect yet/m);
});

test("a line begins with a point only if it is a macro", () => {
  const macro = /^\.(TH|SH|SS|PP|TP|RS|RE|nf|fi)\b/;
  for (const page of Object.values(all))
    expect(page.split("\n").filter((line) => /^[.']/.test(line) && !macro.test(line))).toEqual([]);
});
