// Configurations as checked, frozen values. (The loading and checking is being written.)
export type ContainerConfig = { readonly name: string };
export type GuestOsConfig = { readonly name: string };
export type DeviceConfig = { readonly hostedmode: boolean };
