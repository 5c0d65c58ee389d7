// Prints how large the executable is, and how large the libraries are that it cannot start without.
import { statSync } from "node:fs";
import { closure } from "./libraries.ts";

const [executable] = process.argv.slice(2);
if (executable === undefined) throw new Error("usage: sizes.ts EXECUTABLE");
const megabytes = (n: number) => `${(n / 1e6).toFixed(1)} MB`;
const libraries = closure([executable]).map((l) => ({ ...l, size: statSync(l.from).size }));
const total = libraries.reduce((sum, l) => sum + l.size, 0);
console.log(`${executable}: ${megabytes(statSync(executable).size)}`);
console.log(
  `its libraries: ${megabytes(total)} (${libraries.map((l) => `${l.name} ${megabytes(l.size)}`).join(", ")})`,
);
