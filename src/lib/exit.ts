// What a daemon asks of the init that started it, by how it ends. cmld ends with one of these when the last
// container has stopped and the machine is to follow; any other end means: start me again.
export const EXIT_POWER_OFF = 40;
export const EXIT_REBOOT = 41;
