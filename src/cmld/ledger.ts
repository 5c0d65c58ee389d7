// Everything that a container start acquires, as values in a file under /run/cml/ledger: written before it is
// acquired, so that whoever reads the file later (this cmld, or the next one) can release it. A ledger is one JSON
// value per line; the first line is its version and the container, a line {"released":n} ends entry n.

/** How a thing outside our own descriptors is found again. Releasing what is not there is no error. */
export type Resource =
  | { readonly kind: "cgroup"; readonly path: string }
  /** A network link in our own network namespace. */
  | { readonly kind: "link"; readonly name: string }
  /** An address range 172.23.<index>.0/24. */
  | { readonly kind: "subnet"; readonly index: number }
  /** Our table's rules for one container, in the router's network namespace. */
  | { readonly kind: "rules"; readonly subnet: number }
  | { readonly kind: "process"; readonly pid: number; readonly startTime: number }
  | { readonly kind: "directory"; readonly path: string }
  | { readonly kind: "file"; readonly path: string };

export interface Owned {
  /** Write `resource` down, then do `how`. It is released in reverse order, whatever happens. */
  acquire<T>(resource: Resource, how: () => T): T;
  /** Something that ends with this process anyway (a descriptor): closed in reverse order. */
  use<T extends Disposable>(value: T): T;
}
