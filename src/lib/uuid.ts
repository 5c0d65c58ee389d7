// Identities of containers. Written as RFC 9562 has it, in lower case.

/** core0. */
export const C0 = "00000000-0000-0000-0000-000000000000";

const CANONICAL = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const BARE = /^[0-9a-f]{32}/;

/**
 * The forms that the original takes, in any case: 36 characters with dashes, or a text that begins with 32 digits
 * without any.
 */
export function parseUuid(text: string): string | undefined {
  const t = text.toLowerCase();
  if (CANONICAL.test(t)) return t;
  if (!BARE.test(t)) return undefined;
  return `${t.slice(0, 8)}-${t.slice(8, 12)}-${t.slice(12, 16)}-${t.slice(16, 20)}-${t.slice(20, 32)}`;
}

/** Exactly what we write ourselves: the only form in names of files. */
export const isUuid = (text: string): boolean => CANONICAL.test(text);

/** Version 4, from the kernel's random numbers. */
export const newUuid = (): string => crypto.randomUUID();
