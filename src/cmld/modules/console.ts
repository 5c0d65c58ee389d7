// console: what a container's init and its services write to standard output and error, in a log of its own.
//
// A named pipe that the container holds open in both directions: a write never kills the writer when cmld is gone,
// and the next cmld opens the pipe again by its name. It does not block either: a container that writes faster than
// we read loses words, not time.
import { join } from "node:path";
import {
  AT_FDCWD,
  dup3,
  fchownat,
  mkdir,
  mknodat,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  openat,
  read,
} from "../../sys/calls.ts";
import { Fd } from "../../sys/fd.ts";
import { Journal } from "../../sys/journal.ts";
import { mem } from "../../sys/mem.ts";
import { attempt, now } from "../../sys/now.ts";
import { EPOLLIN, watch } from "../../sys/poll.ts";
import { type Module, Slot, type Start } from "../module.ts";

const S_IFIFO = 0o010000;
/** A line that is longer is cut into several. */
const LINE_MAX = 4096;
/** One read, and the pause after it: at most 1.2 MiB a second of a container's words are kept. */
const CHUNK = 65536;
const PAUSE_MS = 50;
/** Lines of one read that are kept: each is a write of its own, and a read may be nothing but line ends. */
const LINES = 512;
const LIMITS = { fileBytes: 256 << 10, files: 2 };

const pathOf = (s: Start): string => join(s.host.run, "console", s.uuid);

const ends = new Slot<{ nothing: Fd; pipe: Fd }>();

export const console: Module = {
  name: "console",
  prepare(s) {
    const path = pathOf(s);
    s.owned.acquire({ kind: "file", path }, () => {
      now(mkdir(join(s.host.run, "console"), 0o700));
      now(mknodat(AT_FDCWD, path, S_IFIFO | 0o600, 0));
      now(fchownat(AT_FDCWD, path, s.uidStart, s.uidStart)); // for /dev/stdout, which is opened again
    });
    ends.set(s, {
      nothing: s.owned.use(new Fd(now(openat(AT_FDCWD, "/dev/null", O_RDWR)))),
      pipe: s.owned.use(new Fd(now(openat(AT_FDCWD, path, O_RDWR | O_NONBLOCK)))),
    });
  },
  child(s) {
    const { nothing, pipe } = ends.need(s);
    return [dup3(nothing.n, 0), dup3(pipe.n, 1), dup3(pipe.n, 2)];
  },
  started(s) {
    let journal: Journal | undefined; // most containers never write a word
    const say = (line: string): void => {
      journal ??= new Journal({ name: `container-${s.uuid}`, directory: s.host.logs, limits: LIMITS });
      journal.info(line);
    };
    const pipe = s.owned.use(new Fd(now(openat(AT_FDCWD, pathOf(s), O_RDONLY | O_NONBLOCK))));
    const decoder = new TextDecoder();
    let rest = "";
    const drain = (): number => {
      const buffer = mem(CHUNK);
      const n = attempt(read(pipe.n, buffer));
      if (n <= 0) return 0;
      const lines = (rest + decoder.decode(buffer.subarray(0, n), { stream: true })).split("\n");
      rest = lines.pop()!;
      while (rest.length > LINE_MAX) {
        lines.push(rest.slice(0, LINE_MAX));
        rest = rest.slice(LINE_MAX);
      }
      for (const line of lines.slice(0, LINES)) say(line.replace(/^\r+|\r+$/g, ""));
      if (lines.length > LINES) say(`(${lines.length - LINES} lines after this one were left out)`);
      return n;
    };
    let resting: Timer | undefined;
    const watching = watch(pipe, EPOLLIN, () => {
      drain();
      watching.pause();
      resting = setTimeout(() => watching.resume(), PAUSE_MS);
    });
    s.owned.use({
      [Symbol.dispose]() {
        clearTimeout(resting);
        watching[Symbol.dispose]();
        drain();
        if (rest !== "") say(rest);
        journal?.[Symbol.dispose]();
      },
    });
  },
};
