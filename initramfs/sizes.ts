// Prints how large the executable is, and how large the libraries are that it cannot start without.
import { statSync } from "node:fs";
import { closure, closureIn } from "./libraries.ts";

const [executable, folder] = process.argv.slice(2);
if (executable === undefined) throw new Error("usage: sizes.ts EXECUTABLE [FOLDER OF ITS LIBRARIES]");
const megabytes = (n: number) => `${(n / 1e6).toFixed(1)} MB`;
const needed = folder === undefined ? closure([executable]) : closureIn(folder, [executable]);
const libraries = needed.map((l) => ({ ...l, size: statSync(l.from).size }));
const total = libraries.reduce((sum, l) => sum + l.size, 0);
console.log(`${executable}: ${megabytes(statSync(executable).size)}`);
console.log(
  `its libraries: ${megabytes(total)} (${libraries.map((l) => `${l.name} ${megabytes(l.size)}`).join(", ")})`,
);
