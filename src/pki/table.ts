// The words of `cml pki`.
import type { Commands } from "../tool/commands.ts";

export const COMMANDS = [
  [
    "init",
    "make a development PKI: keys and certificates for software, devices, users and backends",
    {
      dir: {
        type: "positional",
        description: "folder that is made; one that is there is kept",
        required: true,
      },
      key: {
        type: "string",
        description: "keys: rsa:BITS (2048 to 16384), ec:P-256, ec:P-384 or ed25519",
        valueHint: "SPEC",
        default: "rsa:4096",
      },
    },
  ],
] as const satisfies Commands;

export const SUMMARY = "make a development PKI";
