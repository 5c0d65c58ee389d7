// proto/*.proto → proto/gen/proto.js (tables for src/lib/protobuf.ts) and proto.d.ts (their types). Run by
// `make proto`. For a message M the types are: IM, what one writes to be encoded (optional fields may be missing),
// and M, what decoding gives (lists are always there, and so are fields with a stated default).
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import protobuf from "protobufjs";

const here = import.meta.dir;
const root = new protobuf.Root();
root.resolvePath = (_from, to) => (to.startsWith("/") ? to : `${here}/${to}`);
const files = readdirSync(here)
  .filter((f) => f.endsWith(".proto"))
  .sort();
root.loadSync(files, { keepCase: true }).resolveAll();

const TYPES: Record<string, string> = {
  string: "string",
  bytes: "Uint8Array",
  bool: "boolean",
  int32: "number",
  int64: "number",
  uint32: "number",
  uint64: "number",
  fixed32: "number",
};

type Node = protobuf.Type | protobuf.Enum;
const children = (n: protobuf.NamespaceBase): Node[] =>
  n.nestedArray.filter((c) => c instanceof protobuf.Type || c instanceof protobuf.Enum);
const path = (n: protobuf.ReflectionObject): string => n.fullName.replace(/^\./, "");
const variable = (n: protobuf.ReflectionObject): string => path(n).replaceAll(".", "_");

/** Every message and enum, each after those it uses. */
function ordered(): Node[] {
  const done = new Set<Node>();
  const visit = (n: Node): void => {
    if (done.has(n)) return;
    if (n instanceof protobuf.Type) {
      for (const c of children(n)) visit(c);
      for (const f of n.fieldsArray) if (f.resolvedType) visit(f.resolvedType);
    }
    done.add(n);
  };
  for (const n of children(root)) visit(n);
  return [...done];
}

// --- proto.js --------------------------------------------------------------------

function table(n: Node): string {
  if (n instanceof protobuf.Enum) {
    const words = Object.entries(n.values).map(([word, value]) => [value, word]);
    const both = { ...Object.fromEntries(words), ...n.values };
    return `const ${variable(n)} = enumeration("${path(n)}", ${JSON.stringify(both)});`;
  }
  const rows = n.fieldsArray.map((f) => {
    const type = f.resolvedType ? variable(f.resolvedType) : JSON.stringify(f.type);
    if (!f.resolvedType && !TYPES[f.type]) throw new Error(`${path(f)}: type ${f.type} is not known here`);
    if (f.repeated && f.type !== "string" && !(f.resolvedType instanceof protobuf.Type))
      throw new Error(`${path(f)}: a repeated ${f.type} could be packed, which is not known here`);
    const label = f.repeated ? "repeated" : f.required ? "required" : "optional";
    const stated = f.options?.default;
    const fallback =
      stated === undefined
        ? ""
        : `, ${JSON.stringify(f.resolvedType instanceof protobuf.Enum ? f.resolvedType.values[stated] : stated)}`;
    return `  [${f.id}, "${f.name}", "${label}", ${type}${fallback}],`;
  });
  const nested = children(n).map((c) => `${c.name}: ${variable(c)}`);
  return `const ${variable(n)} = message("${path(n)}", [\n${rows.join("\n")}\n]${nested.length ? `, { ${nested.join(", ")} }` : ""});`;
}

const top = children(root)
  .map((n) => n.name)
  .sort();
const js = `// Written by proto/generate.ts from proto/*.proto.
import { enumeration, message } from "../../src/lib/protobuf.ts";

${ordered().map(table).join("\n")}

export { ${top.join(", ")} };
`;

// --- proto.d.ts ------------------------------------------------------------------

const written = (n: protobuf.ReflectionObject): string => path(n).replace(/(\w+)$/, "I$1");

function types(n: Node, indent: string): string[] {
  const lead = indent === "" ? "export " : "";
  if (n instanceof protobuf.Enum) {
    const words = Object.entries(n.values).map(([word, value]) => `${indent}  ${word} = ${value},`);
    return [`${indent}${lead}enum ${n.name} {`, ...words, `${indent}}`];
  }
  const out = [`${indent}${lead}interface I${n.name} {`];
  const type = (f: protobuf.Field, name: typeof path): string =>
    f.resolvedType instanceof protobuf.Type
      ? name(f.resolvedType)
      : f.resolvedType
        ? path(f.resolvedType)
        : TYPES[f.type]!;
  for (const f of n.fieldsArray) {
    const t = type(f, written);
    const must = f.required && f.options?.default === undefined;
    out.push(
      `${indent}  ${f.name}${must ? "" : "?"}: ${f.repeated ? `readonly ${t}[]` : t}${must ? "" : " | undefined"};`,
    );
  }
  out.push(
    `${indent}}`,
    `${indent}${lead}class ${n.name} implements I${n.name} {`,
    `${indent}  private constructor();`,
  );
  for (const f of n.fieldsArray) {
    const t = type(f, path);
    const there = f.repeated || f.required || f.options?.default !== undefined;
    out.push(
      `${indent}  ${f.name}${there ? "" : "?"}: ${f.repeated ? `${t}[]` : t}${there ? "" : " | undefined"};`,
    );
  }
  out.push(
    `${indent}  static readonly schema: Schema;`,
    `${indent}  /** Fields in place of none. */`,
    `${indent}  static create(fields?: Partial<I${n.name}>): ${n.name};`,
    `${indent}  /** Throws a TypeError that names the field. */`,
    `${indent}  static encode(message: I${n.name}): Uint8Array<ArrayBuffer>;`,
    `${indent}  /** Throws BadMessage with one line that names the field. */`,
    `${indent}  static decode(bytes: Uint8Array): ${n.name};`,
    `${indent}  /** For JSON: enums by name, bytes in base64. */`,
    `${indent}  static plain(message: I${n.name}): Record<string, unknown>;`,
    `${indent}}`,
  );
  const nested = children(n);
  if (nested.length)
    out.push(
      `${indent}${lead}namespace ${n.name} {`,
      ...nested.flatMap((c) => types(c, `${indent}  `)),
      `${indent}}`,
    );
  return out;
}

const dts = `// Written by proto/generate.ts from proto/*.proto.
import type { Schema } from "../../src/lib/protobuf.ts";

${children(root)
  .flatMap((n) => types(n, ""))
  .join("\n")}
`;

mkdirSync(`${here}/gen`, { recursive: true });
writeFileSync(`${here}/gen/proto.js`, js);
writeFileSync(`${here}/gen/proto.d.ts`, dts);
