// What the compiler embeds: the import's value is a path that the runtime can read.
declare module "*.so" {
  const path: string;
  export default path;
}
declare module "*/cservice" {
  const path: string;
  export default path;
}

declare module "*/deriver.js" {
  const path: string;
  export default path;
}
