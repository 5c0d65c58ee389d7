// Wireless links belong to a radio (wiphy), and only the radio as a whole can change its network namespace.
import { attributes, body, type Message, type Netlink, numberOf, u16, u32 } from "./netlink.ts";

const GENL_ID_CTRL = 16; // linux/genetlink.h
const [CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME] = [3, 1, 2];
const NL80211_CMD_SET_WIPHY_NETNS = 49; // linux/nl80211.h
const [NL80211_ATTR_WIPHY, NL80211_ATTR_NETNS_FD] = [1, 219];
const genlmsghdr = (command: number): Uint8Array => new Uint8Array([command, 1, 0, 0]);

/** Move radio `wiphy` into the network namespace open as `netns`. `n`: a NETLINK_GENERIC socket of where it is. */
export function moveRadio(n: Netlink, wiphy: number, netns: number): Message {
  const [family] = n.do([
    {
      type: GENL_ID_CTRL,
      body: body(genlmsghdr(CTRL_CMD_GETFAMILY), [[CTRL_ATTR_FAMILY_NAME, "nl80211"]]),
      what: "genl family nl80211",
    },
  ]);
  const id = numberOf(attributes(family?.body.subarray(4) ?? u16(0)).get(CTRL_ATTR_FAMILY_ID));
  if (id === 0) throw new Error("genl family nl80211: no number in the kernel's answer");
  return {
    type: id,
    body: body(genlmsghdr(NL80211_CMD_SET_WIPHY_NETNS), [
      [NL80211_ATTR_WIPHY, u32(wiphy)],
      [NL80211_ATTR_NETNS_FD, u32(netns)],
    ]),
    what: `phy phy${wiphy} set netns ${netns}`,
  };
}
