// Modules of the runtime that are loaded when somebody first needs them. It brings them as text and parses them at each start
// of each program: node:crypto is a fifth of scd's start, and what a start needs of it the global `crypto` has as well
// (docs/decisions/boot.md).
export const nodeCrypto = (): typeof import("node:crypto") => process.getBuiltinModule("node:crypto");
export const nodeNet = (): typeof import("node:net") => process.getBuiltinModule("node:net");
