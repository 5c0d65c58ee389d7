#!/bin/bash
# Run a command where /sys/fs/cgroup is cgroup2 alone, which crun insists on: in a mount namespace of its own. Without
# CAP_SYS_RESOURCE setrlimit(RLIMIT_MEMLOCK) is refused, which crun calls before it loads its device program and which
# Linux 5.11 and newer no longer need for that: preload a library that says yes.
set -eu
here=$(dirname "$0")
preload=""
if ! (ulimit -l unlimited) 2>/dev/null; then
  preload=$(mktemp --suffix=.so)
  gcc -O2 -shared -fPIC -o "$preload" "$here/memlock.c"
fi
exec unshare --mount --propagation private bash -c '
  umount -R /sys/fs/cgroup
  mount -t cgroup2 none /sys/fs/cgroup
  export CML_BENCH_PRELOAD='"$preload"'
  exec "$@"' bash "$@"
