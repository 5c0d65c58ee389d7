import { expect, test } from "bun:test";
import * as proto from "../../proto/gen/proto.js";
import { checkContainer, checkDevice, checkGuestOs } from "./config.ts";
import { withoutEffect, withoutEffectHere } from "./pending.ts";

const device = checkDevice(proto.DeviceConfig.create({ allow_host_userns: true }));
const os = checkGuestOs({
  name: "os",
  init_path: "/init",
  mounts: [
    { image_file: "root", mount_point: "/", fs_type: "erofs", mount_type: proto.GuestOSMount.Type.SHARED },
    { image_file: "data", mount_point: "/data", fs_type: "ext4", mount_type: proto.GuestOSMount.Type.EMPTY },
  ],
} as never);
const said = (fields: Partial<proto.ContainerConfig>): string[] =>
  withoutEffect(
    checkContainer(proto.ContainerConfig.create({ name: "web", guest_os: "os", ...fields }), {
      device,
      provisioned: false,
      loaded: false,
    }),
    os,
  );

test("a configuration that asks for what there is gets no line", () => {
  expect(
    said({ ram_limit: 64, image_sizes: [proto.ContainerImageSize.create({ image_name: "data" })] }),
  ).toEqual([]);
  expect(withoutEffectHere(device)).toEqual([]);
});

test("every field without effect is named, once", () => {
  expect(
    said({
      userns: false,
      image_sizes: [proto.ContainerImageSize.create({ image_name: "root", image_size: 5 })],
    }).map((line) => line.split(": ")[0]),
  ).toEqual(["userns", "image_sizes"]);
  const asking = { host_addr: "10.0.0.1", host_gateway: "10.0.0.2" };
  expect(withoutEffectHere(checkDevice(proto.DeviceConfig.create(asking))).length).toBe(2);
});
