#!/bin/bash
# Install the Debian packages that building and testing need, those that are missing only.
set -eu -o pipefail
need=(gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross erofs-utils squashfs-tools zstd e2fsprogs mmdebstrap
  busybox-static nftables qemu-system-x86 qemu-utils libcryptsetup12 cryptsetup-bin dmsetup libfuse3-3 iproute2 cpio crun runc systemd-container fdisk dosfstools libcap2-bin golang-github-containers-common softhsm2 udev libengine-pkcs11-openssl)
missing=()
for p in "${need[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "missing Debian packages: ${missing[*]} (run as root, or install them)" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
