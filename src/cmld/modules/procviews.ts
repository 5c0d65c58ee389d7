// procviews: /proc/meminfo and its like say what the container has, not what the machine has (src/cmld/procviews.ts).
//
// After masks, while nobody else is in the container's mount namespace: the whole /proc below /dev/.cml stays as it is.
import { type Module, Slot } from "../module.ts";
import { attach, type View, type Views } from "../procviews.ts";

const opened = new Slot<readonly View[]>();

export const procviews = (views: Views): Module => ({
  name: "procviews",
  prepare(s) {
    const list = views.open();
    for (const { fd } of list) s.owned.use(fd);
    opened.set(s, list);
  },
  child: (s) => attach(opened.get(s) ?? [], false),
  // Attached by now; the container's mounts are not to be held open from outside.
  ready(s) {
    for (const { fd } of opened.get(s) ?? []) fd.close();
  },
  started(s, p) {
    s.owned.use(views.serve(p, (opened.get(s) ?? []).length === 0));
  },
});
