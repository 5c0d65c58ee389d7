// Wireless links belong to a radio (wiphy), and only the radio as a whole can change its network namespace.
import { existsSync } from "node:fs";
import { ENODEV } from "./error.ts";
import { attributes, body, type Message, type Netlink, numberOf, u32 } from "./netlink.ts";

const GENL_ID_CTRL = 16; // linux/genetlink.h
const [CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME] = [3, 1, 2];
// linux/nl80211.h
const [NL80211_CMD_GET_INTERFACE, NL80211_CMD_SET_WIPHY_NETNS] = [5, 49];
const [NL80211_ATTR_WIPHY, NL80211_ATTR_IFINDEX, NL80211_ATTR_NETNS_FD] = [1, 3, 219];
/** There as soon as the kernel knows of wireless links at all. */
const CLASS = "/sys/class/ieee80211";

const HEADER = 4; // struct genlmsghdr
const genlmsghdr = (command: number): Uint8Array => new Uint8Array([command, 1, 0, 0]);

/** The number that the kernel has given to nl80211. */
function family(n: Netlink): number {
  const [found] = n.do([
    {
      type: GENL_ID_CTRL,
      body: body(genlmsghdr(CTRL_CMD_GETFAMILY), [[CTRL_ATTR_FAMILY_NAME, "nl80211"]]),
      what: "genl family nl80211",
    },
  ]);
  const id = numberOf(found && attributes(found.body.subarray(HEADER)).get(CTRL_ATTR_FAMILY_ID));
  if (id === 0) throw new Error("genl family nl80211: no number in the kernel's answer");
  return id;
}

/** Whether any link of this machine could be wireless. */
export const wireless = (): boolean => existsSync(CLASS);

/** The radio of a link; undefined: it has none. `n`: a NETLINK_GENERIC socket of where the link is. */
export function radioOf(n: Netlink, index: number): number | undefined {
  const asked = {
    type: family(n),
    body: body(genlmsghdr(NL80211_CMD_GET_INTERFACE), [[NL80211_ATTR_IFINDEX, u32(index)]]),
    what: `iw link ${index}`,
  };
  const [found] = n.do([asked], ENODEV);
  const wiphy = found && attributes(found.body.subarray(HEADER)).get(NL80211_ATTR_WIPHY);
  return wiphy && numberOf(wiphy);
}

/** Move radio `wiphy` into the network namespace open as `netns`. `n`: a NETLINK_GENERIC socket of where it is. */
export const moveRadio = (n: Netlink, wiphy: number, netns: number): Message => ({
  type: family(n),
  body: body(genlmsghdr(NL80211_CMD_SET_WIPHY_NETNS), [
    [NL80211_ATTR_WIPHY, u32(wiphy)],
    [NL80211_ATTR_NETNS_FD, u32(netns)],
  ]),
  what: `iw phy#${wiphy} set netns ${netns}`,
});
