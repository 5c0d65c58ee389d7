// network: a namespace of its own with links to the router (../network/router.ts), ready before the container's init runs.
// In a file of its own are only the hooks; what they do concerns other containers as well.
import { CLONE_NEWNET } from "../../sys/calls.ts";
import { raiseLoopback } from "../../sys/link.ts";
import { Reg } from "../../sys/op.ts";
import { type Module, Slot } from "../module.ts";
import { adopt, connectNew, plan, routerChanged, type Veth } from "../network/router.ts";

const planned = new Slot<readonly Veth[]>();

export const network: Module = {
  name: "network",
  namespaces: (s) => (s.config.netns ? CLONE_NEWNET : 0n),
  prepare(s) {
    if (s.config.netns) planned.set(s, plan(s));
  },
  async attach(s, p) {
    if (s.config.netns) await connectNew(s, p.pid, planned.need(s));
  },
  child: (s) => (s.config.netns ? raiseLoopback(new Reg(0)) : []),
  async started(s, p) {
    const adopted = s.config.netns && !planned.get(s);
    if (adopted) await adopt(s, p.pid);
    if (adopted || s.isC0) await routerChanged();
  },
};
