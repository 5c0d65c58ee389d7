// The words of `cml guestos`: the one table that parsing, --help and the manual page cml-guestos(1) are made from.
import type { ArgsDef } from "citty";
import type { Commands } from "../tool/commands.ts";

const signing = (what: string) =>
  ({
    conf: { type: "positional", description: what, required: true },
    key: {
      type: "string",
      description: "private key: a PEM file, or pkcs11:… of a smartcard or HSM",
      valueHint: "KEY",
      required: true,
    },
    cert: {
      type: "string",
      description: "certificates: PEM files, or pkcs11:…; the signer's first, then intermediates",
      valueHint: "FILE...",
      required: true,
    },
  }) as const satisfies ArgsDef;

export const COMMANDS = [
  [
    "build",
    "make a GuestOS (image and configuration) of a folder or a tar file",
    {
      name: { type: "positional", description: "name of the GuestOS", required: true },
      from: { type: "positional", description: "folder, or tar file, that becomes its root", required: true },
      version: {
        type: "string",
        description: "version, a whole number from 1",
        valueHint: "N",
        required: true,
      },
      out: {
        type: "string",
        alias: "o",
        description: "folder for NAME-N/ and NAME-N.conf",
        valueHint: "DIR",
        default: ".",
      },
      fs: {
        type: "string",
        description: "file system of the image: erofs or squashfs",
        valueHint: "FS",
        default: "erofs",
      },
      root: {
        type: "string",
        description:
          "how the root is mounted: shared_rw (a fresh writable layer each start), shared, overlay_ro",
        valueHint: "HOW",
        default: "shared_rw",
      },
      init: { type: "string", description: "first program", valueHint: "PATH", default: "/sbin/init" },
      param: { type: "string", description: "argument of the first program", valueHint: "WORD..." },
      env: { type: "string", description: "environment of the first program", valueHint: "NAME=VALUE..." },
      volume: {
        type: "string",
        description: "data volume of each container, kept between starts",
        valueHint: "NAME:/MOUNT/POINT[:MiB[:ext4]]...",
      },
      overlay: {
        type: "string",
        description: "as --volume, laid over what the image has at that place",
        valueHint: "NAME:/MOUNT/POINT[:MiB[:ext4]]...",
      },
      tmpfs: {
        type: "string",
        description: "empty folder in memory at each start",
        valueHint: "/MOUNT/POINT[:MiB]...",
      },
      bind: {
        type: "string",
        description: "file shared by all containers",
        valueHint: "FILE:/MOUNT/POINT[:rw]...",
      },
      description: { type: "string", description: "one line about it", valueHint: "TEXT" },
      upstream: { type: "string", description: "version of what is inside", valueHint: "TEXT" },
      "update-url": { type: "string", description: "where its images are downloaded from", valueHint: "URL" },
      ram: { type: "string", description: "memory limit of a container that names none", valueHint: "MiB" },
      "min-ram": { type: "string", description: "least memory it works with", valueHint: "MiB" },
      "install-guest": { type: "boolean", description: "its containers may install GuestOSes" },
      arch: {
        type: "string",
        description: "machine it runs on: x86_64, aarch64 or riscv64",
        valueHint: "ARCH",
      },
      date: {
        type: "string",
        description: "date of all files, seconds since 1970 (else the newest file's)",
        valueHint: "N",
      },
      compress: { type: "boolean", description: "compress the image", default: true },
      "all-root": { type: "boolean", description: "every file belongs to root" },
      force: { type: "boolean", description: "replace the same version in the output folder" },
    },
  ],
  ["sign", "sign a GuestOS configuration", signing("configuration file NAME-N.conf")],
  [
    "verify",
    "say whose signature a configuration has, and whether the images beside it are the ones it names",
    {
      conf: { type: "positional", description: "configuration file", required: true },
      sig: { type: "positional", description: "signature (default: CONF with .sig)", required: false },
      cert: { type: "positional", description: "certificates (default: CONF with .cert)", required: false },
      ca: { type: "string", description: "root certificates of signed software", valueHint: "FILE..." },
      "local-ca": {
        type: "string",
        description: "root certificates of locally signed software",
        valueHint: "FILE...",
      },
      revocation: {
        type: "string",
        description: "CRL (PEM or DER), or OCSP response (DER, name ends in .ocsp)",
        valueHint: "FILE...",
      },
      "ignore-time": { type: "boolean", description: "do not look at validity times" },
    },
  ],
  [
    "inspect",
    "print a GuestOS configuration, and check the images beside it",
    {
      conf: { type: "positional", description: "configuration file NAME-N.conf", required: true },
      json: { type: "boolean", description: "print JSON" },
    },
  ],
] as const satisfies Commands;

export const SUMMARY = "build, sign, verify and inspect GuestOS images";

export const CONTAINER_COMMANDS = [
  ["sign", "sign a container configuration", signing("configuration file NAME.conf")],
] as const satisfies Commands;

export const CONTAINER_SUMMARY = "sign container configurations";
