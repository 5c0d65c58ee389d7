// Binding of run.c, the shim. Its bytes are embedded in the executable and opened through a memfd: a library
// extracted to the temporary folder would need one that is writable, and would stay there.
import { dlopen, FFIType as T } from "bun:ffi";
import { closeSync, readFileSync, writeSync } from "node:fs";
import embedded from "../out/run.so" with { type: "file" };

const MFD_CLOEXEC = 1; // linux/memfd.h

function load<S extends Parameters<typeof dlopen>[1]>(symbols: S) {
  const libc = dlopen("libc.so.6", { memfd_create: { args: [T.cstring, T.u32], returns: T.i32 } });
  const fd = libc.symbols.memfd_create(Buffer.from("run.so\0"), MFD_CLOEXEC);
  if (fd < 0) throw new Error("memfd_create: no memory for the shim");
  writeSync(fd, readFileSync(embedded));
  const library = dlopen(`/proc/self/fd/${fd}`, symbols);
  closeSync(fd);
  return library.symbols;
}

export const run = load({
  /** `long call(const struct op *)`: the result, or -errno. */
  call: { args: [T.ptr], returns: T.i64_fast },
  /** `long run(ops, count, flags, cgroup, report, *pidfd, exit_signal, pidns, home, stack, stack_size,
   * owner)`: a pid, or -errno. */
  run: {
    args: [
      ...([
        T.ptr,
        T.u32,
        T.u64_fast,
        T.i32,
        T.i32,
        T.ptr,
        T.i32,
        T.i32,
        T.i32,
        T.u64_fast,
        T.u64_fast,
        T.u32,
      ] as const),
    ],
    returns: T.i64_fast,
  },
  /** `long poller(epoll, sock)`: the thread's tid, or -errno. */
  poller: { args: [T.i32, T.i32], returns: T.i64_fast },
  /** `long survive(path, argv, env, note)`: 0, or -errno. argv and env are kept for ever. */
  survive: { args: [T.ptr, T.ptr, T.ptr, T.ptr], returns: T.i64_fast },
});
