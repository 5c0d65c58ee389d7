import { expect, test } from "bun:test";
import { isUp, MOVES, move, type State } from "./state.ts";

const states = Object.keys(MOVES) as State[];

test("move() takes what the table names, and says what it refuses", () => {
  expect(move("web", "STOPPED", "STARTING")).toBe("STARTING");
  expect(move("web", "RUNNING", "RUNNING")).toBe("RUNNING");
  expect(() => move("web", "STOPPED", "RUNNING")).toThrow("web is STOPPED: cannot become RUNNING");
});

test("every state with a process can end, and from every state the way leads back to STOPPED", () => {
  for (const from of states) {
    const reached = new Set<State>([from]);
    for (const s of reached) for (const to of MOVES[s]) reached.add(to);
    expect([from, reached.has("STOPPED")]).toEqual([from, true]);
    if (isUp(from)) expect([from, move("web", from, "STOPPED")]).toEqual([from, "STOPPED"]);
  }
});

test("a container is started from rest only", () => {
  expect(states.filter((s) => (MOVES[s] as readonly State[]).includes("STARTING"))).toEqual([
    "STOPPED",
    "REBOOTING",
  ]);
});
